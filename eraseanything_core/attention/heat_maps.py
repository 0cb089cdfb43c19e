"""Attention as pictures: heat maps over an image with a legend, and bars of the tokens' shares."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .probe import Recording

# Matplotlib's viridis at nine even points. Its lightness rises evenly, so it can be read without colour vision.
VIRIDIS = torch.tensor(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
        (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
    ]
) / 255.0  # fmt: skip
PANEL_SIDE = 512  # px: shorter side of a panel, so that it can be read at the size of a node
LEGEND_HEIGHT = 64  # px: height of the legend
TITLE_HEIGHT = 34  # px: height of the line above a panel
BAR_PITCH = 26  # px: height of a bar with its gap
BAR_LEFT = 158  # px: where bars begin, right of the tokens
BAR_WIDTH = 260  # px: of the largest bar
OPACITY = 0.6  # of the colours over the image
LABEL_COLOUR = (20, 20, 20)
BACKDROP = (255, 255, 255)
BAR = (44, 113, 142)


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [..., rows, columns] of image tokens at the size of the picture, bilinear."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, (height, width), mode="bilinear").reshape(*maps.shape[:-2], height, width)


def unit(maps: Tensor) -> Tensor:
    """Each map [..., h, w] stretched to [0, 1]; a flat one is 0."""
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def masks(maps: Tensor, threshold: float) -> Tensor:
    """Maps [..., h, w] as masks: soft ones at threshold 0, else 1 where the stretched map reaches it."""
    stretched = unit(maps)
    return (stretched >= threshold).float() if threshold > 0 else stretched


def coloured(values: Tensor) -> Tensor:
    """[..., h, w] in [0, 1] as colours [..., h, w, 3]."""
    position = values.clamp(0, 1) * (len(VIRIDIS) - 1)
    # The last colour has no successor, so a value of 1 is the end of the last interval.
    low = position.floor().long().clamp(max=len(VIRIDIS) - 2)
    return torch.lerp(VIRIDIS[low], VIRIDIS[low + 1], (position - low)[..., None])


def map_panel(image: Tensor | None, values: Tensor, low: float, high: float) -> Image.Image:
    """One map in colour, over an image if there is one.

    Args:
        image: [h, w, 3] in [0, 1], or None.
        values: the map, [rows, columns].
        low, high: the values at the ends of the colour scale.
    """
    rows, columns = values.shape if image is None else image.shape[:2]
    ratio = rows / columns
    height = round(PANEL_SIDE * max(1, ratio))
    width = round(PANEL_SIDE * max(1, 1 / ratio))
    colours = coloured((resized(values, height, width) - low) / max(high - low, 1e-12))
    if image is not None:
        planes = image.movedim(-1, 0)[None].float()
        under = F.interpolate(planes, (height, width), mode="nearest")[0].movedim(0, -1)
        colours = torch.lerp(under, colours, OPACITY)
    return Image.fromarray((colours.clamp(0, 1) * 255).round().byte().numpy())


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow brings along, so that no system has to have one."""
    return ImageFont.load_default(size)


def legend(width: int, title: str, low: float, high: float) -> Image.Image:
    """A strip with the colours, the values at their ends, and what is shown."""
    strip = Image.new("RGB", (width, LEGEND_HEIGHT), BACKDROP)
    draw = ImageDraw.Draw(strip)
    scale = coloured(torch.linspace(0, 1, width - 16)[None]).expand(14, -1, -1)
    strip.paste(Image.fromarray((scale * 255).round().byte().numpy()), (8, 30))
    draw.text((8, 4), title, LABEL_COLOUR, font(18))
    draw.text((8, 45), f"{low:.2%}", LABEL_COLOUR, font(14))
    draw.text((width - 8, 45), f"{high:.2%} of a query's attention", LABEL_COLOUR, font(14), anchor="ra")
    return strip


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture with a line of text above it."""
    whole = Image.new("RGB", (picture.width, picture.height + TITLE_HEIGHT), BACKDROP)
    whole.paste(picture, (0, TITLE_HEIGHT))
    ImageDraw.Draw(whole).text((6, 4), title, LABEL_COLOUR, font(22))
    return whole


def tiled(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in a square grid."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    whole = Image.new("RGB", (columns * width, rows * height), BACKDROP)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        whole.paste(picture, (column * width, row * height))
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
    # One scale for all maps: on scales of their own a block that hardly looks would shine like the others.
    low = min(float(values.min()) for values in maps.values())
    high = max(float(values.max()) for values in maps.values())
    panels = {label: map_panel(image, values, low, high) for label, values in maps.items()}
    if len(panels) > 1:
        whole = tiled([titled(picture, label) for label, picture in panels.items()])
        # A panel for each of 57 blocks would be a picture of tens of megabytes.
        shrink = max(1.0, min(whole.size) / 1024)
        width, height = whole.size
        whole = whole.resize((round(width / shrink), round(height / shrink)), Image.Resampling.LANCZOS)
    else:
        whole = next(iter(panels.values()))
    strip = legend(whole.width, concept, low, high)
    both = Image.new("RGB", (whole.width, whole.height + LEGEND_HEIGHT), BACKDROP)
    both.paste(whole, (0, 0))
    both.paste(strip, (0, whole.height))
    return to_tensor(both)


def bars(shares: dict[str, float]) -> Tensor:
    """A horizontal bar a token, its share of the image's attention written beside it.

    Args:
        shares: {token: share in [0, 1]}, from top to bottom.

    Returns:
        [height, 512, 3] in [0, 1].
    """
    picture = Image.new("RGB", (PANEL_SIDE, BAR_PITCH * len(shares) + 12), BACKDROP)
    draw = ImageDraw.Draw(picture)
    largest = max(shares.values(), default=0.0) or 1.0  # all zero, or no token: no bar, and no division by zero
    for i, (name, share) in enumerate(shares.items()):
        top = 8 + BAR_PITCH * i
        length = round(BAR_WIDTH * share / largest)
        draw.text((BAR_LEFT - 8, top), name, LABEL_COLOUR, font(16), anchor="ra")
        draw.rectangle((BAR_LEFT, top + 1, BAR_LEFT + length, top + 18), fill=BAR)
        draw.text((BAR_LEFT + 6 + length, top), f"{share:.2%}", LABEL_COLOUR, font(16))
    return to_tensor(picture)


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as [height, width, 3] in [0, 1]."""
    return torch.from_numpy(np.array(picture)).float() / 255


def recorded_maps(
    recording: Recording,
    view: str,
    images: Sequence[Tensor | None],
    check_interrupt: Callable[[], None] | None = None,
) -> Tensor:
    """A heat map of every concept in every image, on one scale each.

    Args:
        recording: of the sampling that made the images.
        view: one of `probe.VIEWS`.
        images: the decoded samples, [h, w, 3] in [0, 1] each, or None where only the map is shown.
        check_interrupt: called before each picture; what it raises ends the drawing.

    Returns:
        [images * concepts, height, width, 3], all concepts of the first image first.
    """
    grids = recording.grids(view)
    pictures = []
    for i, image in enumerate(images):
        for c, concept in enumerate(recording.spans):
            if check_interrupt:
                check_interrupt()
            maps = {label: grid[i, c] for label, grid in grids.items()}
            pictures.append(heat_map(concept, maps, image))
    return torch.stack(pictures)


def recorded_masks(
    recording: Recording,
    height: int,
    width: int,
    threshold: float,
    check_interrupt: Callable[[], None] | None = None,
) -> Tensor:
    """The maps of `recorded_maps` over all blocks, steps and heads as masks, [images * concepts, height, width].

    `check_interrupt` is called before each mask; what it raises ends the work.
    """
    all_masks = []
    # One by one, because masks at the size of a large picture take seconds.
    for values in recording.grids()["all"].flatten(0, 1):
        if check_interrupt:
            check_interrupt()
        all_masks.append(masks(resized(values, height, width), threshold))
    return torch.stack(all_masks)
