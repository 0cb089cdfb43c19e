"""Optimizers by name, one step with them, their learning rates over a run, and the memory that they take."""

import importlib.util
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..protocols import TrainableLora
from ..quoting import quoted
from . import loss_scale
from .config import EraseConfig

LIBRARIES = {"adamw": "torch", "adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}  # bytes of optimizer state a weight, after its first step
FACTOR_BYTES = 12  # bytes a LoRA weight: itself, its gradient and its copy of the last whole pair, all float32
SCHEDULES = ("constant", "linear", "cosine", "wsd")


def installed() -> list[str]:
    """The optimizers whose libraries are installed."""
    return [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library)]


def new_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer over the parameters.

    Args:
        name: one of `LIBRARIES`.
        parameters: what it updates.
        lr: learning rate.
        weight_decay: decoupled, as in AdamW.

    Raises:
        ValueError: its library is not installed.
    """
    if name not in installed():
        raise ValueError(f"the optimizer {quoted(name)} needs the library {LIBRARIES.get(name, name)}: install it")
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit
    elif name == "prodigy":
        from prodigyopt import Prodigy

        optimizer = Prodigy
    return optimizer(parameters, lr=lr, weight_decay=weight_decay)  # type: ignore[call-arg]


def lora_optimizer(lora: TrainableLora, lr: float, config: EraseConfig) -> torch.optim.Optimizer:
    """The configured optimizer over a LoRA's factors."""
    return new_optimizer(config.optimizer, lora.parameters(), lr, config.weight_decay)


def optimizer_step(
    optimizer: torch.optim.Optimizer, lora: TrainableLora, loss: Tensor | Iterable[Tensor], config: EraseConfig
) -> None:
    """One clipped step on a loss, or on the sum of several losses.

    A step whose gradients overflow in float16 moves nothing; see `loss_scale`.

    Args:
        optimizer: of the LoRA's factors, with the scale of its losses, if it has one.
        lora: the factors, whose gradients are clipped together to `max_grad_norm`.
        loss: a scalar, or scalars whose graphs are built one after the other.
        config: the run's settings.
    """
    backpropagate(optimizer, lora, [loss] if isinstance(loss, Tensor) else loss)
    clipped_step(optimizer, lora, config)


def backpropagate(optimizer: torch.optim.Optimizer, lora: TrainableLora, losses: Iterable[Tensor]) -> None:
    """Leaves the gradient of a sum of losses in the factors, and that of nothing before.

    Args:
        optimizer: of the factors, with the scale of the losses, if it has one.
        lora: the factors.
        losses: scalars whose graphs are built one after the other.
    """
    optimizer.zero_grad()
    # Each loss is backpropagated before the generator builds the next one, so only one graph is in memory.
    for part in losses:
        (part * loss_scale.scale_of(optimizer)).backward()
    loss_scale.unscale(optimizer, lora.parameters())


def clipped_step(optimizer: torch.optim.Optimizer, lora: TrainableLora, config: EraseConfig) -> None:
    """One step along the gradients that the factors hold; see `optimizer_step`."""
    # One norm over all factors: clipping each by itself would turn the direction of the step.
    norm = nn.utils.clip_grad_norm_(lora.parameters(), config.max_grad_norm)
    if loss_scale.may_step(optimizer, norm):
        optimizer.step()


def rate_factor(step: int, steps: int, schedule: str, warmup: int) -> float:
    """The factor of the learning rate: a linear rise over the warm-up, then the schedule.

    "linear" and "cosine" fall from there to 0; "wsd" (warm-up, stable, decay) stays for half of the run and then falls
    linearly.

    Args:
        step: number of the pair, from 0.
        steps: pairs of the whole run.
        schedule: one of `SCHEDULES`.
        warmup: pairs of the rise.
    """
    if step < warmup:
        return (step + 1) / warmup
    # From 1 after the warm-up down to nearly 0 at the last pair.
    remaining = 1 - (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return remaining
    if schedule == "cosine":
        return (1 - math.cos(math.pi * remaining)) / 2
    if schedule == "wsd":
        return min(1.0, 2 * remaining)
    return 1.0


def set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, config: EraseConfig) -> None:
    """Sets the learning rate of a pair. It depends on the pair's number alone, so a resumed run has the same."""
    for group in optimizer.param_groups:
        group["lr"] = lr * rate_factor(step, config.steps, config.lr_schedule, config.warmup_steps)


def trained_bytes(config: EraseConfig, weights: int) -> int:
    """Bytes of a LoRA with its gradient, its optimizers and the copies of the last whole pair.

    Args:
        config: the run's settings.
        weights: how many weights the LoRA has.
    """
    # Lower and upper level each have an optimizer with a state of its own, unless one optimizer takes both.
    optimizers = 2 if config.alternate else 1
    # Twice: the state itself, and its copy of the last whole pair.
    state = 2 * optimizers * STATE_BYTES[config.optimizer]
    return weights * (FACTOR_BYTES + state)
