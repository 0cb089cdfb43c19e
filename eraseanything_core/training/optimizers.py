"""Optimisers by name, and their learning rates over a run."""

import importlib.util
import math

import torch

LIBRARIES = {"adamw": "torch", "adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
KEPT = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}  # bytes that each keeps of a weight, once it has stepped
SCHEDULES = ("constant", "linear", "cosine")


def installed() -> list[str]:
    """The optimisers whose libraries are here."""
    return [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library)]


def new_optimizer(name: str, parameters, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimiser over the parameters.

    Raises:
        ValueError: its library is not installed.
    """
    if name not in installed():
        raise ValueError(f"the optimizer {name!r} needs the library {LIBRARIES.get(name, name)}: install it")
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as Optimizer
    elif name == "prodigy":
        from prodigyopt import Prodigy as Optimizer
    else:
        Optimizer = torch.optim.AdamW
    return Optimizer(parameters, lr=lr, weight_decay=weight_decay)


def rate_factor(step: int, steps: int, schedule: str, warmup: int) -> float:
    """What the learning rate is multiplied with: a rise over `warmup` steps, then the schedule down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[schedule]


def set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, config):
    """Sets the learning rate of a step; it depends on nothing else, so a resumed run has the same."""
    for group in optimizer.param_groups:
        group["lr"] = lr * rate_factor(step, config.steps, config.lr_schedule, config.warmup_steps)
