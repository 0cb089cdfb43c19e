"""Draws what a run shows while it trains: its curves, and small pictures with a label over each.

A node of ComfyUI is 340 px wide and shows a picture at about half of the sizes here, so all text is twice as large as
it has to be.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SHEET_WIDTH = 660  # pixels of everything that is drawn
PANELS_PER_ROW = 3
PANEL_SIZE = (SHEET_WIDTH // PANELS_PER_ROW, 150)  # pixels
MARGIN = 8  # px at the left and right of a panel
LEFT = 64  # px: right of the numbers of the vertical axis
RIGHT = PANEL_SIZE[0] - MARGIN
TOP = 50  # px: under the name and the last value of a curve
BOTTOM = PANEL_SIZE[1] - 24  # px: above the numbers of its axis
LABEL_HEIGHT = 30  # px over a picture, where the sheet is as wide as above
GAP = 6  # px between pictures
TEXT_SIZE = 20
AXIS_SIZE = 16
MARKED_POINTS = 30  # a curve with fewer points shows each of them
TEXT_COLOUR = (40, 40, 40)
AXIS_COLOUR = (110, 110, 110)
PAGE_COLOUR = (255, 255, 255)
FRAME = (210, 210, 210)
LINE = (31, 119, 180)
BOUND = (214, 39, 40)
NAMES = {
    "esd": "erasing loss",
    "attn": "attention loss",
    "retain": "preserving loss",
    "rsc": "contrastive loss",
    "loss": "weighted loss",
    "shown": "concept shown",
    "kept": "neighbours kept",
    "drift": "drift",
    "reading": "concept reading",
}  # by loss or score, short enough for a panel


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow brings along, so that no system has to have one."""
    return ImageFont.load_default(size)


def curve_panel(
    name: str, values: list[float], steps: Sequence[float], last: int, bound: float | None = None
) -> Image.Image:
    """One curve, scaled to its own range, with its last value and the numbers of its axes.

    Args:
        name: of the loss or score.
        values: its points; at least one.
        steps: the pair of each point.
        last: the pair at the right edge; the left edge is 0.
        bound: the value at which the run stops. It is drawn as a line and always inside the panel.
    """
    image = Image.new("RGB", PANEL_SIZE, PAGE_COLOUR)
    draw = ImageDraw.Draw(image)
    # The bound belongs to the range: a run that is far from it has to show how far.
    shown = values if bound is None else [*values, bound]
    low = min(shown)
    high = max(shown)
    spread = (high - low) or 1  # a constant curve has no range of its own

    def y_of(value: float) -> float:
        return TOP + (BOTTOM - TOP) * (1 - (value - low) / spread)

    draw.rectangle((LEFT, TOP, RIGHT, BOTTOM), outline=FRAME)
    if bound is not None:
        draw.line((LEFT, y_of(bound), RIGHT, y_of(bound)), fill=BOUND, width=2)
    points = [(LEFT + (RIGHT - LEFT) * step / max(last, 1), y_of(value)) for step, value in zip(steps, values)]
    if len(points) > 1:
        draw.line(points, fill=LINE, width=3)
    if len(points) < MARKED_POINTS:
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=LINE)
    _write_numbers(draw, name, values, (low, high), last, bound)
    return image


def _write_numbers(
    draw: ImageDraw.ImageDraw,
    name: str,
    values: list[float],
    value_range: tuple[float, float],
    last: int,
    bound: float | None,
) -> None:
    """The name of a panel, its first and last value, the pairs at its edges, and its range at the left."""
    low, high = value_range
    stops = "" if bound is None else f", stop {bound:.2g}"
    draw.text((MARGIN, 2), NAMES.get(name, name), TEXT_COLOUR, font(TEXT_SIZE))
    draw.text((MARGIN, 27), f"{values[0]:.3g} to {values[-1]:.3g}{stops}", TEXT_COLOUR, font(AXIS_SIZE))
    draw.text((LEFT, BOTTOM + 3), "0", AXIS_COLOUR, font(AXIS_SIZE))
    draw.text((RIGHT, BOTTOM + 3), f"step {last}", AXIS_COLOUR, font(AXIS_SIZE), anchor="ra")
    draw.text((LEFT - 4, TOP), f"{high:.2g}", AXIS_COLOUR, font(AXIS_SIZE), anchor="ra")
    if low != high:
        draw.text((LEFT - 4, BOTTOM), f"{low:.2g}", AXIS_COLOUR, font(AXIS_SIZE), anchor="rd")


def curves(
    losses: dict[str, list[float]], scores: dict[str, list[float]], bounds: dict[str, float] | None = None
) -> Image.Image:
    """The losses and the scores of a run; where there are scores, of the losses only the weighted one.

    Args:
        losses: one list a loss, one entry a pair.
        scores: one list a score, and `pair`, which says after which pairs they were measured.
        bounds: a score's name to the value at which the run stops.
    """
    bounds = bounds or {}
    last = max([len(values) for values in losses.values()], default=1)
    panels = []
    for name, values in losses.items():
        # What the run is about comes first, and a node has room for two rows.
        if values and (name == "loss" or not scores):
            panels.append(curve_panel(name, values, range(1, len(values) + 1), last))
    for name, values in scores.items():
        # Scores are measured more rarely than losses; `pair` says where on the axis they belong.
        if name != "pair":
            panels.append(curve_panel(name, values, scores["pair"], last, bounds.get(name)))
    rows = max(1, -(-len(panels) // PANELS_PER_ROW))  # rounded up; an empty run is an empty row
    sheet = Image.new("RGB", (SHEET_WIDTH, rows * PANEL_SIZE[1]), PAGE_COLOUR)
    for i, image in enumerate(panels):
        row, column = divmod(i, PANELS_PER_ROW)
        sheet.paste(image, (column * PANEL_SIZE[0], row * PANEL_SIZE[1]))
    return sheet


def strip(pictures: Tensor, labels: Sequence[str], width: int = SHEET_WIDTH) -> Image.Image:
    """Pictures side by side with a label over each.

    Args:
        pictures: [n, h, w, 3] in [0, 1].
        labels: one a picture.
        width: of the result, in pixels. Text grows with it, for a node shows every picture at the node's own width.
    """
    count = len(pictures)
    cell = (width - GAP * (count - 1)) // count
    height = round(cell * pictures.shape[1] / pictures.shape[2])
    scale = width / SHEET_WIDTH
    top = round(LABEL_HEIGHT * scale)
    text_font = font(round(TEXT_SIZE * scale))
    row = Image.new("RGB", (width, top + height), PAGE_COLOUR)
    draw = ImageDraw.Draw(row)
    pixels = (pictures.clamp(0, 1) * 255).round().byte().cpu().numpy()
    for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        left = i * (cell + GAP)
        row.paste(Image.fromarray(picture).resize((cell, height)), (left, top))
        draw.text((left + cell / 2, top / 2), label, TEXT_COLOUR, text_font, anchor="mm")
    return row


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
