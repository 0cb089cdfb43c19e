"""A LoRA on the linears of a loaded Flux without touching their weights: y + scale B A x on its rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..transfers import on_device
from .factors import Eraser, Factors, RowFactors, add_to_output, by_module


class LoraScale:
    """How much of an applied LoRA there is at the moment; may be changed between forwards.

    Attributes:
        value: one number for all, or [b, rank] or [b, 1]: one for every image and rank.
    """

    def __init__(self, value: float | Tensor = 1.0) -> None:
        self.value = value


def moved(eraser: Eraser, device: torch.device | str) -> Eraser:
    """The eraser with its factors on a device. From main memory each linear would copy them in every forward."""
    return {key: Factors(*(on_device(factor, device) for factor in factors)) for key, factors in eraser.items()}


@contextmanager
def lora_applied(module: nn.Module, eraser: Eraser, scale: LoraScale) -> Iterator[None]:
    """Inside, the linears of a Flux have the LoRA.

    Args:
        module: ComfyUI's Flux, or a view of it.
        eraser: the LoRA; see `moved`.
        scale: how much of it.
    """
    # Hooks and no change of a weight: the weights may be quantised, or belong to another MODEL as well.
    handles = []
    for name, parts in by_module(eraser).items():
        handles.append(module.get_submodule(name).register_forward_hook(_output_hook(parts, scale)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output_hook(parts: list[RowFactors], scale: LoraScale) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def add(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        # Read at the time of the forward, since the scale may have been changed.
        return add_to_output(args[0], y, parts, scale.value)

    return add
