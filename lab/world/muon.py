"""Muon (Jordan, 2024) for convolutions too: steps whose singular values are all about one."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lab.tinyflux import precision

# Jordan's coefficients of a quintic that takes singular values of (0, 1] to about 1 in five turns.
QUINTIC = (3.4445, -4.7750, 2.0315)
TURNS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with singular values of one, by Newton and Schulz."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = (x / (x.norm() + 1e-7)).to(precision.DTYPE)
    for _ in range(TURNS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal; a convolution counts as outputs by all the rest.

    A step has AdamW's size (0.2 a weight, root mean square, times the rate), so both can share a learning rate.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group["lr"], group["momentum"])

    def _move(self, weight: nn.Parameter, lr: float, momentum: float) -> None:
        state = self.state[weight]
        if not state:
            state["average"] = torch.zeros_like(weight)
        gradient = weight.grad
        assert gradient is not None
        state["average"].lerp_(gradient, 1 - momentum)
        ahead = torch.lerp(gradient, state["average"], momentum)
        matrix = orthogonal(ahead.reshape(len(weight), -1))
        weight.sub_(matrix.reshape(weight.shape), alpha=lr * 0.2 * max(matrix.shape) ** 0.5)
