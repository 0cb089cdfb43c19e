"""MACE (Lu et al., CVPR 2024) for Flux and one concept, written from the paper.

1. The linear that reads T5's states is solved anew, so that the words beside the concept read as they do beside its
   super-category: UCE's equation on the states of the other tokens.
2. A LoRA of rank 1 on the text's keys and values takes the attention from the concept's own tokens. MACE looks inside
   a segmentation of the object; here every image query counts, as it does there for styles.
3. The fusion of `compose.fusion` keeps that LoRA to the concept's states and away from those that must stay.
"""

import dataclasses

import torch
from torch import Tensor

from ..concepts import matching
from ..lora.fusion import FusionConfig, fused, modules_of, states
from ..lora.keys import Eraser, read
from ..lora.merge import truncated
from ..training.config import EraseConfig
from . import uce

LAYER = "context_embedder"
Named = tuple[str, str]  # a prompt and the word in it


def attention_only(config: EraseConfig, **settings) -> EraseConfig:
    """The configuration of stage 2: the attention loss alone, on plain sentences of the concept."""
    own = {
        "esd_weight": 0.0,
        "rsc_weight": 0.0,
        "retain_weight": 0.0,
        "attn_weight": 1.0,
        "synonym_rate": 0.0,
        "shuffle_rate": 0.0,
    }
    return dataclasses.replace(config, **own | {"targets": "add_k+add_v", "rank": 1, "on_policy_share": 0.0} | settings)


def beside(text, prompt: str, word: str) -> Tensor:
    """The states of all tokens but the word's, padding included, [n, features]."""
    context, own = text.encode(prompt)[0][0], set(matching.positions(text.pieces(prompt), word))
    return context[[i for i in range(len(context)) if i not in own]]


def refinement(
    weight: Tensor, text, erased: tuple[Named, ...], guides: tuple[Named, ...], kept: tuple[Named, ...], lam: float
) -> Eraser:
    """Stage 1.

    Args:
        weight: of the linear that reads T5's states.
        text: has `encode(prompt)` and `pieces(prompt)`.
        erased, guides: equal sentences, with the concept and with its super-category.
        kept: sentences that read as before.
        lam: how strongly the weight holds on to itself.
    """
    pairs = [(beside(text, *one), beside(text, *other)) for one, other in zip(erased, guides, strict=True)]
    cut = [min(len(one), len(other)) for one, other in pairs]
    away, to = (torch.cat([pair[side][:n] for pair, n in zip(pairs, cut, strict=True)]) for side in (0, 1))
    stay = torch.cat([text.encode(prompt)[0][0] for prompt, _ in kept])
    return truncated(read(uce.lora({LAYER: (weight, away, to, stay)}, lam), {}, "stage 1"))


def confined(model, text, eraser: Eraser, erased: list[str], kept: list[str], config: FusionConfig) -> Eraser:
    """Stage 3, on states of the refined model.

    Args:
        model: the seam, see `flux.FluxModel`.
        eraser: of stage 2.
        erased, kept: prompts that name the concept, and prompts that must stay.
    """
    modules = modules_of([eraser])
    parts = [(erased[: config.prompts], config.rows), (kept[: config.kept_prompts], 4 * config.rows)]
    own, stay = (states(model, [text.encode(p) for p in prompts], modules, n, config) for prompts, n in parts)
    return fused([eraser], [1.0], [own], stay, config)
