"""Closed-form fusion: MACE's (Lu et al. 2024, Eq. 6), as an exact LoRA.

It asks of one change dW, at every linear, that it does to the states e of concept i what eraser i does, and nothing
to the states p that must stay:

    dW = argmin  sum_i sum_e |dW e - W_i dW_i e|^2 + k sum_p |dW p|^2 + r |dW|^2 = (sum_i W_i dW_i G_i) M^-1
    G_i = sum_e e e^T    M = sum_i G_i + k sum_p p p^T + r I

With dW_i = B_i A_i that is a LoRA without any loss: B = [W_i B_i], A = [A_i G_i M^-1]. States are the inputs of the
linear, read on the loaded model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..protocols import EncodedPrompt, ErasableModel
from .factors import Eraser, Factors, by_module
from .headers import ErasedConcept
from .keys import module_slice
from .merge import all_keys, stack


@dataclass(frozen=True)
class FusionConfig:
    """Where the states are read, and how the sum is balanced.

    Attributes:
        steps: of the trajectories on which states are read.
        prompts: of each concept.
        kept_prompts: of what must stay.
        rows: states that stand for a concept, a linear; there are four times as many for what must stay.
        kept_weight: k of the equation.
        ridge: r, as a part of the mean of M's diagonal.
        width, height: of the pictures, in pixels.
        guidance: of the trajectories.
        seed: of the noise, and of the choice of states.
    """

    steps: int = 4
    prompts: int = 24
    kept_prompts: int = 96
    rows: int = 512
    kept_weight: float = 1.0
    ridge: float = 1e-2
    width: int = 512
    height: int = 512
    guidance: float = 3.5
    seed: int = 0

    @classmethod
    def for_concept(cls, erased: ErasedConcept, seed: int) -> "FusionConfig":
        """At the size and guidance at which an eraser was trained."""
        return cls(width=erased.width, height=erased.height, guidance=erased.guidance, seed=seed)


class States(Protocol):
    """Inputs of linears, [rows, columns] by ComfyUI's name of the linear, such as `read_states` returns."""

    def __getitem__(self, module: str) -> Tensor: ...


def modules_of(erasers: Sequence[Eraser]) -> list[str]:
    """ComfyUI's linears that the erasers change, sorted."""
    modules: set[str] = set()
    for eraser in erasers:
        modules |= by_module(eraser).keys()
    return sorted(modules)


def read_states(
    model: ErasableModel,
    contexts: Sequence[EncodedPrompt],
    modules: Sequence[str],
    rows: int,
    config: FusionConfig,
    adapters: bool = False,
) -> dict[str, Tensor]:
    """Inputs of linears while the model samples prompts.

    Args:
        model: whatever is attached to it for the teacher takes part.
        contexts: the encoded prompts.
        modules: ComfyUI's names of the linears.
        rows: about how many states of each linear are wanted, of all prompts together.
        config: the trajectories.
        adapters: whether what is attached for the student alone takes part as well.

    Returns:
        {module: [about `rows`, columns]}, on the CPU in bfloat16, which is what Flux.1 computes them in.
    """
    states: dict[str, list[Tensor]] = {name: [] for name in modules}
    # One generator for the noise and for the choice of states, in the order of the forwards.
    rng = torch.Generator().manual_seed(config.seed)
    forwards = len(contexts) * config.steps
    share = -(-rows // forwards)  # rounded up

    def reader(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].flatten(0, -2)  # a state a row, whatever image or token it is of
            # A share of every forward, so that all prompts and steps are heard. Drawn on the CPU, as on every device.
            chosen = torch.randperm(len(x), generator=rng)[:share].to(x.device)
            states[name].append(x[chosen].bfloat16().cpu())

        return read

    handles = []
    for name in modules:
        handles.append(model.module.get_submodule(name).register_forward_pre_hook(reader(name)))
    try:
        _sample_all(model, contexts, config, rng, adapters)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in states.items()}


def _sample_all(
    model: ErasableModel,
    contexts: Sequence[EncodedPrompt],
    config: FusionConfig,
    rng: torch.Generator,
    adapters: bool,
) -> None:
    """Walks every prompt's trajectory from noise of its own; what comes of it is not used."""
    sigmas = model.sigmas(config.steps)
    shape = (1, model.channels, config.height // model.downscale, config.width // model.downscale)
    for encoded in contexts:
        noise = torch.randn(shape, generator=rng)
        cond = model.conds([encoded], config.guidance)
        for _ in model.trajectory(cond, noise, sigmas, adapters):
            pass


def confinement(concept: Tensor, kept: Tensor, config: FusionConfig) -> Tensor:
    """G M^-1 of the equation above for one concept, [columns, columns], float64.

    Args:
        concept, kept: states of a linear, [n, columns].
        config: the balance, k and r.
    """
    gram = _gram(concept)
    return gram @ _inverse(gram + config.kept_weight * _gram(kept), config.ridge)


def fused(
    erasers: Sequence[Eraser],
    weights: Sequence[float],
    concept_states: Sequence[States],
    kept_states: States,
    config: FusionConfig,
) -> Eraser:
    """The one LoRA of the equation above.

    Args:
        erasers: the LoRAs.
        weights: W_i of each.
        concept_states: of each, the states of its concept. Those of one linear are read at a time.
        kept_states: the states that must stay.
        config: the balance, k and r.
    """
    eraser: Eraser = {}
    for key in all_keys(erasers):
        module, _ = module_slice(key, columns=0)  # only the row depends on the columns
        grams = [_gram(states[module]) for states in concept_states]
        # Of all concepts, also of those whose eraser leaves this linear alone: nothing is to change for them here.
        m = sum(grams) + config.kept_weight * _gram(kept_states[module])
        inverse = _inverse(m, config.ridge)
        parts = []
        for each, weight, gram in zip(erasers, weights, grams, strict=True):
            if key in each:
                # W_i stands in B alone, and G_i M^-1 in A: the rank stays that of the eraser.
                down = each[key].down.double() @ gram @ inverse
                parts.append(Factors(weight * each[key].up, down.float()))
        eraser[key] = stack(parts)
    return eraser


def _gram(rows: Tensor) -> Tensor:
    """The mean of e e^T over rows e, float64: the sum spans too many orders of magnitude for float32."""
    return rows.T.double() @ rows.double() / len(rows)


def _inverse(m: Tensor, ridge: float) -> Tensor:
    """(m + r I)^-1 of a symmetric matrix. There are fewer states than columns, so m alone has no inverse."""
    m = m + ridge * m.diagonal().mean() * torch.eye(len(m), dtype=m.dtype)
    return torch.cholesky_inverse(torch.linalg.cholesky(m))
