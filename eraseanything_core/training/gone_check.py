"""Whether a concept is gone from a model that was erased elsewhere: by a LoRA, or as a checkpoint of its own."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..concepts import matching, prompts
from ..protocols import ModelHost
from .config import EraseConfig
from .gone import PictureReader, Verdict, look_forwards
from .monitor import held_out
from .plan import Plan


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
    count = len(plan.monitor_sentences) + len(plan.monitor_retained)
    teacher, student = look_forwards(count, config.look_steps)
    notify(f"looking at {count} pictures: {teacher + student:,} forwards of the model")
    with erased.host.session(config.torch_dtype()) as model, torch.no_grad():
        if erased.lora is not None:
            model.attach_frozen_lora(erased.lora, erased.strength)
        sets = [held_out(model, plan, plan.monitor_sentences, 0), held_out(model, plan, plan.monitor_retained, 1)]
        # The LoRA lies under everything here, so the adapters of a training stay off.
        x_s, kept_x_s = (each.pictures(model, each.asked, adapters=False) for each in sets)
    notify("reading them with the original model")
    with original.session(config.torch_dtype()) as model:
        concept, neighbours = (PictureReader(model, each) for each in sets)
        return Verdict.of(concept, x_s, neighbours, kept_x_s)


def _look_plan(host: ModelHost, config: EraseConfig) -> Plan:
    """Held-out sentences, encoded; nothing to train on."""
    with torch.inference_mode(False):
        text = host.text_encoder(keep=True)
        concept = matching.check_concept(config.concept, text.pieces)
        config = dataclasses.replace(config, concept=concept)
        watch = prompts.monitor_unasked if config.unasked else prompts.monitor_prompts
        sentences, retained = watch(config)
        texts = {prompt.text for sentence in (*sentences, *retained) for prompt in sentence.prompts()}
        encodings = {prompt: text.encode(prompt) for prompt in sorted(texts)}
    host.release_others()
    return Plan(config, [], [], encodings.__getitem__, {}, sentences, retained)
