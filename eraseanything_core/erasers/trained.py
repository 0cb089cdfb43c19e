"""What a method hands back that is trained by a loop of its own."""

from dataclasses import dataclass

from torch import Tensor


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
