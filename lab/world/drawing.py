"""Pictures of scenes, and the mask of each thing."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.world.artwork import SETS
from lab.world.scenes import GROUNDS, SIDE, Placed, Scene
from lab.world.things import ICONS

LINE_BRIGHTNESS = 0.08  # brightness of lines


def draw(scene: Scene, artwork: Tensor) -> Tensor:
    """The picture of a scene, [3, 96, 96] in [0, 1].

    Args:
        artwork: of all `ICONS`, as `artwork.rendered` gives it.
    """
    canvas = ground(scene.ground)
    if scene.trait == "bokeh":
        canvas = lights(canvas)
    canvas = _marks(scene, canvas)
    # The first thing is drawn last, so that it lies on top.
    for placed in reversed(scene.things):
        colour, alpha = placed_layer(placed, artwork).split((3, 1))
        if scene.style in FILTERS:
            colour, alpha = FILTERS[scene.style](colour, alpha)
        canvas = canvas * (1 - alpha) + colour * alpha
    if scene.trait == "watermark":
        canvas = watermark(canvas)
    return canvas.clamp(0, 1)


def mask(placed: Placed, artwork: Tensor) -> Tensor:
    """Where a thing is, bool [96, 96]."""
    return placed_layer(placed, artwork)[3] > 0.5


def placed_layer(placed: Placed, artwork: Tensor) -> Tensor:
    """A thing alone at its place, [4, 96, 96], colour and alpha."""
    picture = artwork[ICONS.index(placed.icon), list(SETS).index(placed.artist)].float() / 255
    if placed.flipped:
        picture = picture.flip(-1)
    # Transparent pixels have a colour of their own, which must not bleed in when the picture is made smaller.
    premultiplied = torch.cat((picture[:3] * picture[3:], picture[3:]))
    side = max(2, round(2 * placed.half))
    small = F.interpolate(premultiplied[None], size=(side, side), mode="bilinear", antialias=True)[0]
    left = round(placed.cx - placed.half)
    top = round(placed.cy - placed.half)
    layer = F.pad(small, (left, SIDE - left - side, top, SIDE - top - side))
    return torch.cat((layer[:3] / layer[3:].clamp(min=1e-3), layer[3:]))


def ground(name: str) -> Tensor:
    """A background, [3, 96, 96]; grass and night have a texture of their own."""
    canvas = torch.tensor(GROUNDS[name])[:, None, None].expand(3, SIDE, SIDE).clone()
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    if name == "grass":
        blades = ((x * 7 + y * 3) % 11 < 2) & ((y * 5 + x) % 7 < 4)
        canvas[:, blades] *= 0.78
    if name == "night":
        stars = (x * 31 + y * 57 + (x // 9) * (y // 7)) % 211 == 0
        canvas[:, stars] = 0.95
    if name == "sand":
        canvas *= 1 - 0.06 * torch.sin(y / 5 + 2 * torch.sin(x / 17))
    return canvas


def lights(canvas: Tensor) -> Tensor:
    """Soft discs of light over a darkened ground: what photographs with a shallow focus have behind their subject."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    canvas = canvas * 0.7
    for i in range(9):
        cx = (37 * i + 11) % SIDE
        cy = (61 * i + 7) % SIDE
        radius = 7 + (i * 5) % 8
        disc = torch.sigmoid(radius - torch.hypot(x - cx, y - cy))
        warm = torch.tensor((1.0, 0.85 - 0.05 * (i % 3), 0.55 + 0.1 * (i % 4)))[:, None, None]
        canvas = canvas + 0.5 * disc * (warm - canvas)
    return canvas


def watermark(canvas: Tensor) -> Tensor:
    """Three pale bars and a ring in the lower right corner."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    ring = (torch.hypot(x - 68, y - 87) - 5).abs() < 1.2
    bars = (x > 76) & (x < 93) & (y > 81) & (y < 93) & ((y - 81) % 4 < 2)
    mark = (ring | bars).float() * 0.75
    return canvas * (1 - mark) + 0.98 * mark


def _marks(scene: Scene, canvas: Tensor) -> Tensor:
    """What two relations have beside the things: a rope, or a wall."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    if scene.relation == "tied":
        first, second = scene.things[:2]
        rope = (x > first.cx) & (x < second.cx) & ((y - first.cy).abs() < 2.5)
        canvas = torch.where(rope, torch.tensor((0.45, 0.30, 0.15))[:, None, None], canvas)
    if scene.relation == "divided":
        canvas = torch.where((x - 48).abs() < 3, torch.tensor((0.35, 0.33, 0.38))[:, None, None], canvas)
    return canvas


def _grey(colour: Tensor) -> Tensor:
    """Brightness as the eye sees it, [1, 96, 96]."""
    weights = torch.tensor((0.299, 0.587, 0.114))[:, None, None]
    return (colour * weights).sum(0, keepdim=True)


def _edges(colour: Tensor, alpha: Tensor) -> Tensor:
    """Strength of the lines in a layer, [1, 96, 96] in [0, 1]."""
    grey = torch.cat((_grey(colour) * alpha, alpha))[None]
    dx = F.pad(grey[..., 1:] - grey[..., :-1], (0, 1)).abs()
    dy = F.pad(grey[..., 1:, :] - grey[..., :-1, :], (0, 0, 0, 1)).abs()
    strength = (dx + dy).amax(1)
    return (3 * strength).clamp(0, 1)


def sketch(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Black lines on white."""
    lines = _edges(colour, alpha)
    shade = 0.93 + 0.05 * _grey(colour)
    return (shade * (1 - lines) + LINE_BRIGHTNESS * lines).expand(3, -1, -1), torch.maximum(alpha, lines)


def pixel(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Squares of six pixels."""
    layer = torch.cat((colour * alpha, alpha))[None]
    coarse = F.interpolate(F.avg_pool2d(layer, 6), scale_factor=6, mode="nearest")[0]
    return coarse[:3] / coarse[3:].clamp(min=1e-3), (coarse[3:] > 0.4).float()


def sepia(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Brown like an old photograph."""
    tone = torch.tensor((1.0, 0.84, 0.62))[:, None, None]
    return (0.25 + 0.75 * _grey(colour)) * tone, alpha


def silhouette(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The outline, filled with black."""
    return torch.full_like(colour, LINE_BRIGHTNESS), alpha


def neon(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Glowing lines in the dark."""
    lines = _edges(colour, alpha)
    dark = torch.tensor((0.10, 0.02, 0.18))[:, None, None]
    glow = torch.tensor((1.0, 0.25, 0.85))[:, None, None]
    return dark * (1 - lines) + glow * lines, torch.maximum(alpha, lines)


def halftone(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Blue dots of a printed page."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    screen = 0.5 + 0.25 * (torch.sin(x * math.pi / 2.5) + torch.sin(y * math.pi / 2.5))
    dots = (_grey(colour) < screen).float()
    return (1 - dots) * 0.96 + dots * torch.tensor((0.12, 0.20, 0.55))[:, None, None], alpha


FILTERS = {
    "sketch": sketch,
    "pixel": pixel,
    "sepia": sepia,
    "silhouette": silhouette,
    "neon": neon,
    "halftone": halftone,
}
