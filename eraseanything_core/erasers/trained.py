"""What the erasers with losses of their own share: their loop, and what they hand back."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..protocols import ErasableModel, TextEncoder
from ..training.config import EraseConfig
from ..training.objective import Losses, record_losses
from ..training.optimizers import lora_optimizer, optimizer_step
from ..training.plan import Plan, prepare

StepLosses = tuple[Losses, Tensor]  # the losses by name, and the scalar that is backpropagated


@dataclass(frozen=True)
class TrainedEraser:
    """An eraser that was trained.

    Attributes:
        lora: tensors under their file keys, float32, on the CPU.
        losses: one list a loss, and `loss` for their weighted sum; one entry a step.
        seconds: wall time of the loop.
    """

    lora: dict[str, Tensor]
    losses: dict[str, list[float]]
    seconds: float


class ErasureMethod(Protocol):
    """The losses of a method on one model: `concept_ablation.Ablation` and `eap.AdversarialPreservation`."""

    def losses(self, step: int) -> StepLosses:
        """The losses of a step; called with the LoRA attached."""


def train_slices(
    method: Callable[[ErasableModel, Plan], ErasureMethod],
    model: ErasableModel,
    text: TextEncoder,
    config: EraseConfig,
) -> TrainedEraser:
    """Trains the slices of `model` with one optimizer and one loss a step.

    Args:
        method: makes the method's losses from the model and the plan; its class is one.
        model: student and teacher; the LoRA is attached here.
        text: the model's text encoder.
        config: what is erased, and how long it is trained.

    Raises:
        ValueError: settings that cannot work, see `training.plan.prepare`.
        FloatingPointError: a loss is NaN or infinite.
    """
    plan = prepare(config, text)
    config = plan.config
    losses_of_method = method(model, plan)
    history: dict[str, list[float]] = {}
    start = time.monotonic()
    # The trainer's own seeding: equal seeds give every method the same first A, and B is zero.
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    # One optimizer, at the erasing rate. Only EraseAnything alternates between two levels.
    optimizer = lora_optimizer(lora, config.lr_low, config)
    for step in range(config.steps):
        step_losses, total = losses_of_method.losses(step)
        optimizer_step(optimizer, lora, total, config)
        record_losses(history, step_losses, total, step)
    return TrainedEraser(lora.tensors(torch.float32), history, time.monotonic() - start)
