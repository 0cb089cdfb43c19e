"""The dial of an eraser by the gone score: at which scale of the LoRA each held-out picture loses the concept."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..concepts import matching, prompts
from ..concepts.prompts import Prompt, Sentence
from ..concepts.sampler import ConceptRequest, sample_offline
from ..lora.apply import LoraScale, lora_applied, moved
from ..lora.factors import Eraser
from ..lora.headers import FIELD, header_value, training_size
from ..lora.strength import GONE_READER, StrengthConfig, StrengthCurve, measure_curve
from ..protocols import ErasableModel, ModelHost
from ..transfers import on_device
from .config import EraseConfig
from .gone import HeldOut, PictureReader, look_forwards
from .gone_check import encoded_plan, held_out_sentences
from .monitor import CONCEPTS, held_out

ADVICE = "type its concept into `concept`, or prompts that ask for it into `prompts`"
DIAL_STEPS = 8  # sampler steps of a picture, as in a training's look
# Settings of a training that decide what a look draws.
TEXTS = ("neutral", "unasked", "wanted")
LISTS = ("templates", "irrelevant", "retain", "held_out")


def dial_forwards(pictures: int, halvings: int) -> int:
    """Forwards of the model for one picture each that `gone_curve` takes."""
    teacher, student = look_forwards(pictures, DIAL_STEPS)
    # Both ends of the scale, and every halving.
    return teacher + (2 + halvings) * student


def dial_config(
    header: Mapping[str, str], concept: str, has_prompts: bool, images: int, name: str = "the LoRA"
) -> EraseConfig:
    """What a dial looks at: the concept in held-out sentences, as the training of the eraser would.

    Args:
        header: of the LoRA file.
        concept: what the user typed; it goes over the header's.
        has_prompts: whether the user gave prompts, which need no concept.
        images: how many pictures.
        name: of the LoRA, for errors.

    Raises:
        ValueError: neither says what the LoRA erases, or the header holds nonsense.
    """
    of_header = header.get(f"{FIELD}concept", "").strip()
    concept = concept or of_header
    if not (concept or has_prompts):
        raise ValueError(f"{name} does not say what it erases: {ADVICE}")
    settings: dict[str, Any] = {"concept": "", "guidance": StrengthConfig.guidance}
    if concept:
        settings |= sample_offline(ConceptRequest(concept)).settings()
    if concept == of_header:
        settings |= trained_settings(header, name)
    settings |= training_size(header, name)
    return EraseConfig(**settings, look_pictures=images, look_steps=DIAL_STEPS)


def trained_settings(header: Mapping[str, str], name: str) -> dict[str, Any]:
    """What of an eraser's training decides its held-out sentences, as far as the header has it."""
    settings: dict[str, Any] = {field: header[f"{FIELD}{field}"] for field in TEXTS if f"{FIELD}{field}" in header}
    for field in LISTS:
        lines = header_value(header, f"{FIELD}{field}", [], name)
        if lines:
            settings[field] = tuple(map(str, lines))
    return settings


def own_sentences(lines: Sequence[str], count: int, concept: str, neutral: str) -> list[Sentence]:
    """The user's own prompts in turn, each against the same without the concept.

    Args:
        lines: the prompts.
        count: how many sentences.
        concept: a prompt that does not hold it is compared with the empty prompt.
        neutral: see `prompts.neutral_prompt`.
    """
    rng = random.Random(0)
    sentences = []
    for i in range(count if lines else 0):
        line = lines[i % len(lines)]
        without = ""
        if concept and matching.occurs(line, concept):
            without = prompts.neutral_prompt(matching.replace(line, concept, "{}"), neutral, rng)
        sentences.append(Sentence(Prompt(line), Prompt(without)))
    return sentences


def gone_curve(
    host: ModelHost,
    eraser: Eraser,
    config: EraseConfig,
    strength: StrengthConfig,
    own: Sequence[Sentence] = (),
    progress: Callable[[int], None] | None = None,
) -> StrengthCurve:
    """Measures an eraser's strength curve by the model alone; see `lora.strength.measure_curve`.

    Args:
        host: lends the model without the eraser.
        eraser: the LoRA.
        config: see `dial_config`.
        strength: how many pictures and halvings.
        own: sentences that are looked at in place of the held-out ones.
        progress: called with the forwards so far, of `dial_forwards`.
    """
    sentences = list(own) or held_out_sentences(host, config)[0]
    plan = encoded_plan(host, config, sentences, [])
    with host.session(config.torch_dtype()) as model, torch.no_grad():
        dial = GoneDial(model, held_out(model, plan, sentences, CONCEPTS), eraser, progress)
        return measure_curve(dial.sample, dial, len(sentences), strength.halvings)


class GoneDial:
    """Draws held-out pictures with the eraser at any scale, and reads them with the original model.

    Args:
        model: the original.
        looked_at: the sentences.
        eraser: the LoRA.
        progress: see `gone_curve`.
    """

    name = GONE_READER

    def __init__(
        self,
        model: ErasableModel,
        looked_at: HeldOut,
        eraser: Eraser,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.model = model
        self.held_out = looked_at
        self.eraser = moved(eraser, model.device)
        self.progress = progress
        self.pictures = PictureReader(model, looked_at)
        count = len(looked_at.noise)
        teacher, student = look_forwards(count, len(looked_at.sigmas) - 1)
        self.drawing = count * (len(looked_at.sigmas) - 1)
        self.reading = student - self.drawing
        self.forwards = 0
        self._report(teacher)

    def sample(self, scales: Tensor) -> Tensor:
        """Pictures [n, c, h, w], each at its own scale of `scales` [n]."""
        scale = LoraScale()

        def asked(model: ErasableModel, rows: Sequence[int]) -> Any:
            # Called before each batch, whose pictures have scales of their own; one for all ranks of a picture.
            scale.value = on_device(scales[list(rows), None], model.device)
            return self.held_out.asked(model, rows)

        with lora_applied(self.model.module, self.eraser, scale):
            drawn = self.held_out.pictures(self.model, asked, adapters=False)
        self._report(self.drawing)
        return drawn

    def set_ends(self, start: Tensor, end: Tensor) -> Tensor:
        """See `LatentReader`. What the original model does not draw at scale 0 cannot be seen to go."""
        return self.pictures.readable & ~self.lost(start) & self.lost(end)

    def lost(self, latents: Tensor) -> Tensor:
        """See `LatentReader`."""
        lost = ~self.pictures.read(latents).shows()
        self._report(self.reading)
        return lost

    def _report(self, forwards: int) -> None:
        self.forwards += forwards
        if self.progress is not None:
            self.progress(self.forwards)
