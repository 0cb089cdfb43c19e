"""The table of things and the scenes of the world of real pictures, without its artwork."""

import random
from collections import Counter

import pytest
import torch

from lab.world import drawing, scenes
from lab.world.artwork import SETS, SIZE
from lab.world.things import ICONS, THINGS

PAPER = {"fruit", "ball", "building", "shoe"}  # hypernyms among the paper's entities
ENTITIES = {"car", "airplane", "tower", "cat", "dog"}


@pytest.fixture(scope="module")
def artwork():
    """A white disc on a coloured square of alpha, for every icon: the drawing does not care what it draws."""
    picture = torch.zeros(len(ICONS), len(SETS), 4, 8, 8, dtype=torch.uint8)
    picture[:, :, 3, 2:6, 2:6] = 255
    picture[:, :, 0, 2:6, 2:6] = 200
    return torch.nn.functional.interpolate(picture.flatten(0, 1), size=(SIZE, SIZE)).unflatten(0, picture.shape[:2])


def test_there_are_enough_things_and_none_twice():
    names = Counter(thing.name for thing in THINGS)
    assert len(names) == len(THINGS) >= 200
    assert len(set(ICONS)) == len(ICONS)


def test_the_papers_entities_are_in_it():
    assert ENTITIES <= {thing.name for thing in THINGS}
    assert PAPER <= {hypernym for thing in THINGS for hypernym in thing.hypernyms}


def test_what_is_held_out_is_nowhere_in_training():
    for thing in THINGS:
        seen = {thing.name, *thing.synonyms, *thing.descriptions}
        assert thing.held_out_synonym not in seen, thing.name
        assert thing.held_out_description not in seen, thing.name
        assert len(thing.synonyms) == 2 and len(thing.descriptions) == 2 and thing.hypernyms, thing.name


def test_descriptions_do_not_name_the_thing():
    for thing in THINGS:
        for phrase in (*thing.descriptions, thing.held_out_description):
            assert not {thing.name, *thing.synonyms} & set(phrase.split()), (thing.name, phrase)


@pytest.mark.parametrize("style", scenes.STYLES)
def test_a_thing_is_drawn_inside_its_mask(artwork, style):
    scene = scenes.Scene((scenes.Placed("cat", "cat-face", list(SETS)[0], 48, 48, 40),), "white", style)
    empty = drawing.ground("white")
    changed = (drawing.draw(scene, artwork) - empty).abs().amax(0) > 0.05
    mask = drawing.mask(scene.things[0], artwork)
    assert changed[mask].float().mean() > 0.1  # a sketch has nothing but lines
    near = torch.nn.functional.max_pool2d(mask[None, None].float(), 13, 1, 6)[0, 0] > 0
    assert not changed[~near].any()


@pytest.mark.parametrize("relation", scenes.LAYOUTS)
def test_equal_seeds_give_equal_scenes(artwork, relation):
    one, other = (scenes.related(random.Random(3), THINGS[0], THINGS[1], relation) for _ in range(2))
    assert one == other and one.relation == relation and one.things[0].name == THINGS[0].name
    assert torch.equal(drawing.draw(one, artwork), drawing.draw(other, artwork))
