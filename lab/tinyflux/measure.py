"""Measures an eraser of TinyFlux: the same prompts and seeds before and after, read by both judges."""

import copy

from torch import Tensor, nn

from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.lora.adapter import DUAL, SINGLE, slices
from eraseanything_core.tinyflux import GUIDANCE
from lab.tinyflux.generator import FLUX
from lab.tinyflux.pipeline import Pipeline, readers
from lab.tinyflux.recipe import Cell

WHOLE = {"context_embedder": "txt_in", "time_text_embed.text_embedder.linear_1": "vector_in.in_layer"}


def merged(module: nn.Module, tensors: dict[str, Tensor], strength: float = 1.0) -> nn.Module:
    """A copy of ComfyUI's Flux with an eraser added to its weights, as the stock LoraLoader adds it.

    Raises:
        KeyError: a tensor that no slice of the module has a place for.
    """
    module, left = copy.deepcopy(module), dict(tensors)
    parts = slices((*DUAL, *SINGLE), FLUX["hidden_size"], FLUX["depth"], FLUX["depth_single_blocks"], FLUX["mlp_ratio"])
    for part in parts:
        key = f"transformer.{part.key}.lora_"
        if key + "A.weight" in left:
            down, up = left.pop(key + "A.weight").float(), left.pop(key + "B.weight").float()
            rows = module.get_submodule(part.module).weight.data[part.start : part.start + part.rows]
            rows.copy_(rows.float() + strength * up @ down)
    for key, name in WHOLE.items():
        if f"transformer.{key}.lora_A.weight" in left:
            down, up = (left.pop(f"transformer.{key}.lora_{x}.weight").float() for x in "AB")
            weight = module.get_submodule(name).weight.data
            weight.copy_(weight.float() + strength * up @ down)
    if left:
        raise KeyError(f"no place in TinyFlux for {sorted(left)[0]}")
    return module


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
            rows = [i for i in range(len(hits[judge])) if cell.kinds[i] == kind]
            for i, reading in zip(rows, read(pictures[rows], kind) if rows else [], strict=True):
                hits[judge][i] = getattr(reading, kind) == cell.concepts[i]
    return hits, pictures


def compare(before: Pipeline, after: Pipeline, net: nn.Module, cells: dict[str, Cell]) -> tuple[dict, dict[str, tuple]]:
    """The cells of a report by each judge, {judge: {cell: {before, after, n, low, high}}}, and the picture pairs.

    `low` and `high` are the 95 % interval of `after`.
    """
    found, pictures = {"oracle": {}, "cnn": {}}, {}
    for name, cell in cells.items():
        was, old = read_cell(before, net, cell)
        now, new = read_cell(after, net, cell)
        pictures[name] = (old, new)
        for judge in found:
            b, a = rate(was[judge]), rate(now[judge])
            found[judge][name] = {
                "before": b["value"],
                "after": a["value"],
                "n": a["n"],
                "low": a["low"],
                "high": a["high"],
            }
    return found, pictures
