"""What the erasers with a loop of their own share: how they are called, their loop, and what they hand back."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..protocols import ErasableModel, TextEncoder
from ..training.config import EraseConfig
from ..training.objective import Losses, record_losses
from ..training.optimizers import lora_optimizer, optimizer_step

Config = TypeVar("Config", contravariant=True)
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


class ErasureMethod(Protocol[Config]):
    """A method with a loop of its own. Its module is one: `concept_ablation`, `eap` and `published_code`."""

    def train(self, model: ErasableModel, text: TextEncoder, config: Config) -> TrainedEraser:
        """Trains the slices of `model`; raises FloatingPointError when a loss is NaN or infinite."""


def train_slices(
    model: ErasableModel, config: EraseConfig, losses_of_step: Callable[[int], StepLosses]
) -> TrainedEraser:
    """The loop of a method with one optimizer and one loss a step.

    Args:
        model: student and teacher; the LoRA is attached here.
        config: as `training.plan.prepare` has checked it.
        losses_of_step: a step's number to its losses. It is called with the LoRA attached.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    history: dict[str, list[float]] = {}
    start = time.monotonic()
    # The trainer's own seeding: equal seeds give every method the same first A, and B is zero.
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    # One optimizer, at the erasing rate. Only EraseAnything alternates between two levels.
    optimizer = lora_optimizer(lora, config.lr_low, config)
    for step in range(config.steps):
        step_losses, total = losses_of_step(step)
        optimizer_step(optimizer, lora, total, config)
        record_losses(history, step_losses, total, step)
    return TrainedEraser(lora.tensors(torch.float32), history, time.monotonic() - start)
