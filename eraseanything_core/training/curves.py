"""A picture of all curves of a run: one panel a curve, its first and last value beside its name."""

from PIL import Image, ImageDraw
from torch import Tensor

PANEL, MARGIN = (320, 120), 18
INK, PAPER, LINE, BOUND = (40, 40, 40), (255, 255, 255), (31, 119, 180), (214, 39, 40)


def panel(name: str, values: list[float], places: list[float], last: float, bound: float | None = None) -> Image.Image:
    """One curve over the pairs from 0 to `last`, scaled to its own range and that of the value at which a run stops."""
    image = Image.new("RGB", PANEL, PAPER)
    draw = ImageDraw.Draw(image)
    width, height = PANEL[0] - 2 * MARGIN, PANEL[1] - 2 * MARGIN
    shown, stop = (values, "") if bound is None else ([*values, bound], f"  (stops at {bound:g})")
    low, high = min(shown), max(shown)
    tops = [MARGIN + height * (1 - (value - low) / ((high - low) or 1)) for value in shown]
    draw.text((MARGIN, 3), f"{name}  {values[0]:.4g} to {values[-1]:.4g}{stop}", fill=INK)
    draw.rectangle((MARGIN, MARGIN, MARGIN + width, MARGIN + height), outline=(210, 210, 210))
    if bound is not None:
        draw.line((MARGIN, tops[-1], MARGIN + width, tops[-1]), fill=BOUND)
    points = [(MARGIN + width * place / max(last, 1), top) for place, top in zip(places, tops)]
    if len(points) > 1:
        draw.line(points, fill=LINE, width=2)
    for x, y in points if len(points) < 30 else ():
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=LINE)
    return image


def curves(
    losses: dict[str, list[float]], seen: dict[str, list[float]], bounds: dict[str, float] | None = None
) -> Image.Image:
    """All losses, one entry a pair, and all looks from outside, `seen["pair"]` telling when; three in a row.

    `bounds` are the scores at which the run is over, by curve.
    """
    last = max([len(values) for values in losses.values()], default=1)
    panels = [panel(name, values, list(range(1, len(values) + 1)), last) for name, values in losses.items() if values]
    looks, bounds = {name: values for name, values in seen.items() if name != "pair"}, bounds or {}
    panels += [panel(name, values, seen["pair"], last, bounds.get(name)) for name, values in looks.items()]
    columns = min(3, max(1, len(panels)))
    sheet = Image.new("RGB", (columns * PANEL[0], -(-max(1, len(panels)) // columns) * PANEL[1]), PAPER)
    for i, image in enumerate(panels):
        sheet.paste(image, (i % columns * PANEL[0], i // columns * PANEL[1]))
    return sheet


def strip(pictures: Tensor, height: int) -> Image.Image:
    """Pictures [n, h, w, 3] in [0, 1] beside each other, scaled to a height in pixels."""
    row = Image.fromarray((pictures.clamp(0, 1) * 255).byte().transpose(0, 1).flatten(1, 2).cpu().numpy())
    return row.resize((round(row.width * height / row.height), height))


def stacked(*images: Image.Image) -> Image.Image:
    """Images under each other."""
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet
