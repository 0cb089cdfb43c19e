"""What is asked of an eraser of the world of real pictures: nothing that its training saw."""

import pytest
import torch

pytest.importorskip("comfy")

from lab.world import erasures
from lab.world.captions import TRAIN
from lab.world.judge import Reading
from lab.world.scenes import LAYOUTS, STYLES
from lab.world.things import THINGS
from lab.world.words import STYLE_WORDS


@pytest.mark.parametrize("thing", THINGS[:40], ids=lambda thing: thing.name)
def test_a_thing_is_asked_for_by_its_name_or_by_what_is_held_out(thing):
    cells = erasures.cells(thing.name, 4)
    for cell, noun in (
        ("asked", thing.name),
        ("synonym", thing.held_out_synonym),
        ("implicit", thing.held_out_description),
    ):
        for question in cells[cell]:
            assert noun in question.prompt and question.right == {thing.name}
    for cell in ("near", "far"):
        assert all(thing.name not in question.right for question in cells[cell])


def test_neighbours_share_the_nearest_hypernym_and_others_share_none():
    cat = erasures.BY_NAME["cat"]
    near, far = erasures.neighbours(cat)
    assert erasures.BY_NAME["dog"] in near and cat not in near
    assert erasures.BY_NAME["tiger"] not in far, "an animal too"
    assert erasures.BY_NAME["castle"] in far


@pytest.mark.parametrize("concept", [*STYLES, *LAYOUTS])
def test_styles_and_relations_are_asked_for_with_others_beside_them(concept):
    cells = erasures.cells(concept, 12)
    assert {question.concept for question in cells["asked"]} == {concept}
    assert concept not in {question.concept for question in cells["near"]}
    assert len({question.concept for question in cells["near"]}) >= 9


def test_the_object_of_a_style_is_read_in_the_same_pictures():
    cells = erasures.cells("sketch", 6)
    assert [q.prompt for q in cells["object"]] == [q.prompt for q in cells["asked"]]
    assert all(q.head == "thing" for q in cells["object"])
    assert all(STYLE_WORDS["sketch"][2] in q.prompt for q in cells["synonym"])


def test_no_template_of_training_is_asked():
    prompts = [q.prompt for cell in erasures.cells("cat", 30).values() for q in cell]
    assert not any(prompt.startswith(("a photo of", "a picture of", "an image of")) for prompt in prompts)
    assert TRAIN.alone[1] == "a photo of {thing}"


def test_an_unknown_concept_is_refused_by_name():
    with pytest.raises(ValueError, match="the world has no unicorn pizza"):
        erasures.cells("unicorn pizza", 1)


def test_pictures_of_one_prompt_are_drawn_once():
    drawn = []

    class Sampler:
        def pictures(self, prompts, seeds):
            drawn.append(prompts)
            return torch.zeros(len(prompts), 3, 96, 96)

    def reader(pictures):
        return [Reading(("cat", "dog"), "sketch", "alone")] * len(pictures)

    counts = erasures.shown(Sampler(), erasures.cells("sketch", 3), {"one": reader})
    assert len(drawn) == 4, "asked and object are the same pictures"
    assert counts["asked"] == {"one": 3} and counts["near"] == {"one": 0}
