"""The ten entities of the world as signed distances, and the ten styles as ways to paint them.

A distance is negative inside. Entities live in unit coordinates: x to the right, y downwards, and the
silhouette inside [-1, 1]. Styles work in pixels; their textures are locked to the grid of the picture with a
period of 8 px (one latent cell), so that a texture is the same in every cell.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PERIOD = 8  # px, of every texture
DARK = 0.35  # a texture's second tone, as a fraction of the colour
INK = 0.08  # outlines, shadows, bars and walls

Distance = Callable[[Tensor, Tensor], Tensor]  # (x, y) in unit coordinates to a signed distance


def _box(x: Tensor, y: Tensor, w: float, h: float) -> Tensor:
    return torch.maximum(x.abs() - w, y.abs() - h)


def _triangle(x: Tensor, y: Tensor, top: float, bottom: float, half_width: float) -> Tensor:
    slope = half_width / (bottom - top)
    side = (x.abs() - (y - top) * slope) / math.hypot(1.0, slope)
    return torch.maximum(side, y - bottom)


def ball(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a ball."""
    return torch.hypot(x, y) - 0.92


def box(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a box."""
    return _box(x, y, 0.82, 0.82)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a star."""
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2
    # All ten half-tips fold onto one: only the edge from its tip to the notch beside it is left to measure.
    px = torch.hypot(x, y) * angle.abs().sin()
    py = torch.hypot(x, y) * angle.cos()
    tip = (0.0, 1.0)
    notch = (0.40 * math.sin(sector / 2), 0.40 * math.cos(sector / 2))
    ex = notch[0] - tip[0]
    ey = notch[1] - tip[1]
    return ((px - tip[0]) * -ey + (py - tip[1]) * ex) / math.hypot(ex, ey)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a heart."""
    lobe = torch.hypot(x.abs() - 0.45, y + 0.38) - 0.48
    point = (x.abs() + y - 0.92) * math.sqrt(0.5)
    body = torch.maximum(torch.maximum(point, -y - 0.38), x.abs() - 0.92)
    return torch.minimum(lobe, body)


def moon(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a moon."""
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.78 - torch.hypot(x - 0.48, y + 0.1))


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a cross."""
    return torch.minimum(_box(x, y, 0.95, 0.30), _box(x, y, 0.30, 0.95))


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a ring."""
    return (torch.hypot(x, y) - 0.68).abs() - 0.25


def house(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a house."""
    return torch.minimum(_box(x, y - 0.42, 0.62, 0.50), _triangle(x, y, -0.98, -0.05, 0.88))


def tree(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a tree."""
    crown = torch.minimum(_triangle(x, y, -1.0, 0.0, 0.62), _triangle(x, y, -0.5, 0.55, 0.85))
    return torch.minimum(crown, _box(x, y - 0.75, 0.17, 0.22))


def fish(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a fish."""
    body = torch.hypot(x + 0.22, y * 1.35) - 0.74
    return torch.minimum(body, _triangle(y, x, 0.22, 0.98, 0.62))


ENTITIES: dict[str, Distance] = {
    "ball": ball,
    "box": box,
    "star": star,
    "heart": heart,
    "moon": moon,
    "cross": cross,
    "ring": ring,
    "house": house,
    "tree": tree,
    "fish": fish,
}


def coverage(distance_px: Tensor) -> Tensor:
    """Anti-aliased mask in [0, 1] of a signed distance in pixels."""
    return (0.5 - distance_px).clamp(0, 1)


def _texture(name: str, gx: Tensor, gy: Tensor) -> Tensor:
    """1 where the texture shows its dark tone; gx, gy are pixel centres of the whole picture."""
    if name == "striped":
        return (gy % PERIOD < PERIOD / 2).float()
    if name == "hatched":
        return ((gx + gy) % PERIOD < PERIOD / 2).float()
    if name == "checkered":
        return ((gx % PERIOD < PERIOD / 2) ^ (gy % PERIOD < PERIOD / 2)).float()
    return (torch.hypot(gx % PERIOD - PERIOD / 4, gy % PERIOD - PERIOD / 4) < 2.4).float()  # dotted


def paint(
    canvas: Tensor, style: str | None, colour: Tensor, distance: Distance, cx: float, cy: float, r: float
) -> Tensor:
    """Paints one object on a canvas.

    Args:
        canvas: [3, H, W] in [0, 1].
        style: a name of `PAINT_STYLES`, or None for flat colour.
        colour: [3] in [0, 1].
        distance: an entity's signed distance in unit coordinates.
        cx, cy, r: centre and half size in pixels.

    Returns:
        The new canvas, [3, H, W]; "blurred" is applied to the whole picture afterwards, by `world.render`.
    """
    size = canvas.shape[-1]
    gy, gx = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    # Into the entity's unit coordinates, and the distance back into pixels.
    d = distance((gx - cx) / r, (gy - cy) / r) * r
    tint = colour[:, None, None].expand(3, size, size)
    alpha = coverage(d)
    if style in TEXTURES:
        tint = tint * (1 - (1 - DARK) * _texture(style, gx, gy))
    elif style == "shaded":
        tint = tint * (1 - 0.85 * ((gy - cy) / (2 * r) + 0.5).clamp(0, 1))
    elif style == "outlined":
        alpha = coverage((d + 1.5).abs() - 1.5)
    elif style == "bordered":
        tint = torch.where(d > -2.5, torch.full_like(tint, INK), tint)
    elif style == "glowing":
        # The halo fades outwards; inside, the object itself covers more.
        alpha = torch.maximum(alpha, 0.85 * torch.exp(-d.clamp(min=0) / 4.5))
    elif style == "shadowed":
        # The same silhouette, 5 px to the right and down.
        shadow = coverage(distance((gx - cx - 5) / r, (gy - cy - 5) / r) * r)
        canvas = canvas * (1 - shadow) + INK * shadow
    return canvas * (1 - alpha) + tint * alpha


def blur(canvas: Tensor, sigma: float = 3.0) -> Tensor:
    """Gaussian blur of [3, H, W] with reflected edges."""
    taps = torch.arange(-8, 9).float()
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.pad(canvas[None], (8, 8, 8, 8), mode="reflect")
    # A Gaussian is separable: along the rows, then along the columns, each channel by itself.
    x = F.conv2d(x, kernel, groups=3)
    return F.conv2d(x, kernel.transpose(2, 3), groups=3)[0]


TEXTURES = ("striped", "dotted", "checkered", "hatched")
PAINT_STYLES = (*TEXTURES, "outlined", "shaded", "glowing", "shadowed", "bordered", "blurred")
