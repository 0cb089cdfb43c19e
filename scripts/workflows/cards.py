"""Cards of the template browser that are drawn without running a workflow."""

from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from scripts.workflows.template import ROOT

SIDE = 400  # px
DARK = "#222222"
LIGHT = "#dddddd"
ACCENT = "#8ab4f8"


def corner_of_demo(row: int) -> Image.Image:
    """A quarter of the demo's picture: row 0 is the erased concept, row 1 the concepts that stay."""
    picture = Image.open(ROOT / "demo" / "before_after.png").convert("RGB")
    half = picture.height // 2
    return picture.crop((0, row * half, half, (row + 1) * half)).resize((SIDE, SIDE))


def written(text: str) -> Image.Image:
    """A card that shows the first lines of a text."""
    picture = Image.new("RGB", (SIDE, SIDE), DARK)
    lines = [part for line in text.splitlines() for part in wrap(line, 38) or [""]]
    ImageDraw.Draw(picture).multiline_text((16, 16), "\n".join(lines[:17]), LIGHT, ImageFont.load_default(18))
    return picture


def labelled(model: str, title: str, text: str) -> Image.Image:
    """A card with the model's name, a title, and a sentence on what the workflow does."""
    picture = Image.new("RGB", (SIDE, SIDE), DARK)
    draw = ImageDraw.Draw(picture)
    draw.text((32, 48), model, ACCENT, ImageFont.load_default(26))
    draw.text((32, 110), title, "white", ImageFont.load_default(40))
    draw.multiline_text((32, 190), "\n".join(wrap(text, 26)), LIGHT, ImageFont.load_default(24), spacing=10)
    return picture
