"""Pictures of a report, as images [1, h, w, 3] in [0, 1]: bars, Pareto, interference, and paired grids."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from .report import Rate, Report

BEFORE, AFTER = "#9aa5b1", "#1f6feb"


def _drawn(figure: Figure) -> Tensor:
    """What a figure looks like."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[None, ..., :3].copy()).float() / 255


def _reach(rates: Sequence[Rate]) -> list[list[float]]:
    """Error bars of rates: distances below and above."""
    return [[r.value - r.low for r in rates], [r.high - r.value for r in rates]]


def png(picture: Tensor) -> bytes:
    """[1, h, w, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray((picture[0] * 255).round().byte().numpy()).save(file, format="PNG")
    return file.getvalue()


def bars(report: Report) -> Tensor:
    """Every cell before and after, with 95 % intervals."""
    figure = Figure(figsize=(1.5 + 1.7 * len(report.cells), 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for shift, colour, name in ((-0.2, BEFORE, "before"), (0.2, AFTER, "after")):
        rates = [getattr(cell, name) for cell in report.cells.values()]
        places = [i + shift for i in range(len(rates))]
        axes.bar(places, [r.value for r in rates], 0.38, yerr=_reach(rates), color=colour, label=name, capsize=3)
    axes.set_xticks(range(len(report.cells)), list(report.cells))
    axes.set(ylim=(0, 1), ylabel="pictures that show what was asked", title=f"{report.concept}: {report.judge['name']}")
    figure.legend(loc="outside lower center", ncols=2)
    return _drawn(figure)


def pareto(points: Sequence[Mapping]) -> Tensor:
    """Erasing against keeping over the strength; points as `comparison.pareto` gives them."""
    figure = Figure(figsize=(5, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for concept in dict.fromkeys(point["concept"] for point in points):
        own = [point for point in points if point["concept"] == concept]
        erased, kept = [p["erased"] for p in own], [p["kept"] for p in own]
        values = [r.value for r in erased], [r.value for r in kept]
        axes.errorbar(*values, xerr=_reach(erased), yerr=_reach(kept), marker="o", capsize=2, label=concept)
        for point, x, y in zip(own, *values):
            axes.annotate(f"{point['strength']:g}", (x, y), xytext=(4, 4), textcoords="offset points")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="erased: 1 - acc_e", ylabel="kept: acc_ir", title="by strength")
    axes.legend()
    return _drawn(figure)


def heat_map(matrix: Mapping) -> Tensor:
    """What erasing one concept (row) left of every other (column); `comparison.interference`."""
    cells = np.array([[np.nan if v is None else v for v in row] for row in matrix["cells"]], float)
    height, width = cells.shape
    figure = Figure(figsize=(2.5 + 0.6 * width, 2 + 0.5 * height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(width), matrix["measured"], rotation=45, ha="right")
    axes.set_yticks(range(height), matrix["erased"])
    axes.set(xlabel="asked for", ylabel="erased")
    for (row, column), value in np.ndenumerate(cells):
        if not np.isnan(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="w" if value < 0.6 else "k")
    figure.colorbar(image, label="pictures that show it")
    return _drawn(figure)


def grid(before: Tensor, after: Tensor, columns: int = 8, gap: int = 4, margin: int = 60) -> Tensor:
    """Pairs of rows: the pictures before, and below them those of the same prompts and seeds after.

    Args:
        before, after: [n, h, w, 3], the i-th ones of the same prompt and seed.
        columns: pictures a row.

    Raises:
        ValueError: the two differ in number or size.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"{tuple(before.shape)} before and {tuple(after.shape)} after: give pictures of the same prompts and seeds"
        )
    rows = []
    for start in range(0, len(before), columns):
        for name, pictures in (("before", before), ("after", after)):
            row = [F.pad(p, (0, 0, gap, 0, gap, 0), value=1.0) for p in pictures[start : start + columns].cpu().float()]
            row += [torch.ones_like(row[0])] * (min(columns, len(before)) - len(row))
            rows.append(torch.cat([_label(name, row[0].shape[0], margin), *row], dim=1))
        rows.append(torch.ones(gap, *rows[-1].shape[1:]))
    return torch.cat(rows)[None]


def _label(text: str, height: int, width: int) -> Tensor:
    """Black text on white, [height, width, 3]."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((4, height // 2), text, fill="black", anchor="lm")
    return torch.from_numpy(np.asarray(image).copy()).float() / 255
