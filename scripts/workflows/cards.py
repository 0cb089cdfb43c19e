"""Cards of the template browser: each has a title and a sentence, over a picture where there is one."""

from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from scripts.workflows.template import ROOT

SIDE = 400  # px
BAND = 136  # px: the height of what is written over a picture
DARK = "#222222"
LIGHT = "#dddddd"
ACCENT = "#8ab4f8"


def corner_of_demo(row: int) -> Image.Image:
    """A quarter of the demo's picture: row 0 is the erased concept, row 1 the concepts that stay."""
    picture = Image.open(ROOT / "demo" / "before_after.png").convert("RGB")
    half = picture.height // 2
    return picture.crop((0, row * half, half, (row + 1) * half)).resize((SIDE, SIDE))


def captioned(picture: Image.Image, title: str, text: str) -> Image.Image:
    """The whole picture above a title, and a sentence on what the workflow does."""
    card = Image.new("RGB", (SIDE, SIDE), DARK)
    side = SIDE - BAND
    card.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (BAND // 2, 0))
    return with_band(card, title, text)


def with_band(card: Image.Image, title: str, text: str) -> Image.Image:
    """A card with a title and a sentence on a dark band at its foot."""
    draw = ImageDraw.Draw(card)
    top = SIDE - BAND
    draw.rectangle((0, top, SIDE, SIDE), DARK)
    draw.text((16, top + 8), title, "white", ImageFont.load_default(32))
    draw.multiline_text((16, top + 56), "\n".join(wrap(text, 36)), LIGHT, ImageFont.load_default(20), spacing=6)
    return card


def written(text: str) -> Image.Image:
    """A card that shows the first lines of a text, with room for the band."""
    picture = Image.new("RGB", (SIDE, SIDE), DARK)
    lines = [part for line in text.splitlines() for part in wrap(line, 38) or [""]]
    ImageDraw.Draw(picture).multiline_text((16, 16), "\n".join(lines[:9]), LIGHT, ImageFont.load_default(18))
    return picture


def labelled(model: str, title: str, text: str) -> Image.Image:
    """A card with the model's name, a title, and a sentence on what the workflow does."""
    picture = Image.new("RGB", (SIDE, SIDE), DARK)
    draw = ImageDraw.Draw(picture)
    draw.text((32, 48), model, ACCENT, ImageFont.load_default(26))
    draw.text((32, 110), title, "white", ImageFont.load_default(40))
    draw.multiline_text((32, 190), "\n".join(wrap(text, 26)), LIGHT, ImageFont.load_default(24), spacing=10)
    return picture
