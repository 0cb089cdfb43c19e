"""MACE (Lu et al., CVPR 2024) for Flux and one concept, written from the paper.

1. The linear that reads T5's states is solved anew, so that the words beside the concept read as they do beside its
   super-category: UCE's equation on the states of the other tokens.
2. A LoRA of rank 1 on the text's keys and values takes the attention from the concept's own tokens. MACE looks inside
   a segmentation of the object; here every image query counts, as it does there for styles.
3. The closed-form fusion of `lora.fusion` keeps that LoRA to the concept's states and away from those that must stay.

Stage 2 is EraseAnything's loop with `ATTENTION_SETTINGS`, on the model that stage 1 has refined.
"""

from typing import Any

import torch
from torch import Tensor

from ..concepts import matching
from ..lora.factors import Eraser
from ..lora.fusion import FusionConfig, fused, modules_of, read_states
from ..lora.key_styles import read_eraser
from ..lora.merge import truncated
from ..protocols import ErasableModel, TextEncoder
from . import uce

LAYER = "context_embedder"
NamedPrompt = tuple[str, str]  # a prompt and the word in it that counts
ATTENTION_SETTINGS: dict[str, Any] = {  # of stage 2: the attention loss alone, on plain sentences of the concept
    "esd_weight": 0.0,
    "rsc_weight": 0.0,
    "retain_weight": 0.0,
    "attn_weight": 1.0,
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
    "targets": "add_k+add_v",
    "rank": 1,
    "on_policy_share": 0.0,
}


def other_tokens(text: TextEncoder, prompt: str, word: str) -> Tensor:
    """The states of all tokens but the word's, padding included, [n, features]."""
    context, _ = text.encode(prompt)
    # The encoder mixes all tokens, so the concept shows in the states of the others and of the padding as well.
    own = set(matching.positions(text.pieces(prompt), word))
    states_of_prompt = context[0]
    others = [i for i in range(len(states_of_prompt)) if i not in own]
    return states_of_prompt[others]


def refinement(
    weight: Tensor,
    text: TextEncoder,
    erased: tuple[NamedPrompt, ...],
    guides: tuple[NamedPrompt, ...],
    kept: tuple[NamedPrompt, ...],
    lam: float,
) -> Eraser:
    """Stage 1.

    Args:
        weight: of the linear that reads T5's states, [rows, features].
        text: the model's text encoder.
        erased, guides: equal sentences, with the concept and with its super-category.
        kept: sentences that read as before.
        lam: how strongly the weight holds on to itself.
    """
    concept_states = []
    guide_states = []
    for concept_prompt, guide_prompt in zip(erased, guides, strict=True):
        concept = other_tokens(text, *concept_prompt)
        guide = other_tokens(text, *guide_prompt)
        # Words of unlike length leave unlike numbers of other tokens; the last ones are padding.
        count = min(len(concept), len(guide))
        concept_states.append(concept[:count])
        guide_states.append(guide[:count])
    kept_states = []
    for prompt, _ in kept:
        context, _ = text.encode(prompt)
        kept_states.append(context[0])
    layer = uce.LinearStates(weight, torch.cat(concept_states), torch.cat(guide_states), torch.cat(kept_states))
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
