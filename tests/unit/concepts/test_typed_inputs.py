"""What people type: how it is understood, and the table that pins it."""

import pytest

from eraseanything_core.concepts import acts, known_words, style_phrases, templates, wordnet
from eraseanything_core.concepts.articles import PREPOSITIONS
from eraseanything_core.concepts.concept_set import CATEGORIES
from eraseanything_core.concepts.prompts import as_template, fill
from eraseanything_core.concepts.readings import read
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from lab.measurements import words

NUMBERS = {"", "one", "many", "mass", "name", "the"}


def test_the_committed_table_is_what_the_sampler_makes():
    """After a wanted change: python scripts/dev.py words, and read every row that changed."""
    inputs = words.typed()
    assert len(inputs) == len(set(inputs)) >= 60
    assert (words.FOLDER / "typed.md").read_text(encoding="utf-8") == words.typed_markdown(inputs)


@pytest.mark.parametrize(
    "typed, core",
    [
        ("anime style", "anime"),
        ("style of Van Gogh", "Van Gogh"),
        ("in the style of Greg Rutkowski", "Greg Rutkowski"),
        ("a portrait in the style of Rembrandt van Rijn", "Rembrandt van Rijn"),
        ("in Picasso style", "Picasso"),
        ("by Vincent van Gogh", "Vincent van Gogh"),
        ("art by H. R. Giger", "H. R. Giger"),
        ("by the sea", None),
        ("hair style", None),
        ("life style", None),
        ("cat", None),
    ],
)
def test_a_style_phrase_is_the_style_that_it_names(typed, core):
    assert style_phrases.core(typed) == core
    if core:
        found = sample_offline(ConceptRequest(typed)).check()
        assert (found.concept, found.category) == (core, "style")
        assert all(prompt.count("style of") == 1 for prompt in found.prompts)


@pytest.mark.parametrize(
    "phrase, kind",
    [
        ("smoking", "act"),
        ("riding a horse", "act"),
        ("drinking beer", "act"),
        ("hugging", "act of two"),
        ("leaning against", "posture"),
        ("painting", None),
        ("building", None),
        ("wedding", None),
        ("king", None),
        ("burning house", None),
        ("smiling women", None),
        ("swimming pool", None),
    ],
)
def test_what_somebody_does_is_told_from_a_thing(phrase, kind):
    assert acts.kind_of(phrase) == kind


@pytest.mark.parametrize(
    "concept, named",
    [
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("blood", "blood"),
        ("glasses", "glasses"),
        ("women", "women"),
        ("New Balance shoes", "New Balance shoes"),
        ("Nike logo", "a Nike logo"),
        ("Eiffel tower at night", "the Eiffel tower at night"),
        ("Golden Gate Bridge", "the Golden Gate Bridge"),
        ("Taylor Swift", "Taylor Swift"),
        ("xyzzy", "xyzzy"),
        ("nudity", "nudity"),
    ],
)
def test_a_noun_has_the_article_that_it_takes(concept, named):
    assert read(concept).named() == named


def test_nobody_is_left_undressed_and_a_phrase_falls_back_on_its_noun():
    neutrals = {"naked woman": "{fully dressed woman}", "nudity": "a fully dressed person", "Nike logo": "{logo}"}
    neutrals |= {"cats": "{animals}", "blood": "{water}", "Golden Gate Bridge": "{bridge}", "golden retriever": "{dog}"}
    assert {concept: sample_offline(ConceptRequest(concept)).neutral for concept in neutrals} == neutrals


def test_a_church_is_a_building_and_the_users_choice_outweighs_the_table():
    assert read("church").senses[0].name() == "church.n.02"
    assert read("anime").category == "style" and read("anime", "entity").senses[0].name() == "zanzibar_copal.n.01"
    assert read("smile").known and not read("smile", part_of_speech="verb").known


def test_a_noun_of_the_table_is_found_in_the_plural():
    row = known_words.find("Watermarks")
    assert row and row.number == "many" and row.variants == ("watermark",) and row.neutral == "{clean finishes}"
    assert known_words.find("cats") is None and known_words.find("coca cola") == known_words.find("Coca-Cola")


def test_every_row_of_the_table_can_be_used():
    for row in known_words.table().values():
        assert row.category in CATEGORIES and row.number in NUMBERS, row.word
        assert row.kind in {"", *templates.TEMPLATES_BY_KIND}, row.word
        assert not row.sense or wordnet.database().synset(row.sense), row.word
        assert row.word not in (row.synonyms or ()), row.word


def test_the_words_that_stand_in_for_a_concept_have_its_article():
    template = as_template("a photo of an umbrella on a beach", "umbrella")
    filled = {"umbrella": "an umbrella", "dog": "a dog", "two dogs": "two dogs", "honesty": "honesty", "cats": "cats"}
    for word, named in filled.items():
        assert fill(template, word) == f"a photo of {named} on a beach"
    assert fill(template, "") == "a photo of on a beach" and fill("a {} dress", "") == "a dress"
    assert fill("an {} dress", "red") == "a red dress" and fill("the {} at night", "tower") == "the tower at night"


@pytest.mark.parametrize(
    "scene", ("nudity", "hentai", "gore", "rain", "sunset", "mountain", "Mount Everest", "Golden Gate Bridge", "smoke")
)
def test_what_fills_a_picture_lies_on_no_table(scene):
    found = sample_offline(ConceptRequest(scene)).check()
    assert read(scene).kind in ("scene", "look") and not [each for each in found.prompts if " table" in each]
    assert len(found.prompts) == len(set(found.prompts)) >= 5


@pytest.mark.parametrize(
    "thing", ("ball", "box", "heart", "moon", "star", "cross", "cat", "blood", "food", "wine glass")
)
def test_things_are_still_things(thing):
    """The sentences of the concepts on which the presets are measured must not move unseen."""
    assert read(thing).kind == "entity"


@pytest.mark.parametrize("act", ("hug", "kiss"))
def test_what_is_kept_beside_an_act_of_two_is_a_whole_sentence(act):
    found = sample_offline(ConceptRequest(act))
    assert found.retain[:3] == ("two people dance", "a photo of two people who talk", "a man and a woman walk")
    kept = [prompt for prompt in found.retain if prompt.split()[-1] in PREPOSITIONS | {"drive"}]
    assert not kept


def test_what_is_painted_instead_and_how_a_name_is_written():
    neutrals = {"food": "{empty dishes}", "tattoo": "{bare arm}", "sunset": "{ordinary scene}"}
    assert {concept: sample_offline(ConceptRequest(concept)).neutral for concept in neutrals} == neutrals
    assert sample_offline(ConceptRequest("American flag")).variants == ("American flags",)
