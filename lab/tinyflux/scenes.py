"""Draws scenes of TinyFlux's world, and says where their objects are."""

import random

import torch
from torch import Tensor

from eraseanything_core.tinyflux.shapes import ENTITIES, PAINT_STYLES, coverage
from eraseanything_core.tinyflux.world import BACKGROUNDS, COLOURS, PICTURE_SIZE, RELATIONS, Object, Scene

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


def single(
    rng: random.Random,
    entity: str | None = None,
    style: str | None = None,
    colour: str | None = None,
    background: str | None = None,
) -> Scene:
    """One object somewhere near the middle. What is left out is drawn; without a style it is flat."""
    r = rng.uniform(21, 29)
    cx = rng.uniform(r + 5, PICTURE_SIZE - r - 5)
    cy = rng.uniform(r + 5, PICTURE_SIZE - r - 5)
    thing = Object(entity or rng.choice(list(ENTITIES)), colour or rng.choice(list(COLOURS)), cx, cy, r)
    return Scene((thing,), background or rng.choice(list(BACKGROUNDS)), style)


def related(
    rng: random.Random,
    relation: str | None = None,
    entities: list[str] | None = None,
    colours: list[str] | None = None,
    style: str | None = None,
    background: str | None = None,
) -> Scene:
    """Two entities of different kinds and colours in a relation. What is left out is drawn."""
    relation = relation or rng.choice(RELATIONS)
    entities = entities or rng.sample(list(ENTITIES), 2)
    colours = colours or rng.sample(list(COLOURS), 2)
    dx = rng.uniform(-3, 3)
    dy = rng.uniform(-3, 3)
    things = []
    for i, (x, y, r) in enumerate(LAYOUTS[relation]):
        kind = min(i, 1)  # every place after the second holds a copy of the second object
        things.append(Object(entities[kind], colours[kind], x + dx, y + dy, r))
    return Scene(tuple(things), background or rng.choice(list(BACKGROUNDS)), style, relation)


def draw_scene(rng: random.Random) -> Scene:
    """A scene of the training distribution: 55 % one object, 45 % two in a relation."""
    if rng.random() < 0.55:
        return single(rng, style=rng.choice(PAINT_STYLES) if rng.random() < 0.6 else None)
    return related(rng, style=rng.choice(PAINT_STYLES) if rng.random() < 0.15 else None)


def object_mask(scene: Scene, entity: str) -> Tensor:
    """Where an entity's silhouettes are, [96, 96] in [0, 1], before other objects cover it."""
    grid = torch.arange(PICTURE_SIZE) + 0.5
    gy, gx = torch.meshgrid(grid, grid, indexing="ij")
    mask = torch.zeros(PICTURE_SIZE, PICTURE_SIZE)
    for thing in scene.objects:
        if thing.entity == entity:
            distance = ENTITIES[entity]((gx - thing.cx) / thing.r, (gy - thing.cy) / thing.r) * thing.r
            mask = torch.maximum(mask, coverage(distance))
    return mask
