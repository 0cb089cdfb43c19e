"""Pictures of a report, as images [1, h, w, 3] in [0, 1]: bars, Pareto, interference, and paired grids.

The charts need matplotlib, which is optional: it is imported where something is drawn.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..packages import require_package
from ..quoting import escaped
from .comparison import Interference, ParetoPoint
from .report import Rate, Report

GREY = "#9aa5b1"  # before erasing
BLUE = "#1f6feb"  # after erasing
DPI = 120
MAX_LABEL = 60  # characters; a longer title or tick would leave no room for the chart


def _new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches; ValueError says what to install where matplotlib is missing.

    `matplotlib.figure.Figure` is used instead of pyplot, which keeps every figure in memory and looks for a display.
    """
    require_package("matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _rendered(figure: Any) -> Tensor:
    """A figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba())
    # Copied, because the buffer belongs to the canvas.
    return torch.from_numpy(rgba[None, ..., :3].copy()).float() / 255


def label_text(text: str) -> str:
    """A text of the user's, so that matplotlib draws it letter by letter.

    It takes what stands between two dollars for a formula, and hides entries of a legend that begin with an underscore.
    """
    label = escaped(text, MAX_LABEL).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _values(rates: Sequence[Rate]) -> list[float]:
    return [rate.numbers()[1] for rate in rates]


def _error_bars(rates: Sequence[Rate]) -> list[list[float]]:
    """Error bars as matplotlib takes them: distances below and above the values."""
    below = []
    above = []
    for rate in rates:
        low, value, high = rate.numbers()
        below.append(value - low)
        above.append(high - value)
    return [below, above]


def png(picture: Tensor) -> bytes:
    """A picture [1, h, w, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray((picture[0] * 255).round().byte().numpy()).save(file, format="PNG")
    return file.getvalue()


def cells_chart(report: Report) -> Tensor:
    """Every cell before and after, with 95 % intervals; ValueError where matplotlib is missing."""
    figure = _new_figure(1.5 + 1.7 * len(report.cells), 4)
    axes = figure.add_subplot()
    cells = report.cells.values()
    series = (
        (-0.2, GREY, "before", [cell.before for cell in cells]),
        (0.2, BLUE, "after", [cell.after for cell in cells]),
    )
    # Each cell has its tick between its two bars.
    for shift, colour, name, rates in series:
        positions = np.arange(len(rates)) + shift
        axes.bar(positions, _values(rates), 0.38, yerr=_error_bars(rates), color=colour, label=name, capsize=3)
    axes.set_xticks(range(len(report.cells)), list(report.cells))
    # The same scale on every chart, so that two reports can be compared by eye.
    title = label_text(f"{report.concept}: {report.judge['name']}")
    axes.set(ylim=(0, 1), ylabel="pictures that show what was asked", title=title)
    figure.legend(loc="outside lower center", ncols=2)
    return _rendered(figure)


def pareto_chart(points: Sequence[ParetoPoint]) -> Tensor:
    """Erasing against keeping over the strength; ValueError where matplotlib is missing.

    Args:
        points: as `comparison.pareto_points` gives them.
    """
    figure = _new_figure(5, 5)
    axes = figure.add_subplot()
    by_concept: dict[str, list[ParetoPoint]] = {}
    for point in points:
        by_concept.setdefault(point["concept"], []).append(point)
    for concept, own in by_concept.items():
        erased = [point["erased"] for point in own]
        preserved = [point["kept"] for point in own]
        xs = _values(erased)
        ys = _values(preserved)
        xerr = _error_bars(erased)
        yerr = _error_bars(preserved)
        axes.errorbar(xs, ys, xerr=xerr, yerr=yerr, marker="o", capsize=2, label=label_text(concept))
        for point, x, y in zip(own, xs, ys):
            axes.annotate(f"{point['strength']:g}", (x, y), xytext=(4, 4), textcoords="offset points")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="erased: 1 - acc_e", ylabel="kept: acc_ir", title="by strength")
    axes.legend()
    return _rendered(figure)


def interference_chart(matrix: Interference) -> Tensor:
    """What erasing one concept (row) left of every other (column); ValueError where matplotlib is missing.

    Args:
        matrix: as `comparison.interference` gives it.
    """
    cells = np.array(matrix["cells"], float)  # None, what was not measured, becomes NaN and stays white
    height, width = cells.shape
    figure = _new_figure(2.5 + 0.6 * width, 2 + 0.5 * height)
    axes = figure.add_subplot()
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(width), list(map(label_text, matrix["measured"])), rotation=45, ha="right")
    axes.set_yticks(range(height), list(map(label_text, matrix["erased"])))
    axes.set(xlabel="asked for", ylabel="erased")
    for (row, column), value in np.ndenumerate(cells):
        if not np.isnan(value):
            colour = "w" if value < 0.6 else "k"  # readable on viridis, which ends in yellow
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    figure.colorbar(image, label="pictures that show it")
    return _rendered(figure)


def grid(before: Tensor, after: Tensor, columns: int = 8, gap: int = 4, margin: int = 60) -> Tensor:
    """Pairs of rows: the pictures before, and below them those of the same prompts and seeds after.

    Args:
        before, after: [n, h, w, 3], the i-th ones of the same prompt and seed.
        columns: pictures a row.
        gap: white pixels between pictures.
        margin: pixels left of a row, for its title.

    Raises:
        ValueError: the two differ in number or size.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"{tuple(before.shape)} before and {tuple(after.shape)} after: give pictures of the same prompts and seeds"
        )
    columns = min(columns, len(before))
    rows = []
    for start in range(0, len(before), columns):
        for title, pictures in (("before", before), ("after", after)):
            rows.append(_grid_row(title, pictures[start : start + columns], columns, gap, margin))
        rows.append(torch.ones(gap, *rows[-1].shape[1:]))
    return torch.cat(rows)[None]


def _grid_row(title: str, pictures: Tensor, columns: int, gap: int, margin: int) -> Tensor:
    """A title and pictures side by side, [h + gap, width, 3]; a short row is filled up with white."""
    # `pad` counts from the last dimension: none of the channels, the gap on the right, the gap below.
    tiles = [F.pad(picture, (0, 0, gap, 0, gap, 0), value=1.0) for picture in pictures.cpu().float()]
    blank = torch.ones_like(tiles[0])
    tiles += [blank] * (columns - len(tiles))
    return torch.cat([_title(title, len(blank), margin), *tiles], dim=1)


def _title(text: str, height: int, width: int) -> Tensor:
    """Black text on white, [height, width, 3]."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((4, height // 2), text, fill="black", anchor="lm")
    return torch.from_numpy(np.asarray(image).copy()).float() / 255
