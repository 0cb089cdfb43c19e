"""EraseAnything++ (arXiv 2603.00978): retention is a constraint, and not one more term of a sum.

minimise F subject to: R grows by no more than a little. F is what erases, R what preserves.

g = 1 / (1 + w) g_F' + w / (1 + w) g_R,    g_F' = g_F - min(0, g_F.g_R) / |g_R|^2 g_R
w <- max(0, w + rate ( log (R_after + r) / (R_before + r) - slack )),    r = floor F_first

Surgery is one-sided: only what erases gives way, and only where it would raise R. The published code defines the
opposite, g_R giving way to g_F, and never calls it. w is the dual variable. R is measured before and after the update
at the same points with the same prompts (common random numbers); the published code draws new ones, and its difference
is noise. r is there because R starts at 0, where student and teacher are one: R may grow to it freely.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..training.draws import Draw
from ..training.method import Method, Pair, accumulated_losses, setting
from ..training.objective import Losses, weighted_sum
from ..training.optimizers import backpropagate, clipped_step

PLUS_SETTINGS: dict[str, Any] = {"alternate": False, "retain_loss": "teacher"}


@dataclass(frozen=True)
class PlusSettings:
    """What EraseAnything++ has beside the settings of a run."""

    rate: float = setting(1.0, "How fast the weight of retention follows its growth.", 0.0, 100.0)
    slack: float = setting(0.003, "Relative growth of the preserving loss in one step that is allowed.", 0.0, 1.0)
    floor: float = setting(
        0.01,
        "The preserving loss, as a share of the first erasing loss, up to which its growth counts little.",
        1e-6,
        10.0,
    )


class EraseAnythingPlus(Method):
    """EraseAnything with retention as a constraint."""

    name = "eraseanything_pp"
    label = "EraseAnything++"
    own_settings = PlusSettings
    needs_retained = True

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return PLUS_SETTINGS

    def step(self, pair: Pair) -> Losses:
        """One update along both gradients, and one of the dual variable."""
        losses: Losses = {}
        draws = self.draws(pair)
        optimizer = pair.optimizers[0]
        parameters = list(pair.lora.parameters())
        backpropagate(optimizer, pair.lora, self.erasing(pair, draws, losses))
        erasing = [_gradient(parameter) for parameter in parameters]
        forgotten = weighted_sum(losses, pair.config)
        kept: Losses = {}
        backpropagate(optimizer, pair.lora, self.preserving(pair, draws, kept))
        preserving = [_gradient(parameter) for parameter in parameters]

        w = pair.remembered("w", 0.0)
        for parameter, gradient in zip(parameters, mixed(erasing, preserving, w), strict=True):
            parameter.grad = gradient
        clipped_step(optimizer, pair.lora, pair.config)
        if kept:
            self.update_dual(pair, draws, float(forgotten), float(weighted_sum(kept, pair.config)))
        return losses | kept

    def update_dual(self, pair: Pair, draws: list[Draw], forgotten: float, before: float) -> None:
        """The dual variable's step.

        Args:
            pair: whose LoRA has just been updated.
            draws: its points.
            forgotten: F before the update.
            before: R before it.
        """
        first = pair.remembered("first", forgotten)
        pair.remember("first", first)
        after = self.retention(pair, draws)
        floor = self.own.floor * first
        growth = math.log((after + floor) / (before + floor))
        w = pair.remembered("w", 0.0)
        pair.remember("w", max(0.0, w + self.own.rate * (growth - self.own.slack)))

    @torch.no_grad()
    def retention(self, pair: Pair, draws: list[Draw]) -> float:
        """R of the student as it is now, without a graph."""
        return float(sum(accumulated_losses(self.preserve, pair, draws, {})))


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def mixed(erasing: Sequence[Tensor], preserving: Sequence[Tensor], w: float) -> list[Tensor]:
    """g from g_F and g_R, each a tensor a parameter; see the equation above."""
    product = torch.stack([(f * r).sum() for f, r in zip(erasing, preserving, strict=True)]).sum()
    square = torch.stack([r.square().sum() for r in preserving]).sum()
    # Without any damage g_R is 0, and there is nothing to give way to.
    conflict = torch.where(square > 0, torch.clamp(product, max=0) / square.clamp(min=1e-30), 0.0)
    share = w / (1 + w)
    return [(1 - share) * (f - conflict * r) + share * r for f, r in zip(erasing, preserving, strict=True)]
