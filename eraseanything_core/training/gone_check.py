"""Whether a concept is gone from a model that was erased elsewhere: by a LoRA, or as a checkpoint of its own."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..concepts import prompts
from ..concepts.prompts import Sentence
from ..protocols import ModelHost
from .config import EraseConfig
from .gone import HeldOut, PictureReader, Verdict, look_forwards
from .monitor import CONCEPTS, NEIGHBOURS, held_out
from .plan import Plan, with_checked_words


@dataclasses.dataclass(frozen=True)
class Erased:
    """The model to look at.

    Attributes:
        host: lends it; the original's host where a LoRA does the erasing.
        lora: tensors under their file keys, or None.
        strength: of the LoRA.
    """

    host: ModelHost
    lora: dict[str, Tensor] | None = None
    strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the original model reads in the erased model's pictures of some sentences.

    Attributes:
        prompts: of the pictures.
        readable: whether each can be read; of the others the original model does not draw what is asked.
        shown: whether each shows what is asked.
    """

    prompts: list[str]
    readable: list[bool]
    shown: list[bool]


def check_gone(
    original: ModelHost,
    erased: Erased,
    config: EraseConfig,
    notify: Callable[[str], None],
) -> Verdict:
    """Looks at an erased model as a training looks at its own.

    Args:
        original: lends the model from before erasing, which reads the pictures.
        erased: the model to look at.
        config: concept, neutral text, words to keep, size, guidance, `look_pictures` and `look_steps`.
        notify: called with a sentence before each part.

    Raises:
        ValueError: the concept is empty or not in its sentences, or one of the models cannot be lent.
    """
    plan = _look_plan(original, config)
    sets, (x_s, kept_x_s) = _drawn(erased, plan, notify)
    notify("reading them with the original model")
    with original.session(config.torch_dtype()) as model:
        concept, neighbours = (PictureReader(model, each) for each in sets)
        return Verdict.of(concept, x_s, neighbours, kept_x_s)


def seen_pictures(
    original: ModelHost,
    erased: Erased,
    config: EraseConfig,
    notify: Callable[[str], None],
) -> tuple[Seen, Seen]:
    """`check_gone` picture by picture: those of the concept, and those of its neighbours."""
    plan = _look_plan(original, config)
    sets, pictures = _drawn(erased, plan, notify)
    notify("reading them with the original model")
    seen = []
    with original.session(config.torch_dtype()) as model:
        for sentences, each, x_s in zip((plan.monitor_sentences, plan.monitor_retained), sets, pictures, strict=True):
            reader = PictureReader(model, each)
            shown = reader.read(x_s).shows()
            asked = [sentence.concept.text for sentence in sentences]
            seen.append(Seen(asked, reader.readable.tolist(), shown.tolist()))
    concept, neighbours = seen
    return concept, neighbours


def _drawn(erased: Erased, plan: Plan, notify: Callable[[str], None]) -> tuple[list[HeldOut], list[Tensor]]:
    """The sentences of the concept and of its neighbours, and the erased model's pictures of both."""
    config = plan.config
    count = len(plan.monitor_sentences) + len(plan.monitor_retained)
    teacher, student = look_forwards(count, config.look_steps)
    notify(f"looking at {count} pictures: {teacher + student:,} forwards of the model")
    with erased.host.session(config.torch_dtype()) as model, torch.no_grad():
        if erased.lora is not None:
            model.attach_frozen_lora(erased.lora, erased.strength)
        sets = [
            held_out(model, plan, plan.monitor_sentences, CONCEPTS),
            held_out(model, plan, plan.monitor_retained, NEIGHBOURS),
        ]
        # The LoRA lies under everything here, so the adapters of a training stay off.
        return sets, [each.pictures(model, each.asked, adapters=False) for each in sets]


def _look_plan(host: ModelHost, config: EraseConfig) -> Plan:
    """Held-out sentences, encoded; nothing to train on."""
    sentences, retained = held_out_sentences(host, config)
    return encoded_plan(host, config, sentences, retained)


def held_out_sentences(host: ModelHost, config: EraseConfig) -> tuple[list[Sentence], list[Sentence]]:
    """What a training would be looked at with: sentences of the concept, and of what must stay.

    Raises:
        ValueError: the concept is empty or has no token, or training has all of the sentences.
    """
    with torch.inference_mode(False):
        config = with_checked_words(config, host.text_encoder(keep=True))
    watch = prompts.monitor_unasked if config.unasked else prompts.monitor_prompts
    return watch(config)


def encoded_plan(host: ModelHost, config: EraseConfig, sentences: list[Sentence], retained: list[Sentence]) -> Plan:
    """A plan with sentences to look at, encoded, and nothing to train on. Other models leave the device."""
    with torch.inference_mode(False):
        text = host.text_encoder(keep=True)
        texts = {prompt.text for sentence in (*sentences, *retained) for prompt in sentence.prompts()}
        encodings = {prompt: text.encode(prompt) for prompt in sorted(texts)}
    host.release_others()
    return Plan(config, [], [], encodings.__getitem__, {}, sentences, retained)
