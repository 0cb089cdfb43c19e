"""Scenes of the world: which things stand where, on which ground, in which style, with exact labels."""

import random
from dataclasses import dataclass

from lab.world.artwork import SETS
from lab.world.things import Thing

SIDE = 96  # px of a picture
STEP = 16  # px between two places of a thing that is alone: an image token
HALF = 40  # half the side of a thing that is alone, px
FLIPPED = 0.05  # share of the drawings that look the other way: each is a drawing more to learn
FILTER_RATE = 0.24  # share of the pictures that are drawn through a filter
GROUNDS = {
    "white": (0.97, 0.97, 0.96),
    "grey": (0.68, 0.70, 0.72),
    "pink": (0.99, 0.80, 0.86),
    "mint": (0.72, 0.94, 0.84),
    "blue": (0.52, 0.74, 0.95),
    "sand": (0.93, 0.85, 0.66),
    "grass": (0.47, 0.72, 0.36),
    "night": (0.10, 0.12, 0.26),
}
FILTERED = ("sketch", "pixel", "sepia", "silhouette", "neon", "halftone")  # styles by a filter, not by artists
STYLES = (*SETS, *FILTERED)
TRAITS = ("watermark", "bokeh")  # what some pictures have unasked
TRAIT_RATE = 0.12

# Centre and half side of each thing, px. `inside` has the first thing in front of a large second one, `amid` has it in
# the middle of four of the second, `between` has one of the second on either side of it. There are three sizes in all,
# on the grid of latents: a drawing of another size or between two cells has other latents, which have to be learned.
LAYOUTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "beside": ((20, 52, 20), (76, 52, 20)),
    "above": ((52, 20, 20), (52, 76, 20)),
    "inside": ((48, 48, 16), (48, 48, 40)),
    "touching": ((28, 52, 20), (68, 52, 20)),
    "overlapping": ((36, 44, 20), (60, 60, 20)),
    "opposite": ((20, 20, 20), (76, 76, 20)),
    "tied": ((20, 52, 20), (76, 52, 20)),
    "divided": ((20, 52, 20), (76, 52, 20)),
    "amid": ((48, 48, 16), (16, 16, 16), (80, 16, 16), (16, 80, 16), (80, 80, 16)),
    "between": ((48, 48, 16), (16, 48, 16), (80, 48, 16)),
}


@dataclass(frozen=True)
class Placed:
    """A thing in the picture.

    Attributes:
        name: the thing's.
        icon: which of its pictures.
        artist: the set that it is drawn by.
        cx, cy: its centre, px.
        half: half of its side, px.
        flipped: whether it looks the other way.
    """

    name: str
    icon: str
    artist: str
    cx: float
    cy: float
    half: float
    flipped: bool = False


@dataclass(frozen=True)
class Scene:
    """What is in the picture.

    Attributes:
        things: the first lies on top; the first two are the ones that a caption names.
        ground: a name of `GROUNDS`.
        style: a name of `STYLES`.
        relation: a name of `LAYOUTS`, where there are two things.
        trait: one of `TRAITS`, which no caption mentions.
    """

    things: tuple[Placed, ...]
    ground: str
    style: str
    relation: str | None = None
    trait: str | None = None


def alone(rng: random.Random, thing: Thing, style: str | None = None) -> Scene:
    """One thing, large enough to be known; a random style without a name."""
    style = style or _random_style(rng)
    # On the grid of image tokens: a drawing has the same latents at each of its places.
    cx = HALF + rng.randrange(0, SIDE - 2 * HALF + 1, STEP)
    cy = HALF + rng.randrange(0, SIDE - 2 * HALF + 1, STEP)
    placed = _placed(rng, thing, _artist(rng, style), cx, cy, HALF)
    return Scene((placed,), rng.choice(list(GROUNDS)), style, trait=_random_trait(rng))


def related(rng: random.Random, first: Thing, second: Thing, relation: str, style: str | None = None) -> Scene:
    """Two things in a relation that their places alone decide."""
    style = style or _random_style(rng)
    artist = _artist(rng, style)
    placed = []
    for number, (cx, cy, half) in enumerate(LAYOUTS[relation]):
        thing = second if number else first
        placed.append(_placed(rng, thing, artist, cx, cy, half))
    return Scene(tuple(placed), rng.choice(list(GROUNDS)), style, relation, _random_trait(rng))


def _placed(rng: random.Random, thing: Thing, artist: str, cx: float, cy: float, half: float) -> Placed:
    return Placed(thing.name, rng.choice(thing.icons), artist, cx, cy, half, flipped=rng.random() < FLIPPED)


def _random_style(rng: random.Random) -> str:
    return rng.choice(FILTERED) if rng.random() < FILTER_RATE else rng.choice(list(SETS))


def _artist(rng: random.Random, style: str) -> str:
    """Who draws the things of a style: a filter takes any set."""
    return style if style in SETS else rng.choice(list(SETS))


def _random_trait(rng: random.Random) -> str | None:
    return rng.choice(TRAITS) if rng.random() < TRAIT_RATE else None
