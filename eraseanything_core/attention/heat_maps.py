"""Attention as pictures: heat maps over an image with a legend, and bars of the tokens' shares."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Viridis at nine even points; its lightness rises evenly, so that it also reads without colour.
VIRIDIS = torch.tensor(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
        (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
    ]
) / 255.0  # fmt: skip
PANEL = 512  # px: shorter side of a panel, so that it reads at the size of a node
STRIP = 64  # px: height of the legend
OPACITY = 0.6  # of the colours over the image
INK, PAPER, BAR = (20, 20, 20), (255, 255, 255), (44, 113, 142)


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [..., rows, columns] of image tokens at the size of the picture, bilinear."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, (height, width), mode="bilinear").reshape(*maps.shape[:-2], height, width)


def unit(maps: Tensor) -> Tensor:
    """Each map [..., h, w] stretched to [0, 1]; a flat one is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def masks(maps: Tensor, threshold: float) -> Tensor:
    """Maps [..., h, w] as masks: soft ones at threshold 0, else 1 where the stretched map reaches it."""
    stretched = unit(maps)
    return (stretched >= threshold).float() if threshold > 0 else stretched


def coloured(values: Tensor) -> Tensor:
    """[..., h, w] in [0, 1] as colours [..., h, w, 3]."""
    place = values.clamp(0, 1) * (len(VIRIDIS) - 1)
    low = place.floor().long().clamp(max=len(VIRIDIS) - 2)
    return torch.lerp(VIRIDIS[low], VIRIDIS[low + 1], (place - low)[..., None])


def panel(image: Tensor | None, found: Tensor, low: float, high: float) -> Image.Image:
    """One map [rows, columns] in colour, over an image [h, w, 3] if there is one; `low` and `high` end the scale."""
    ratio = found.shape[0] / found.shape[1] if image is None else image.shape[0] / image.shape[1]
    height, width = (round(PANEL * max(1, r)) for r in (ratio, 1 / ratio))
    shown = coloured((resized(found, height, width) - low) / max(high - low, 1e-12))
    if image is not None:
        under = F.interpolate(image.movedim(-1, 0)[None].float(), (height, width), mode="nearest")[0].movedim(0, -1)
        shown = torch.lerp(under, shown, OPACITY)
    return Image.fromarray((shown.clamp(0, 1) * 255).round().byte().numpy())


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def legend(width: int, title: str, low: float, high: float) -> Image.Image:
    """A strip with the colours, the values at their ends, and what is shown."""
    strip = Image.new("RGB", (width, STRIP), PAPER)
    draw = ImageDraw.Draw(strip)
    scale = coloured(torch.linspace(0, 1, width - 16)[None]).expand(14, -1, -1)
    strip.paste(Image.fromarray((scale * 255).round().byte().numpy()), (8, 30))
    draw.text((8, 4), title, INK, font(18))
    draw.text((8, 45), f"{low:.2%}", INK, font(14))
    draw.text((width - 8, 45), f"{high:.2%} of a query's attention", INK, font(14), anchor="ra")
    return strip


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture with a line of text above it."""
    whole = Image.new("RGB", (picture.width, picture.height + 34), PAPER)
    whole.paste(picture, (0, 34))
    ImageDraw.Draw(whole).text((6, 4), title, INK, font(22))
    return whole


def tiled(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in a square grid."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    whole = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), PAPER)
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * width, i // columns * height))
    return whole


def heat_map(concept: str, maps: dict[str, Tensor], image: Tensor | None = None) -> Tensor:
    """The maps of one concept over one image, on one scale, with a legend.

    Args:
        concept: what the legend names.
        maps: {label: [rows, columns]}; several are tiled with their labels.
        image: [h, w, 3] in [0, 1].

    Returns:
        [height, width, 3] in [0, 1].
    """
    low, high = min(float(m.min()) for m in maps.values()), max(float(m.max()) for m in maps.values())
    panels = [panel(image, found, low, high) for found in maps.values()]
    if len(maps) > 1:
        panels = [titled(p, label) for p, label in zip(panels, maps)]
        whole = tiled(panels)
        shrink = max(1.0, min(whole.size) / 1024)
        whole = whole.resize([round(side / shrink) for side in whole.size], Image.Resampling.LANCZOS)
    else:
        whole = panels[0]
    strip = legend(whole.width, concept, low, high)
    both = Image.new("RGB", (whole.width, whole.height + STRIP), PAPER)
    both.paste(whole, (0, 0))
    both.paste(strip, (0, whole.height))
    return to_tensor(both)


def bars(shares: dict[str, float]) -> Tensor:
    """A horizontal bar a token, its share of the image's attention written beside it; [height, 512, 3] in [0, 1].

    Args:
        shares: {token: share in [0, 1]}, from top to bottom.
    """
    picture = Image.new("RGB", (PANEL, 26 * len(shares) + 12), PAPER)
    draw, top = ImageDraw.Draw(picture), max(shares.values(), default=0.0) or 1.0
    for i, (name, share) in enumerate(shares.items()):
        y = 8 + 26 * i
        draw.text((150, y), name, INK, font(16), anchor="ra")
        draw.rectangle((158, y + 1, 158 + round(260 * share / top), y + 18), fill=BAR)
        draw.text((164 + round(260 * share / top), y), f"{share:.2%}", INK, font(16))
    return to_tensor(picture)


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).float() / 255
