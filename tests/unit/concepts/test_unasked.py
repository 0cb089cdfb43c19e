"""Looks that no prompt names, and the sets that the pack ships."""

import json
import random
from dataclasses import replace

import pytest

from eraseanything_core.concepts import prompts, ready_sets
from eraseanything_core.concepts.concept_set import ConceptSet
from eraseanything_core.concepts.prompts import Prompt
from eraseanything_core.training.config import EraseConfig

BLUR = ConceptSet(
    "bokeh",
    synonyms=("blurred background",),
    prompts=("a portrait of a woman", "a street at night"),
    retain=("a map of an island",),
    unasked="{}, blurred background",
    wanted="{}, in sharp focus",
)


def test_the_student_gets_an_ordinary_prompt_and_the_teacher_both_looks():
    config = replace(EraseConfig("dog"), **BLUR.settings())
    rng = random.Random(0)
    drawn = [prompts.draw_unasked(config, rng) for _ in range(20)]
    assert {sentence.concept.text for sentence in drawn} == set(BLUR.prompts)
    for sentence in drawn:
        text = sentence.concept.text
        assert sentence.concept == Prompt(text) and sentence.neutral == Prompt(f"{text}, in sharp focus")
        assert sentence.teacher_concept() == Prompt(f"{text}, blurred background")
        assert sentence.prompts() == [sentence.concept, sentence.neutral, sentence.unwanted]


def test_a_sentence_with_a_word_asks_the_teacher_for_the_word():
    sentence = prompts.draw_sentence(EraseConfig("dog"), random.Random(0))
    assert sentence.unwanted is None and sentence.teacher_concept() == sentence.concept


def test_the_watched_prompts_are_never_trained_on():
    config = replace(EraseConfig("dog"), **BLUR.settings())
    config = replace(config, templates=(prompts.MONITOR_SCENES[0],), look_pictures=5)
    sentences, retained = prompts.monitor_unasked(config)
    # Two are left and taken in turn; of what stays there are half as many, rounded up.
    second, third = prompts.MONITOR_SCENES[1:]
    assert [sentence.concept.text for sentence in sentences] == [second, third, second, third, second]
    assert [sentence.concept.text for sentence in retained] == list(prompts.MONITOR_DRAWINGS)
    with pytest.raises(ValueError, match="every prompt to watch is among the templates"):
        prompts.monitor_unasked(replace(config, templates=prompts.MONITOR_SCENES))


def test_a_set_of_many_prompts_keeps_some_from_training():
    ordinary = tuple(f"a street with {count} houses" for count in range(3, 13))
    stays = tuple(f"a map of {count} islands" for count in range(3, 19))
    settings = replace(BLUR, prompts=ordinary, retain=stays).settings()
    assert settings["templates"] == ordinary[:-4] and settings["held_out"] == ordinary[-4:]
    assert settings["watched"] == (stays[1], stays[9]) and not set(settings["watched"]) & set(settings["retain"])
    sentences, kept = prompts.monitor_unasked(EraseConfig(**settings, look_pictures=4))
    assert tuple(sentence.concept.text for sentence in sentences) == ordinary[-4:]
    assert [sentence.concept.text for sentence in kept] == [stays[1], stays[9]]
    assert sentences[0].neutral.text == f"{ordinary[-4]}, in sharp focus"


@pytest.mark.parametrize("name", ("blurred_background", "plastic_skin", "watermark_and_text"))
def test_no_ready_set_trains_on_what_is_watched(name):
    concepts = ConceptSet.from_json(ready_sets.text(name))
    watched = {*prompts.MONITOR_SCENES, *prompts.MONITOR_DRAWINGS}
    assert concepts.unasked and not watched & {*concepts.prompts, *concepts.retain}


def test_the_trainer_reads_no_attention_where_no_word_is():
    settings = BLUR.settings()
    assert settings["attn_weight"] == settings["rsc_weight"] == 0 and settings["templates"] == BLUR.prompts
    assert {"concept", "synonyms", "irrelevant", "tiers", "neutral", "retain"} <= set(settings)
    assert not {"unasked", "wanted"} & set(ConceptSet("cat").settings())


def test_the_fields_are_written_where_they_are_used():
    assert ConceptSet.from_json(BLUR.to_json()) == BLUR
    assert not {"unasked", "wanted"} & set(json.loads(ConceptSet("cat").to_json()))
    assert "nobody asks for: {}, blurred background" in BLUR.text()


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"wanted": ""}, "wanted must hold {} once"),
        ({"unasked": "blurred"}, "unasked must hold {} once"),
        ({"prompts": ()}, "needs ordinary prompts"),
        ({"prompts": ("a photo with bokeh",)}, "must be an ordinary one, without 'bokeh'"),
        ({"prompts": ("a photo of {}",)}, "must be an ordinary one, without '{}'"),
        ({"irrelevant": {"far": (("cloud", 0.3),)}}, "has no irrelevant words"),
        ({"retain": ("a blurred background",)}, "is to be kept and holds 'blurred background'"),
    ],
)
def test_a_set_that_does_not_hold_together_is_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        ConceptSet.from_json(replace(BLUR, **change).to_json())


UNASKED = {"blurred_background", "plastic_skin", "watermark_and_text"}


def test_the_ready_sets_are_these():
    assert set(ready_sets.names()) == UNASKED | {"logo", "nudity", "van_gogh_style", "napoleon"}
    with pytest.raises(ValueError, match="no ready set of that name; there are blurred_background"):
        ready_sets.text("../known_words")


@pytest.mark.parametrize("name", ready_sets.names())
def test_a_ready_set_holds_together_and_says_what_it_does(name):
    concepts = ConceptSet.from_json(ready_sets.text(name))
    assert concepts.to_json() == ready_sets.text(name)
    assert concepts.source.endswith(".") and concepts.source.count(".") == 1 and len(concepts.source.split()) <= 35
    assert bool(concepts.unasked) == (name in UNASKED)
    assert len(concepts.prompts) >= 6 and len(concepts.retain) >= 7
    assert concepts.unasked or concepts.neutral
