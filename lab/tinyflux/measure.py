"""Measures an eraser of TinyFlux: the same prompts and seeds before and after, read by both judges."""

import copy

from torch import Tensor, nn

from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.lora.factors import add_to_weight, by_module
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.tinyflux import GUIDANCE
from lab.tinyflux.pipeline import Pipeline, readers
from lab.tinyflux.recipe import Cell


def merged(module: nn.Module, tensors: dict[str, Tensor], strength: float = 1.0) -> nn.Module:
    """A copy of ComfyUI's Flux with an eraser added to its weights, as the stock LoraLoader adds it.

    Raises:
        ValueError: a tensor that the module has no place for.
    """
    changed = copy.deepcopy(module)
    linears = dict(changed.named_modules())
    for name, parts in by_module(read_eraser(tensors, {}, "the eraser")).items():
        if name not in linears:
            raise ValueError(f"TinyFlux has no place for factors of {name}")
        for start, factors in parts:
            add_to_weight(linears[name].weight.data, start, factors, strength)
    return changed


def read_cell(
    pipeline: Pipeline, net: nn.Module, cell: Cell, guidance: float = GUIDANCE, by_oracle: int | None = None
) -> tuple[dict[str, list[bool]], Tensor]:
    """Whether each picture of a cell shows what was asked, by each judge, and the pictures.

    Args:
        by_oracle: so many of the first pictures the oracle reads, which is slow; None is all.
    """
    pictures = pipeline.pictures(cell.prompts, cell.seeds, guidance)
    hits = {"oracle": [False] * len(pictures[:by_oracle]), "cnn": [False] * len(pictures)}
    for kind in set(cell.kinds):
        for judge, read in readers(net).items():
            # A judge reads one kind at a time, so a mixed cell is read kind by kind.
            rows = [i for i in range(len(hits[judge])) if cell.kinds[i] == kind]
            for i, reading in zip(rows, read(pictures[rows], kind) if rows else [], strict=True):
                hits[judge][i] = getattr(reading, kind) == cell.concepts[i]
    return hits, pictures


def compare(before: Pipeline, after: Pipeline, net: nn.Module, cells: dict[str, Cell]) -> tuple[dict, dict[str, tuple]]:
    """The cells of a report by each judge, {judge: {cell: {before, after, n, low, high}}}, and the picture pairs.

    `low` and `high` are the 95 % interval of `after`.
    """
    report = {"oracle": {}, "cnn": {}}
    pictures = {}
    for name, cell in cells.items():
        # The same prompts and seeds, so each picture before has its partner after.
        was, old = read_cell(before, net, cell)
        now, new = read_cell(after, net, cell)
        pictures[name] = (old, new)
        for judge in report:
            b = rate(was[judge])
            a = rate(now[judge])
            report[judge][name] = {
                "before": b["value"],
                "after": a["value"],
                "n": a["n"],
                "low": a["low"],
                "high": a["high"],
            }
    return report, pictures
