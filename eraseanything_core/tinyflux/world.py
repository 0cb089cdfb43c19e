"""The world of TinyFlux: scenes with exact labels, and their pictures and masks.

A scene holds one object, or two objects in one of ten relations. A relation's label does not depend on which
object is named first, so that a prompt with shuffled words still has one right answer.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import ENTITIES, INK, STYLES, blur, coverage, paint

SIZE = 96  # px
COLOURS = {
    "red": (0.86, 0.12, 0.12), "green": (0.10, 0.60, 0.20), "blue": (0.12, 0.30, 0.90),
    "yellow": (0.95, 0.82, 0.10), "purple": (0.55, 0.15, 0.75), "orange": (0.98, 0.52, 0.08),
}  # fmt: skip
BACKGROUNDS = {
    "white": (0.97, 0.97, 0.97),
    "grey": (0.70, 0.70, 0.70),
    "pink": (1.0, 0.80, 0.88),
    "mint": (0.74, 0.95, 0.85),
}
RELATIONS = ("beside", "above", "inside", "touching", "overlapping", "opposite", "tied", "divided", "amid", "between")


@dataclass(frozen=True)
class Object:
    entity: str
    colour: str
    cx: float  # px
    cy: float  # px
    r: float  # px, half size


@dataclass(frozen=True)
class Scene:
    """What is in the picture. `objects` are drawn in order; the first two are the ones a caption names."""

    objects: tuple[Object, ...]
    background: str
    style: str | None = None
    relation: str | None = None


def single(rng: random.Random, entity=None, style=None, colour=None, background=None) -> Scene:
    """One object somewhere near the middle; what is not given is drawn."""
    r = rng.uniform(21, 29)
    cx, cy = (rng.uniform(r + 5, SIZE - r - 5) for _ in range(2))
    thing = Object(entity or rng.choice(list(ENTITIES)), colour or rng.choice(list(COLOURS)), cx, cy, r)
    return Scene((thing,), background or rng.choice(list(BACKGROUNDS)), style)


# relation -> ((x, y, half size) of the first, of the second and of its copies), px
LAYOUTS = {
    "beside": ((24, 48, 15), (72, 48, 15)),
    "above": ((48, 24, 15), (48, 72, 15)),
    "inside": ((48, 48, 12), (48, 48, 38)),
    "touching": ((31, 48, 18), (65, 48, 18)),
    "overlapping": ((39, 44, 20), (57, 52, 20)),
    "opposite": ((20, 20, 14), (76, 76, 14)),
    "tied": ((22, 48, 14), (74, 48, 14)),
    "divided": ((22, 48, 14), (74, 48, 14)),
    "amid": ((48, 48, 14), (18, 18, 10), (78, 18, 10), (18, 78, 10), (78, 78, 10)),
    "between": ((48, 48, 13), (16, 48, 12), (80, 48, 12)),
}


def related(rng: random.Random, relation=None, entities=None, colours=None, style=None, background=None) -> Scene:
    """Two entities of different kinds and colours in a relation; what is not given is drawn."""
    relation = relation or rng.choice(RELATIONS)
    entities = entities or rng.sample(list(ENTITIES), 2)
    colours = colours or rng.sample(list(COLOURS), 2)
    dx, dy = rng.uniform(-3, 3), rng.uniform(-3, 3)
    places = LAYOUTS[relation]
    kinds = [0] + [1] * (len(places) - 1)
    things = [Object(entities[k], colours[k], x + dx, y + dy, r) for k, (x, y, r) in zip(kinds, places)]
    return Scene(tuple(things), background or rng.choice(list(BACKGROUNDS)), style, relation)


def draw_scene(rng: random.Random) -> Scene:
    """A scene of the training distribution: 55 % one object, 45 % two in a relation."""
    if rng.random() < 0.55:
        return single(rng, style=rng.choice(STYLES) if rng.random() < 0.6 else None)
    return related(rng, style=rng.choice(STYLES) if rng.random() < 0.15 else None)


def _bar(canvas: Tensor, x0: float, x1: float, y0: float, y1: float) -> Tensor:
    xs = torch.arange(SIZE) + 0.5
    across = (torch.minimum(xs - x0, x1 - xs) + 0.5).clamp(0, 1)[None, :]
    along = (torch.minimum(xs - y0, y1 - xs) + 0.5).clamp(0, 1)[:, None]
    return canvas * (1 - across * along) + INK * across * along


def render(scene: Scene) -> Tensor:
    """The picture of a scene, [3, 96, 96] in [0, 1]."""
    canvas = torch.tensor(BACKGROUNDS[scene.background])[:, None, None].expand(3, SIZE, SIZE)
    first, second = scene.objects[0], scene.objects[min(1, len(scene.objects) - 1)]
    if scene.relation == "tied":
        canvas = _bar(canvas, first.cx, second.cx, first.cy - 2, first.cy + 2)
    if scene.relation == "divided":
        middle = (first.cx + second.cx) / 2
        canvas = _bar(canvas, middle - 2.5, middle + 2.5, 0, SIZE)
    for thing in reversed(scene.objects):
        colour = torch.tensor(COLOURS[thing.colour])
        canvas = paint(canvas, scene.style, colour, ENTITIES[thing.entity], thing.cx, thing.cy, thing.r)
    return blur(canvas) if scene.style == "blurred" else canvas


def object_mask(scene: Scene, entity: str) -> Tensor:
    """Where an entity's silhouettes are, [96, 96] in [0, 1], before other objects cover it."""
    grid = torch.arange(SIZE) + 0.5
    gy, gx = torch.meshgrid(grid, grid, indexing="ij")
    mask = torch.zeros(SIZE, SIZE)
    for thing in scene.objects:
        if thing.entity == entity:
            distance = ENTITIES[entity]((gx - thing.cx) / thing.r, (gy - thing.cy) / thing.r) * thing.r
            mask = torch.maximum(mask, coverage(distance))
    return mask
