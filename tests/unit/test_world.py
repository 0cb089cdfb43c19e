"""TinyFlux's world: what a scene says is what its picture shows."""

import random

import pytest

pytest.importorskip("torch")

import torch

from eraseanything_core.tinyflux import concepts, oracle, shapes, world
from lab.tinyflux import captions, scenes


def test_sizes_of_the_world():
    assert [len(group) for group in concepts.CONCEPTS.values()] == [10, 10, 10]
    assert set(concepts.SYNONYMS) == {c for group in concepts.CONCEPTS.values() for c in group}


def test_every_word_names_one_concept():
    words = [word for concept, names in concepts.SYNONYMS.items() for word in (concept, *names)]
    assert len(words) == len(set(words)) == 120
    assert not set(words) & {*world.COLOURS, *world.BACKGROUNDS, *captions.GENERIC}


def test_held_out_templates_are_not_training_templates():
    for kind, templates in captions.HELD_OUT.items():
        assert not set(templates) & set(captions.TRAIN[kind])


@pytest.mark.parametrize("number, style", list(enumerate([None, *shapes.PAINT_STYLES])))
def test_oracle_reads_renders_of_one_object(number, style):
    """Every style with two entities and every entity in at least two styles; 110 renders take a minute."""
    rng, entities = random.Random(str(style)), list(shapes.ENTITIES)
    for entity in (entities[number % 10], entities[(number + 5) % 10]):
        found = oracle.read_object(world.render(scenes.single(rng, entity=entity, style=style)))
        assert (found.entity, found.style) == (entity, style or "flat")


@pytest.mark.parametrize("relation", world.RELATIONS)
def test_oracle_reads_relations(relation):
    rng = random.Random(relation)
    found = [oracle.read_relation(world.render(scenes.related(rng, relation=relation))).relation for _ in range(20)]
    assert found.count(relation) >= 19


@pytest.mark.parametrize("relation", ["beside", "above", "opposite", "divided", "amid", "between"])
def test_oracle_reads_relations_of_two_things_of_one_colour(relation):
    rng = random.Random(relation)
    same_colour = [scenes.related(rng, relation=relation, colours=["red", "red"]) for _ in range(20)]
    assert [oracle.read_relation(world.render(scene)).relation for scene in same_colour].count(relation) >= 19


def test_oracle_forgives_a_pixel_and_not_a_shape():
    scene = scenes.single(random.Random(3), entity="ring", style="outlined")
    picture = world.render(scene)
    assert oracle.read_object(torch.roll(picture, (1, -1), (1, 2))) == oracle.SceneReading("ring", "outlined")
    garbage = picture[:, torch.randperm(96, generator=torch.Generator().manual_seed(0))]
    assert oracle.read_object(garbage).entity is None


def test_oracle_forgives_a_line_that_is_a_pixel_off_on_one_side():
    picture = world.render(world.Scene((world.Object("star", "blue", 48.0, 48.0, 22.0),), "grey", "outlined"))
    bent = torch.cat([picture[:, :, :48], torch.roll(picture, (1, 1), (1, 2))[:, :, 48:]], dim=2)
    assert oracle.read_object(bent) == oracle.SceneReading("star", "outlined")
    torn = torch.cat([picture[:, :, :48], torch.roll(picture, 12, 1)[:, :, 48:]], dim=2)
    assert oracle.read_object(torn).entity is None


def test_oracle_rejects_what_is_no_object():
    torch.manual_seed(0)
    empty = torch.full((3, 96, 96), 0.97)
    halves = world.render(scenes.single(random.Random(0), entity="ball")).roll(48, 2)
    assert oracle.read_object(empty).entity is None
    assert oracle.read_object(torch.rand(3, 96, 96)).entity is None
    assert oracle.read_relation(empty).relation is None
    assert oracle.read_object(halves).entity != "ball"


def test_mask_covers_what_differs_from_the_ground():
    scene = scenes.single(random.Random(3), entity="star", background="white")
    mask = scenes.object_mask(scene, "star") > 0.5
    far = (world.render(scene) - torch.tensor(world.BACKGROUNDS["white"])[:, None, None]).abs().amax(0)
    seen = far > far.max() / 2
    assert (mask & seen).sum() / (mask | seen).sum() > 0.97
    assert scenes.object_mask(scene, "box").sum() == 0


def test_distortions_hit_only_the_word_they_are_aimed_at():
    rng, text = random.Random(1), "a photo of a red star on a white background"
    for kind in captions.DISTORTIONS:
        changed = captions.distort(rng, text, kind, ["star"])
        assert changed != text
        assert [w for w in text.split(" ") if w != "star"] == [
            w for w in changed.split(" ") if w in text.replace("star", "")
        ]
    assert sorted(captions.distort(rng, text, "shuffled").split(" ")) == sorted(text.split(" "))
    with pytest.raises(ValueError, match="no word of"):
        captions.distort(rng, text, "misspelt", ["moon"])


def test_distortions_repeat_with_their_seed():
    texts = [captions.distort(random.Random(5), "a green house", "affixed") for _ in range(2)]
    assert texts[0] == texts[1] != "a green house"
