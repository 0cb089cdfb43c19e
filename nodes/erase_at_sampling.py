"""The node that erases while a picture is sampled, without a LoRA."""

import logging
import random
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge.extra_predictions import (
    ExtraPredictions,
    Sampling,
    encoded,
    with_extra_predictions,
)
from ..eraseanything_core.comfy_bridge.sampler_hooks import sigma_range
from ..eraseanything_core.concepts import prompts
from ..eraseanything_core.concepts.concept_set import ConceptSet
from ..eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from ..eraseanything_core.erasers.at_sampling import Projection
from ..eraseanything_core.erasers.erase_now import templates_of
from .shared.inputs import CATEGORY_LORAS, NOT_LINKED, check_concept, concepts
from .shared.texts import show_text


class EraseAtSampling(io.ComfyNode):
    """Takes a concept out of a model's predictions in the first steps of a sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        fraction = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="EraseAnything_EraseAtSampling",
            display_name="Erase at Sampling",
            category=CATEGORY_LORAS,
            description="Erases a concept while sampling, without training and without a LoRA, also at CFG 1. "
            "Gone with the node: nothing of the model changes.",
            search_aliases=["negative prompt", "guidance", "training-free", "nag", "velocity projection"],
            inputs=[
                io.Model.Input("model", tooltip="Any model; LoRAs may come before. It stays unchanged."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input("concept", default="", tooltip="The word or words to erase."),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    tooltip="Presence of the concept from which it acts; 1 is as present as when asked for by name.",
                    **fraction,
                ),
                io.Float.Input(
                    "strength",
                    default=1.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the concept is taken off: 1 is as much as there is, more goes past it.",
                ),
                io.Float.Input(
                    "end", default=1.0, tooltip="Fraction of the sampling up to which it looks and acts.", **fraction
                ),
                concepts("it replaces `concept`."),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler."),
                io.String.Output(display_name="prompts", tooltip="The two sentences whose predictions are compared."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, concept: str | None = None, concepts: Any = NOT_LINKED) -> bool | str:
        return check_concept(concept, concepts)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: str,
        threshold: float,
        strength: float,
        end: float,
        concepts: ConceptSet | None = None,
    ) -> io.NodeOutput:
        words = concepts or sample_offline(ConceptRequest(concept))
        asked, neutral = compared(words)
        highest, lowest = sigma_range(model, 0.0, end)
        text = f"looks for: {asked}\nagainst: {neutral or '(the empty prompt)'}"
        extra = ExtraPredictions(
            encoded(clip, asked),
            encoded(clip, neutral),
            highest,
            lowest,
            Projection(threshold, strength),
            reporter(words.concept, cls.hidden.unique_id, text),
        )
        return io.NodeOutput(with_extra_predictions(model, extra), text, ui=ui.PreviewText(text))


def compared(words: ConceptSet) -> tuple[str, str]:
    """A sentence of the concept, and the same with its neutral words.

    For a look that no prompt names, an ordinary prompt with that look and with the one that is wanted.
    """
    if words.unasked:
        return words.unasked.replace("{}", words.prompts[0]), words.wanted.replace("{}", words.prompts[0])
    template = templates_of(words)[0]
    neutral = prompts.neutral_prompt(template, words.neutral, random.Random(0))
    return prompts.fill(template, words.concept), neutral


def reporter(concept: str, node: str | None, looked_for: str) -> Callable[[Sampling], None]:
    """Says after a sampling how present the concept was, in how many steps it was taken off, and what that cost.

    Args:
        concept: its name.
        node: id of the node; None where there is no server.
        looked_for: what the node has said before, which stays above.
    """

    def report(sampling: Sampling) -> None:
        if not sampling.calls:
            text = f"{concept}: no step was looked at"
        else:
            highest = torch.stack(sampling.present).amax(0)
            shown = ", ".join(f"{value:.2f}" for value in highest.tolist())
            text = f"{concept}: present up to {shown}. It was taken off in {sampling.acted} of {sampling.calls} steps."
            text += f" They took {sampling.calls} more calls of the model, with two rows a picture."
        logging.info("EraseAnything: %s", text)
        show_text(f"{looked_for}\n{text}", node)

    return report


NODES = [EraseAtSampling]
