"""The world of TinyFlux: scenes with exact labels, and their pictures.

A scene holds one object, or two objects in one of ten relations. A relation's label does not depend on which
object is named first, so that a prompt with shuffled words still has one right answer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import ENTITIES, INK, blur, paint

PICTURE_SIZE = 96  # px
COLOURS = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.12, 0.30, 0.90),
    "yellow": (0.95, 0.82, 0.10),
    "purple": (0.55, 0.15, 0.75),
    "orange": (0.98, 0.52, 0.08),
}
BACKGROUNDS = {
    "white": (0.97, 0.97, 0.97),
    "grey": (0.70, 0.70, 0.70),
    "pink": (1.0, 0.80, 0.88),
    "mint": (0.74, 0.95, 0.85),
}
RELATIONS = ("beside", "above", "inside", "touching", "overlapping", "opposite", "tied", "divided", "amid", "between")


@dataclass(frozen=True)
class Object:
    """One object of a scene.

    Attributes:
        entity: a name of `ENTITIES`.
        colour: a name of `COLOURS`.
        cx, cy: its centre, px.
        r: its half size, px.
    """

    entity: str
    colour: str
    cx: float
    cy: float
    r: float


@dataclass(frozen=True)
class Scene:
    """What is in the picture. `objects` are drawn in order; the first two are the ones a caption names."""

    objects: tuple[Object, ...]
    background: str
    style: str | None = None
    relation: str | None = None


def _draw_bar(canvas: Tensor, x0: float, x1: float, y0: float, y1: float) -> Tensor:
    """The canvas [3, 96, 96] with an upright rectangle of ink, its edges anti-aliased."""
    centres = torch.arange(PICTURE_SIZE) + 0.5
    across = (torch.minimum(centres - x0, x1 - centres) + 0.5).clamp(0, 1)[None, :]
    along = (torch.minimum(centres - y0, y1 - centres) + 0.5).clamp(0, 1)[:, None]
    return canvas * (1 - across * along) + INK * across * along


def render(scene: Scene) -> Tensor:
    """The picture of a scene, [3, 96, 96] in [0, 1]."""
    canvas = torch.tensor(BACKGROUNDS[scene.background])[:, None, None].expand(3, PICTURE_SIZE, PICTURE_SIZE)
    first = scene.objects[0]
    # A scene of one object has no relation, so its second object is never used.
    second = scene.objects[min(1, len(scene.objects) - 1)]
    if scene.relation == "tied":
        canvas = _draw_bar(canvas, first.cx, second.cx, first.cy - 2, first.cy + 2)
    if scene.relation == "divided":
        middle = (first.cx + second.cx) / 2
        canvas = _draw_bar(canvas, middle - 2.5, middle + 2.5, 0, PICTURE_SIZE)
    # The first object is painted last, so that it lies on top.
    for thing in reversed(scene.objects):
        colour = torch.tensor(COLOURS[thing.colour])
        canvas = paint(canvas, scene.style, colour, ENTITIES[thing.entity], thing.cx, thing.cy, thing.r)
    return blur(canvas) if scene.style == "blurred" else canvas
