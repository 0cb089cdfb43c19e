"""Closed-form fusion: MACE's (Lu et al. 2024, Eq. 6), as an exact LoRA.

It asks of one change dW, at every linear, that it does to the states e of concept i what eraser i does, and nothing
to the states p that must stay:

    dW = argmin  sum_i sum_e |dW e - W_i dW_i e|^2 + k sum_p |dW p|^2 + r |dW|^2 = (sum_i W_i dW_i G_i) M^-1
    G_i = sum_e e e^T    M = sum_i G_i + k sum_p p p^T + r I

With dW_i = B_i A_i that is a LoRA without any loss: B = [W_i B_i], A = [A_i G_i M^-1]. States are the inputs of the
linear, read on the loaded model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import sampling
from .headers import Erased
from .keys import Eraser, Factors, place
from .merge import stack


@dataclass(frozen=True)
class FusionConfig:
    """Where the states are read, and how the sum is balanced."""

    steps: int = 4  # of the trajectories on which states are read
    prompts: int = 24  # a concept
    kept_prompts: int = 96
    rows: int = 512  # states that stand for a concept, a linear; four times as many for what must stay
    kept_weight: float = 1.0  # k
    ridge: float = 1e-2  # r, as a part of the mean of M's diagonal
    width: int = 512  # px
    height: int = 512
    guidance: float = 3.5
    seed: int = 0

    @classmethod
    def like(cls, erased: Erased, seed: int) -> "FusionConfig":
        """At the size and guidance at which an eraser was trained."""
        return cls(width=erased.width, height=erased.height, guidance=erased.guidance, seed=seed)


class States(Protocol):
    """Inputs of linears, such as `states` returns."""

    def __getitem__(self, module: str) -> Tensor: ...


def modules_of(erasers: list[Eraser]) -> list[str]:
    """ComfyUI's linears that the erasers change."""
    return sorted({place(key, 1)[0] for eraser in erasers for key in eraser})


def states(model, contexts: list[tuple[Tensor, Tensor]], modules: list[str], rows: int, config: FusionConfig):
    """Inputs of linears while the frozen model paints prompts.

    Args:
        model: the seam, see `flux.FluxModel`.
        contexts: context [1, tokens, features] and pooled [1, features] of every prompt.
        modules: ComfyUI's names.
        rows: about how many states of each linear are kept, of all prompts together.

    Returns:
        {module: [about rows, columns]}, bfloat16, which is what Flux.1 computes them in, on the CPU.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in modules}
    rng = torch.Generator().manual_seed(config.seed)
    sigmas = sampling.shifted_sigmas(config.steps, model.mu)
    share = -(-rows // (len(contexts) * config.steps))

    def keep(name):
        def hook(_, args):
            x = args[0].flatten(0, -2)
            found[name].append(x[torch.randperm(len(x), generator=rng)[:share].to(x.device)].bfloat16().cpu())

        return hook

    handles = [model.module.get_submodule(name).register_forward_pre_hook(keep(name)) for name in modules]
    try:
        for context, pooled in contexts:
            shape = (1, model.channels, config.height // model.downscale, config.width // model.downscale)
            noise = torch.randn(shape, generator=rng)
            list(model.trajectory(model.cond(context, pooled, config.guidance), noise, sigmas))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def fused(
    erasers: list[Eraser],
    weights: list[float],
    erased: Sequence[States],
    kept: States,
    config: FusionConfig,
) -> Eraser:
    """The one LoRA of the equation above.

    Args:
        erased: for every eraser, the states of its concept; those of one linear are asked for at a time.
        kept: the states that must stay.
    """
    made: Eraser = {}
    for key in dict.fromkeys(key for eraser in erasers for key in eraser):
        columns = next(e[key].down.shape[1] for e in erasers if key in e)
        module = place(key, columns)[0]
        grams = [_gram(e[module]) for e in erased]
        inverse = _inverse(sum(grams) + config.kept_weight * _gram(kept[module]), config.ridge)
        parts = [
            Factors(weight * eraser[key].up, (eraser[key].down.double() @ gram @ inverse).float())
            for eraser, weight, gram in zip(erasers, weights, grams, strict=True)
            if key in eraser
        ]
        made[key] = stack(parts)
    return made


def _gram(rows: Tensor) -> Tensor:
    """The mean of e e^T; float64."""
    return rows.T.double() @ rows.double() / len(rows)


def _inverse(m: Tensor, ridge: float) -> Tensor:
    m = m + ridge * m.diagonal().mean() * torch.eye(len(m), dtype=m.dtype)
    return torch.cholesky_inverse(torch.linalg.cholesky(m))
