"""Divergences in the place of the squared error of a velocity.

Two Gaussians of equal variance s^2 whose means differ by a mean square m have these closed forms. Each is scaled so
that it is m where m is small:

    Hellinger   8 s^2 (1 - exp(-m / (8 s^2)))
    alpha       2 s^2 / (a (1 - a)) (1 - exp(-a (1 - a) m / (2 s^2)))

Hellinger is alpha at a = 1/2, and a -> 1 is the squared error, which is Kullback and Leibler's divergence times 2 s^2.
For a in (0, 1) they are bounded: a point that is far from its target pulls less. Outside it pulls more. After
f-divergence unlearning (arXiv 2509.21167), which takes s^2 from the noise schedule; a velocity has no such variance, so
s^2 is `width` times the mean square that the untrained model has at the same point.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("squared", "hellinger", "alpha")
SMALLEST = 1e-8  # s^2 where a prompt and its target are alike


@dataclass(frozen=True)
class Divergence:
    """How far a prediction is from its target.

    Attributes:
        name: one of `NAMES`.
        alpha: a; 0 and 1 are none. Only "alpha" has it.
        width: s^2 in units of the untrained model's mean square.
    """

    name: str = "squared"
    alpha: float = 0.5
    width: float = 1.0

    def __call__(self, student: Tensor, target: Tensor, untrained: Tensor) -> Tensor:
        """The mean over the batch.

        Args:
            student: its velocity, [b, c, h, w]; the only one with a gradient.
            target: what it shall be, same shape.
            untrained: what it was, same shape.

        Returns:
            A scalar.
        """
        target = target.detach()
        if self.name == "squared":
            return F.mse_loss(student, target)
        a = self.alpha if self.name == "alpha" else 0.5
        m = (student - target).square().mean((1, 2, 3))
        s_squared = (self.width * (untrained.detach() - target).square().mean((1, 2, 3))).clamp(min=SMALLEST)
        exponent = a * (1 - a) * m / (2 * s_squared)
        # expm1: 1 - exp of a small number would lose its digits.
        return (-2 * s_squared / (a * (1 - a)) * torch.expm1(-exponent)).mean()
