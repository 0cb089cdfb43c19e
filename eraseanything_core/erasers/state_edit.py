"""An edit of text states, W' = W (I + T), on the linears that read them: as a LoRA, and what it does to the states.

T comes from a closed form, `uce` or `double_projection`. It is the same for every linear that reads these states.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.factors import Factors
from ..lora.merge import truncated
from .uce import TextStates


class LinearEdit(NamedTuple):
    """The LoRA of one linear.

    Attributes:
        factors: B [rows, rank] and A [rank, columns], float32.
        truncation: |W T - B A| / |W T|, what the rank has cost; 0 where it is exact.
    """

    factors: Factors
    truncation: float


class Effect(NamedTuple):
    """What an edit does to the states that it was made from.

    Attributes:
        left: the mean over erased states of |W' c - W g|^2, as a part of that of |W c - W g|^2. 0 reads as the guide.
        moved: the mean over kept states of |W' c - W c|^2, as a part of that of |W c|^2.
    """

    left: float
    moved: float

    def text(self) -> str:
        """In words, in lengths and not in squares."""
        return f"{100 * (1 - math.sqrt(self.left)):.0f} % of the way to its guide, kept states moved by " + (
            f"{100 * math.sqrt(self.moved):.2f} %"
        )


def compressed(edit: Factors) -> Factors:
    """The same T with as many directions as it really has; float64."""
    return truncated({"": edit})[""]


def linear_edit(weight: Tensor, edit: Factors, rank: int = 0) -> LinearEdit:
    """The LoRA of a linear from T.

    Args:
        weight: W, [rows, columns].
        edit: T, float64.
        rank: of the LoRA at most; 0 is exact.
    """
    # W T in full is never made: W times T's left factor is enough.
    whole = Factors(weight.to(edit.up) @ edit.up, edit.down)
    exact = truncated({"": whole})[""]
    if not rank or rank >= len(exact.down):
        return LinearEdit(_single(exact), 0.0)
    short = truncated({"": exact}, rank)[""]
    # Truncation leaves out directions that are orthogonal to those that stay.
    lost = 1 - _square(short) / _square(exact)
    return LinearEdit(_single(short), math.sqrt(max(0.0, lost)))


def effect(weight: Tensor, factors: Factors, states: TextStates) -> Effect:
    """What a LoRA of a linear does to the states that it was made from.

    Args:
        weight: W, [rows, columns].
        factors: of the LoRA.
        states: as the edit was given them.
    """
    weight = weight.float()
    up, down = factors
    distance = (states.guides.float() - states.erased.float()) @ weight.T
    erased_change = states.erased.float() @ down.T @ up.T
    kept_change = states.kept.float() @ down.T @ up.T
    kept = states.kept.float() @ weight.T
    left = (erased_change - distance).square().sum() / distance.square().sum()
    moved = kept_change.square().sum() / kept.square().sum()
    return Effect(float(left), float(moved))


def _square(factors: Factors) -> float:
    """|B A|^2 without B A."""
    return float(((factors.up.T @ factors.up) * (factors.down @ factors.down.T)).sum())


def _single(factors: Factors) -> Factors:
    return Factors(factors.up.to(torch.float32), factors.down.to(torch.float32))
