"""Facilitated transport of SPM (Lyu et al., CVPR 2024): how strong each eraser is for one prompt.

gamma_i = max over the names e of eraser i of max( cos( E(p) - E(""), E(e) - E("") ), |T(p) & T(e)| / |T(e)| )
dW(p)   = sum_i gamma_i W_i B_i A_i

E are the states of a text, flattened, and T is the set of its tokens. The cosine is taken about the empty prompt: most
of a text of hundreds of tokens is padding, by which any two of them are alike. The published code multiplies both
factors of a LoRA by gamma, which squares it; here it counts once.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..protocols import TextEncoder
from .headers import ErasedConcept


def transport(prompt: str, erased: Sequence[ErasedConcept], encoder: TextEncoder) -> list[float]:
    """gamma in [0, 1] of every eraser.

    Args:
        prompt: that is sampled.
        erased: what each eraser erases.
        encoder: the text encoder that encodes the prompt.
    """
    return [max(name_strength(prompt, name, encoder) for name in concept.names) for concept in erased]


def name_strength(prompt: str, name: str, encoder: TextEncoder) -> float:
    """How much a prompt is about one name: by its states, or by its tokens, whichever is more."""
    return max(0.0, likeness(prompt, name, encoder), overlap(prompt, name, encoder))


def likeness(prompt: str, name: str, encoder: TextEncoder) -> float:
    """The cosine of two texts' states about those of the empty prompt."""
    states = [encoder.encode(text).context[0].float() for text in (prompt, name, "")]
    longest = max(len(each) for each in states)
    ours, theirs, empty = (_padded(each, longest) for each in states)
    return float(F.cosine_similarity((ours - empty).flatten(), (theirs - empty).flatten(), dim=0))


def overlap(prompt: str, name: str, encoder: TextEncoder) -> float:
    """The share of a name's tokens that the prompt has too, wherever they stand and however they are cased."""
    own = tokens(name, encoder)
    return len(own & tokens(prompt, encoder)) / max(1, len(own))


def tokens(text: str, encoder: TextEncoder) -> set[str]:
    """The tokens of a text, without those that every text has."""
    return {piece.casefold() for piece in encoder.pieces(text) if piece}


def _padded(states: Tensor, length: int) -> Tensor:
    """States [n, features] with zeros up to a length: some families encode a text in as many tokens as it has."""
    return F.pad(states, (0, 0, 0, length - len(states)))
