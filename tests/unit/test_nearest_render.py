"""The judge of the world of real pictures that never learned, on artwork made up here."""

import random
from dataclasses import replace

import pytest
import torch

from lab.world import drawing, oracle, scenes
from lab.world.artwork import SETS, SIZE
from lab.world.things import ICONS, THINGS

SHOWN = THINGS[:3]


@pytest.fixture(scope="module")
def artwork():
    """A disc, a bar and a ring with squares on them; each artist has a colour of their own."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    radius = torch.hypot(y - 64.0, x - 64.0)
    shapes = (radius < 55, (y - 64).abs() < 18, (radius < 55) & (radius > 30))
    squares = 0.5 + 0.5 * ((x // 7 + y // 7) % 2)  # without them the filter `pixel` would change nothing
    picture = torch.zeros(len(ICONS), len(SETS), 4, SIZE, SIZE, dtype=torch.uint8)
    for thing, shape in zip(SHOWN, shapes):
        for number in range(len(SETS)):
            colour = torch.tensor([40 * number, 255 - 40 * number, 30])[:, None, None] * squares
            layer = torch.cat((colour, torch.full((1, SIZE, SIZE), 255))) * shape
            picture[ICONS.index(thing.icons[0]), number] = layer.byte()
    return picture


@pytest.fixture(scope="module")
def judge(artwork):
    return oracle.Oracle(artwork, [thing.icons[0] for thing in SHOWN])


@pytest.mark.parametrize("thing", SHOWN, ids=lambda thing: thing.name)
@pytest.mark.parametrize("artist", SETS)
@pytest.mark.parametrize("trait", [None, *scenes.TRAITS])
def test_the_nearest_render_is_the_one_that_was_drawn(artwork, judge, thing, artist, trait):
    scene = scenes.alone(random.Random(f"{thing.name} {artist}"), replace(thing, icons=thing.icons[:1]), artist)
    (nearest,) = judge.read(drawing.draw(replace(scene, trait=trait), artwork)[None])
    assert (nearest.thing, nearest.style) == (thing.name, artist)
    assert nearest.distance < 0.03


def test_an_empty_ground_shows_nothing(judge):
    empty = torch.stack([drawing.ground(name) for name in scenes.GROUNDS])
    assert [nearest.thing for nearest in judge.read(empty)] == [None] * len(empty)


def test_parts_of_the_grounds_colour_are_not_missed(artwork, judge):
    """A thing whose colour is the ground's is compared as it looks there."""
    render = next(r for r in judge.renders if r.artist == r.style == "noto" and not r.flipped)
    colour, alpha = judge.layer(render, 8, 8)
    base = drawing.ground("pink")
    base[:, 48:] = colour[:, 48:]
    picture = base * (1 - alpha) + colour * alpha
    own = oracle.cut_out(picture, oracle.differing(picture, base), oracle.FINE)
    assert (
        judge._on(base, render, own, oracle.centre((alpha > 0.5).float()))
        < 1e-6
        < (oracle.cut_out(colour, alpha, oracle.FINE) - own).pow(2).mean()
    )
