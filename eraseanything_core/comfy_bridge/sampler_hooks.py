"""Hooks of the attention on a MODEL: what they act on, and how they get into ComfyUI's sampling."""

from typing import Any

import comfy.patcher_extension
from comfy.model_patcher import ModelPatcher

from ..attention.hooks import Hook
from ..attention.located_prompt import LocatedPrompt, locate_concepts
from ..concepts.prompts import words_of
from .context_pieces import context_pieces
from .families.table import Layout


def encode_located(
    model: ModelPatcher, layout: Layout, clip: Any, prompt: str, concepts: str, fuzzy: bool
) -> tuple[LocatedPrompt, list]:
    """A prompt with the positions of the concepts in it, and its CONDITIONING.

    Args:
        layout: where the text stands in this family's attention, see `families.layout`.
        concepts: words, separated by commas or lines.
        fuzzy: whether misspelt words count.

    Raises:
        ValueError: the MODEL takes other features a token, or see `context_pieces` and `locate_concepts`.
    """
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    width = conditioning[0][0].shape[2]
    if width != layout.texts.features:
        raise ValueError(
            f"this CLIP makes {width} features a token and the MODEL takes {layout.texts.features}: connect the "
            "model's own CLIP"
        )
    contexts = [layout.texts.of_conditioning(model, *entry) for entry in conditioning]
    # The entries of a CONDITIONING are one prompt at different times of the sampling: the first stands for all.
    lengths = [context.shape[1] for context in contexts[0]]
    pieces = context_pieces(clip, prompt, conditioning[0][0].shape[1], lengths)
    return locate_concepts(pieces, words_of(concepts), fuzzy, contexts, layout.texts.quoted), conditioning


def sigma_range(model: ModelPatcher, start: float, end: float) -> tuple[float, float]:
    """(highest, lowest) noise level of a range that is given as fractions of the sampling."""
    if start >= end:
        raise ValueError(f"start {start:g} is not before end {end:g}: no step lies between them")
    sampling = model.get_model_object("model_sampling")
    highest = float(sampling.percent_to_sigma(start))
    lowest = float(sampling.percent_to_sigma(end))
    return highest, lowest


def with_hook(model: ModelPatcher, hook: Hook) -> ModelPatcher:
    """A clone of the MODEL whose sampling goes through the hook; the MODEL itself stays as it is."""
    clone = model.clone()
    hook.patch(clone)
    wrappers = comfy.patcher_extension.WrappersMP
    clone.add_wrapper_with_key(wrappers.OUTER_SAMPLE, "eraseanything", hook.outer_sample)
    clone.add_wrapper_with_key(wrappers.APPLY_MODEL, "eraseanything", hook.apply_model)
    return clone
