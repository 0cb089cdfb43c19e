"""The two factors of a LoRA, and the one place where B A is added: to a linear's output, or to its weight."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .keys import module_slice


class Factors(NamedTuple):
    """One linear's change of weight, up @ down."""

    up: Tensor  # B, [rows, rank]
    down: Tensor  # A, [rank, columns]


Eraser = dict[str, Factors]  # a linear's name in diffusers' transformer to its change, the rows as ComfyUI has them


class RowFactors(NamedTuple):
    """Factors of some rows of a ComfyUI linear."""

    start: int  # the first row
    factors: Factors


def by_module(eraser: Eraser) -> dict[str, list[RowFactors]]:
    """The factors of each ComfyUI linear, in the order of their rows."""
    modules: dict[str, list[RowFactors]] = {}
    for key, factors in eraser.items():
        module, start = module_slice(key, factors.down.shape[1])
        modules.setdefault(module, []).append(RowFactors(start, factors))
    for parts in modules.values():
        parts.sort(key=lambda part: part.start)
    return modules


def add_to_output(x: Tensor, y: Tensor, parts: Sequence[RowFactors], scale: float | Tensor = 1.0) -> Tensor:
    """y + scale B A x on the rows of each part, in x's dtype.

    Args:
        x: [..., columns], the linear's input.
        y: [..., rows], its output; it is left as it is.
        parts: in the order of their rows, which do not overlap.
        scale: one for all, or [b, rank] or [b, 1]: one for every image and rank.
    """
    # The pieces are joined anew: a write into y would break the backward of whatever made y. They are cut by one
    # split, whose backward joins them; a slice's backward is a tensor of zeros as large as y for each of them.
    pieces = list(y.split(_heights(parts, y.shape[-1]), dim=-1))
    for i, (_, (up, down)) in enumerate(parts):
        hidden = _scaled(x @ down.to(x).T, scale)
        pieces[2 * i + 1] = pieces[2 * i + 1] + hidden @ up.to(x).T
    return torch.cat(pieces, dim=-1)


def _heights(parts: Sequence[RowFactors], rows: int) -> list[int]:
    """Rows before each part and those of the part itself, in turn, and those that are left of all `rows`."""
    heights = []
    end = 0
    for start, factors in parts:
        heights += [start - end, len(factors.up)]
        end = start + len(factors.up)
    return [*heights, rows - end]


def _scaled(hidden: Tensor, scale: float | Tensor) -> Tensor:
    """Hidden states [b, rank] or [b, l, rank] times a scale; see `add_to_output`."""
    if not isinstance(scale, Tensor):
        return hidden if scale == 1.0 else hidden * scale
    scale = scale.to(hidden)
    return hidden * (scale if hidden.ndim == 2 else scale[:, None])


def add_to_weight(weight: Tensor, start: int, factors: Factors, scale: float = 1.0) -> None:
    """Adds scale B A to the rows of a weight from `start` on, in place; the sum is taken in float32."""
    up = factors.up.to(weight.device, torch.float32)
    down = factors.down.to(weight.device, torch.float32)
    rows = weight[start : start + len(up)]
    rows.copy_(rows.float() + (scale * up) @ down)


def check_finite(eraser: Eraser, name: str) -> None:
    """Raises ValueError when a LoRA holds NaN or infinite numbers, which would make every latent NaN.

    Args:
        eraser: the LoRA.
        name: what to call it in the error, with its weights or its file.
    """
    for key, (up, down) in eraser.items():
        if not (up.isfinite().all() and down.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinite numbers at {key}: use another file or smaller weights")


def check_same_model(erasers: list[Eraser], names: list[str]) -> None:
    """Raises ValueError when two LoRAs are of models of different size.

    Args:
        erasers: whatever linears they change.
        names: what to call each of them in the error.
    """
    first: dict[str, tuple[tuple[int, int], str]] = {}
    for eraser, name in zip(erasers, names, strict=True):
        for key, (up, down) in eraser.items():
            shape = (up.shape[0], down.shape[1])
            first_shape, first_name = first.setdefault(key, (shape, name))
            if shape != first_shape:
                raise ValueError(
                    f"{key} is {shape} in {name} and {first_shape} in {first_name}: they are of different models"
                )
