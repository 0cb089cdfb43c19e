"""How much of a LoRA is left once it is in weights of a given precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import RowFactors

KEPT = 0.9  # of the change; less than that is worth a warning
NOISE = 1.0  # of rounding, in sizes of the change; more than that is worth one too


@dataclass(frozen=True)
class KeptChange:
    """Sums over entries of weights, from which the shares follow; sums of several weights are added.

    Attributes:
        entries: how many there are.
        changed: how many differ from the base.
        square: of the change B A as it is meant.
        along: its product with the change that the weights really have.
        error: the square of the difference between these two.
    """

    entries: int = 0
    changed: int = 0
    square: float = 0.0
    along: float = 0.0
    error: float = 0.0

    def __add__(self, other: "KeptChange") -> "KeptChange":
        return KeptChange(
            self.entries + other.entries,
            self.changed + other.changed,
            self.square + other.square,
            self.along + other.along,
            self.error + other.error,
        )

    @property
    def changed_share(self) -> float:
        """The share of entries that differ from the base."""
        return self.changed / self.entries if self.entries else 0.0

    @property
    def kept(self) -> float:
        """The share of the change that is left, along its own direction; 1 where nothing was to change."""
        return self.along / self.square if self.square else 1.0

    @property
    def noise(self) -> float:
        """How large the difference between the meant and the real change is, in sizes of the meant one."""
        return (self.error / self.square) ** 0.5 if self.square else 0.0

    @property
    def is_lost(self) -> bool:
        """Whether so much is lost, or so much noise added, that the user must know."""
        return self.kept < KEPT or self.noise > NOISE


def kept_change(base: Tensor, changed: Tensor, parts: Sequence[RowFactors], scale: float) -> KeptChange:
    """Holds the change of one weight against what it was meant to be.

    Args:
        base: [rows, columns], the weight before.
        changed: the same with the LoRA, rounded to the precision of the weight.
        parts: the LoRA, for some of the rows.
        scale: of the LoRA.
    """
    total = KeptChange()
    for start, (up, down) in parts:
        rows = slice(start, start + len(up))
        before = base[rows].float()
        after = changed[rows].to(before)
        meant = (scale * up.to(before)) @ down.to(before)
        real = after - before
        total += KeptChange(
            entries=real.numel(),
            changed=int((real != 0).sum()),
            square=float(meant.square().sum(dtype=torch.float64)),
            along=float((meant * real).sum(dtype=torch.float64)),
            error=float((meant - real).square().sum(dtype=torch.float64)),
        )
    return total
