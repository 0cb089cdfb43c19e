"""Draws all curves of a run into one picture: a panel for each, with its first and last value beside its name."""

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

PANEL_SIZE = (320, 120)  # pixels
MARGIN = 18
PANELS_PER_ROW = 3
MARKED_POINTS = 30  # a curve with fewer points shows each of them
TEXT_COLOUR = (40, 40, 40)
PAGE_COLOUR = (255, 255, 255)
FRAME = (210, 210, 210)
LINE = (31, 119, 180)
BOUND = (214, 39, 40)


def curve_panel(
    name: str, values: list[float], steps: Sequence[float], last: float, bound: float | None = None
) -> Image.Image:
    """One curve, scaled to its own range.

    Args:
        name: of the curve.
        values: its points; at least one.
        steps: the pair of each point.
        last: the pair at the right edge; the left edge is 0.
        bound: the value at which the run stops. It is drawn as a line and always inside the panel.
    """
    image = Image.new("RGB", PANEL_SIZE, PAGE_COLOUR)
    draw = ImageDraw.Draw(image)
    width = PANEL_SIZE[0] - 2 * MARGIN
    height = PANEL_SIZE[1] - 2 * MARGIN
    # The bound belongs to the range: a run that is far from it has to show how far.
    shown = values if bound is None else [*values, bound]
    low = min(shown)
    spread = (max(shown) - low) or 1  # a constant curve has no range of its own

    def top(value: float) -> float:
        return MARGIN + height * (1 - (value - low) / spread)

    stops = "" if bound is None else f"  (stops at {bound:g})"
    draw.text((MARGIN, 3), f"{name}  {values[0]:.4g} to {values[-1]:.4g}{stops}", fill=TEXT_COLOUR)
    draw.rectangle((MARGIN, MARGIN, MARGIN + width, MARGIN + height), outline=FRAME)
    if bound is not None:
        draw.line((MARGIN, top(bound), MARGIN + width, top(bound)), fill=BOUND)
    points = [(MARGIN + width * step / max(last, 1), top(value)) for step, value in zip(steps, values)]
    if len(points) > 1:
        draw.line(points, fill=LINE, width=2)
    if len(points) < MARKED_POINTS:
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=LINE)
    return image


def curves(
    losses: dict[str, list[float]], scores: dict[str, list[float]], bounds: dict[str, float] | None = None
) -> Image.Image:
    """All losses and all scores of a run.

    Args:
        losses: one list a loss, one entry a pair.
        scores: one list a score, and `pair`, which says after which pairs they were measured.
        bounds: a score's name to the value at which the run stops.
    """
    bounds = bounds or {}
    last = max([len(values) for values in losses.values()], default=1)
    panels = []
    for name, values in losses.items():
        if values:
            panels.append(curve_panel(name, values, range(1, len(values) + 1), last))
    for name, values in scores.items():
        # Scores are measured more rarely than losses; `pair` says where on the axis they belong.
        if name != "pair":
            panels.append(curve_panel(name, values, scores["pair"], last, bounds.get(name)))
    count = max(1, len(panels))  # an empty run is an empty panel
    columns = min(PANELS_PER_ROW, count)
    rows = -(-count // columns)  # rounded up
    sheet = Image.new("RGB", (columns * PANEL_SIZE[0], rows * PANEL_SIZE[1]), PAGE_COLOUR)
    for i, image in enumerate(panels):
        row, column = divmod(i, columns)
        sheet.paste(image, (column * PANEL_SIZE[0], row * PANEL_SIZE[1]))
    return sheet


def strip(pictures: Tensor, height: int) -> Image.Image:
    """Pictures side by side.

    Args:
        pictures: [n, h, w, 3] in [0, 1].
        height: of the result, in pixels.
    """
    pixels = (pictures.clamp(0, 1) * 255).byte()
    side_by_side = pixels.transpose(0, 1).flatten(1, 2)  # [h, n * w, 3]
    row = Image.fromarray(side_by_side.cpu().numpy())
    return row.resize((round(row.width * height / row.height), height))


def stacked(*images: Image.Image) -> Image.Image:
    """Images one below the other, aligned at the left."""
    width = max(image.width for image in images)
    height = sum(image.height for image in images)
    sheet = Image.new("RGB", (width, height), PAGE_COLOUR)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet
