"""MACE (Lu et al., CVPR 2024) for Flux and one concept, written from the paper.

1. The linear that reads the text encoder's states is solved anew, so that the words beside the concept read as they do
   beside its super-category: UCE's equation on the states of the other tokens. What must stay comes from a cache.
2. A LoRA of rank 1 on the text's keys and values takes the attention from the concept's own tokens, inside a mask of
   the object; see `mace_attention`.
3. The closed-form fusion of `lora.fusion` keeps that LoRA to the concept's states and away from those that must stay.

The result is one LoRA: that of stage 1, and that of stage 3 on other linears.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..concepts import matching
from ..lora.factors import Eraser
from ..lora.fusion import FusionConfig, fused, modules_of, read_states
from ..lora.key_styles import eraser_tensors, read_eraser
from ..lora.merge import truncated
from ..protocols import ErasableModel, TextEncoder
from . import uce
from .aligned_states import guide_positions
from .mace_attention import AttentionConfig, Masks, NamedPrompt, train_attention
from .uce import TextStates

LAYER = "context_embedder"
KEPT_WEIGHT = 1.0  # of what must stay, stage 1


@dataclass(frozen=True)
class MaceConfig:
    """The settings of all three stages.

    Attributes:
        concept: the word, for the header of a file.
        erased, guides: equal sentences, with the concept and with its super-category.
        kept: sentences that read as before.
        lam: how strongly a weight holds on to itself, stage 1.
        attention: stage 2; its prompts are `erased` where it has none.
        fusion: stage 3.
    """

    concept: str
    erased: tuple[NamedPrompt, ...]
    guides: tuple[NamedPrompt, ...]
    kept: tuple[NamedPrompt, ...]
    lam: float = uce.LAM
    attention: AttentionConfig = field(default_factory=lambda: AttentionConfig(()))
    fusion: FusionConfig = field(default_factory=FusionConfig)


class MaceResult(NamedTuple):
    """What the stages have made.

    Attributes:
        lora: the one LoRA, under its file keys, float32.
        losses: of stage 2, one a step.
        seconds: of each stage.
    """

    lora: dict[str, Tensor]
    losses: list[float]
    seconds: tuple[float, float, float]


def erase(
    model: ErasableModel, weight: Tensor, text: TextEncoder, config: MaceConfig, masks: Masks | None = None
) -> MaceResult:
    """All three stages.

    Args:
        model: the model, lent; adapters are attached to it.
        weight: of the linear that reads the text encoder's states, [rows, features].
        text: its text encoder.
        config: the settings.
        masks: what knows where the concept is in a picture; None asks the model's own attention.
    """
    times = [time.monotonic()]
    first = refinement(weight, text, config.erased, config.guides, config.kept, config.lam)
    model.attach_frozen_lora(eraser_tensors(first, torch.float32))
    times.append(time.monotonic())
    lora, losses = train_attention(model, text, config.attention, masks)
    second = read_eraser(lora.tensors(torch.float32), {}, "stage 2")
    times.append(time.monotonic())
    prompts = [prompt for prompt, _ in config.erased]
    third = confined(model, text, second, prompts, [prompt for prompt, _ in config.kept], config.fusion)
    times.append(time.monotonic())
    seconds = (times[1] - times[0], times[2] - times[1], times[3] - times[2])
    return MaceResult(eraser_tensors(first | third, torch.float32), losses, seconds)


def other_states(text: TextEncoder, concept: NamedPrompt, guide: NamedPrompt) -> tuple[Tensor, Tensor]:
    """The states of all tokens but the word's, padding included, and those in the same places of the guide.

    Returns:
        Both [n, features].
    """
    prompt, word = concept
    pieces = text.pieces(prompt)
    # The encoder mixes all tokens, so the concept shows in the states of the others and of the padding as well.
    own = set(matching.positions(pieces, word))
    places = guide_positions(pieces, word, text.pieces(guide[0]))
    others = [i for i in range(len(pieces)) if i not in own]
    return text.encode(prompt).context[0][others], text.encode(guide[0]).context[0][[places[i] for i in others]]


def refinement(
    weight: Tensor,
    text: TextEncoder,
    erased: tuple[NamedPrompt, ...],
    guides: tuple[NamedPrompt, ...],
    kept: tuple[NamedPrompt, ...],
    lam: float,
    cache: Tensor | None = None,
) -> Eraser:
    """Stage 1.

    Args:
        weight: of the linear that reads the states, [rows, features].
        text: the model's text encoder.
        erased, guides: equal sentences, with the concept and with its super-category.
        kept: sentences that read as before.
        lam: how strongly the weight holds on to itself.
        cache: rows of a preserving cache besides, see `preserving_cache`.
    """
    pairs = [other_states(text, *pair) for pair in zip(erased, guides, strict=True)]
    kept_states = [KEPT_WEIGHT**0.5 * text.encode(prompt).context[0] for prompt, _ in kept]
    if cache is not None:
        kept_states.append(cache.to(weight.dtype))
    states = TextStates(torch.cat([c for c, _ in pairs]), torch.cat([g for _, g in pairs]), torch.cat(kept_states))
    layer = uce.LinearStates(weight, *states)
    # The edit's rank is the number of states, thousands of them; most of its directions are zero.
    return truncated(read_eraser(uce.lora({LAYER: layer}, lam), {}, "stage 1"))


def confined(
    model: ErasableModel, text: TextEncoder, eraser: Eraser, erased: list[str], kept: list[str], config: FusionConfig
) -> Eraser:
    """Stage 3, on states of the refined model.

    Args:
        model: refined by stage 1.
        text: its text encoder.
        eraser: of stage 2.
        erased, kept: prompts that name the concept, and prompts that must stay.
        config: how many of them are used, and how the sum is balanced.
    """
    # Only the linears that stage 2 has changed: the others have nothing to confine.
    modules = modules_of([eraser])
    erased_contexts = [text.encode(prompt) for prompt in erased[: config.prompts]]
    kept_contexts = [text.encode(prompt) for prompt in kept[: config.kept_prompts]]
    concept_states = read_states(model, erased_contexts, modules, config.rows, config)
    # Four times the rows: what must stay is more varied than one concept.
    kept_states = read_states(model, kept_contexts, modules, 4 * config.rows, config)
    return fused([eraser], [1.0], [concept_states], kept_states, config)
