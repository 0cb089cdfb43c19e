"""Draws the labelled picture of the README from the demo's picture: `python -m scripts.readme_picture`.

It needs Pillow only. Run it after `python scripts/dev.py demo`, which writes demo/before_after.png.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "demo" / "before_after.png"
TARGET = ROOT / "docs" / "assets" / "before_after.png"

# The demo's cells in the order in which it draws them; each has a row before and a row after.
LABELS = ("the erased concept", "by a new synonym", "other objects", "other concepts")
CELL = 98  # px of one picture and the line beside it
COLUMNS = 5  # pictures of each row
MARGIN = 64  # px for "before" and "after"
TITLE = 30  # px
GAP = 24  # px between two cells
CELL_SIZE = (MARGIN + COLUMNS * CELL, TITLE + 2 * CELL)


def labelled_cell(grid: Image.Image, number: int) -> Image.Image:
    """The first pictures of one cell of the demo, with its title and "before" and "after"."""
    picture = Image.new("RGB", CELL_SIZE, "white")
    top = 2 * number * CELL
    picture.paste(grid.crop((0, top, COLUMNS * CELL, top + 2 * CELL)), (MARGIN, TITLE))
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, TITLE // 2), LABELS[number], "black", ImageFont.load_default(19), anchor="lm")
    for row, label in enumerate(("before", "after")):
        middle = TITLE + row * CELL + CELL // 2
        draw.text((MARGIN - 8, middle), label, "#555555", ImageFont.load_default(16), anchor="rm")
    return picture


def labelled(grid: Image.Image) -> Image.Image:
    """All cells, two beside each other."""
    width, height = CELL_SIZE
    picture = Image.new("RGB", (2 * width + GAP, 2 * height + GAP), "white")
    for number in range(len(LABELS)):
        row, column = divmod(number, 2)
        picture.paste(labelled_cell(grid, number), (column * (width + GAP), row * (height + GAP)))
    return picture


def main() -> None:
    with Image.open(SOURCE) as grid:
        picture = labelled(grid.convert("RGB"))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    # A palette is enough for flat shapes and keeps the registry package small.
    picture.quantize(256).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
