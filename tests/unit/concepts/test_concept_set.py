"""The ConceptSet: JSON that people edit, and what the trainer takes from it."""

import json
import time
from dataclasses import replace

import pytest

from eraseanything_core.concepts.concept_set import ConceptSet, Word, erased
from eraseanything_core.evaluation import prompt_sets
from eraseanything_core.training.config import EraseConfig

CAT = ConceptSet(
    "cat",
    synonyms=("kitty",),
    variants=("cats",),
    irrelevant={"no_relation": (Word("cloud", 0.1),), "far": (Word("chair", 0.3), Word("café", 0.25))},
    prompts=("a photo of a cat", "{} on a sofa"),
    retain=("a photo of a dog",),
    anchors=("animal",),
    neutral="{animal}",
    source="typed",
)


def test_json_gives_the_same_set_back_and_is_short():
    text = CAT.to_json()
    assert ConceptSet.from_json(text) == CAT
    assert json.loads(text)["irrelevant"]["far"] == [["chair", 0.3], ["café", 0.25]]
    assert len(text.splitlines()) == 15 and '    "far": [["chair", 0.3], ["café", 0.25]]\n' in text


def test_a_set_written_by_hand_needs_only_the_concept():
    assert ConceptSet.from_json('{"concept": "cat"}') == ConceptSet("cat")


def test_the_trainer_takes_all_other_words_and_the_tiers():
    config = replace(EraseConfig("dog", k_irrelevant=3), **CAT.settings())
    assert config.concept == "cat" and config.synonyms == ("kitty", "cats") and config.neutral == "{animal}"
    assert config.irrelevant == ("cloud", "chair", "café") and config.tiers == (("cloud",), ("chair", "café"))
    assert config.templates == CAT.prompts and config.retain == CAT.retain
    assert replace(config, **ConceptSet("cat").settings()).templates == CAT.prompts
    assert config.rsc_weight == 0.05 and replace(config, **ConceptSet("cat").settings()).rsc_weight == 0


def test_a_set_takes_the_place_of_typed_words():
    assert erased(None, "dog", "doggy,\nhound") == ("dog", ("doggy", "hound")) and erased(None, "dog") == ("dog", ())
    assert erased(CAT, "dog", "doggy") == ("cat", ("kitty", "cats"))


def test_a_judge_is_asked_for_the_concept_by_each_of_its_words():
    assert [CAT.label(wanted) for wanted in ("", "Kitty", "cats", "cat", "dog", "cat flap")] == [
        "cat", "cat", "cat", "cat", "dog", "cat flap",
    ]  # fmt: skip
    assert CAT.labels() == ("cat", "animal", "cloud", "chair", "café") and ConceptSet("cat").labels() == ("cat",)


def test_a_prompt_set_of_a_concept_set():
    rows = prompt_sets.from_concept_set(CAT).rows
    assert [row.prompt for row in rows] == ["a photo of a cat", "cat on a sofa"]
    assert [row.seed for row in rows] == [0, 1] and {(row.label, row.guidance) for row in rows} == {("cat", 3.5)}
    with pytest.raises(ValueError, match="the set of 'cat' has no prompts: add some"):
        prompt_sets.from_concept_set(ConceptSet("cat"))


BAD = {
    "{": "no JSON: line 1",
    "[]": "must be a JSON object",
    "{}": "no concept",
    '{"concept": "cat", "synonym": []}': "has the key 'synonym'; there are concept, category, synonyms",
    '{"concept": 3}': "concept must be a text",
    '{"concept": "cat", "category": "thing"}': "'thing' is none of entity, style",
    '{"concept": "cat", "synonyms": "kitty"}': "synonyms must be a list of texts",
    '{"concept": "cat", "synonyms": [" "]}': "synonyms must be a list of texts",
    '{"concept": "cat", "irrelevant": ["cloud"]}': "irrelevant must have lists under no_relation, far, mid",
    '{"concept": "cat", "irrelevant": {"near": []}}': "the tier 'near'; there are no_relation, far, mid",
    '{"concept": "cat", "irrelevant": {"far": ["cloud"]}}': r'"cloud" is no \[word, score\]',
    '{"concept": "cat", "irrelevant": {"far": [["cloud", true]]}}': r"is no \[word, score\]",
    '{"concept": "cat", "irrelevant": {"far": [["cloud", 7]]}}': "the score of 'cloud' is 7.0",
    '{"concept": "cat", "irrelevant": {"far": [["cloud", 1' + "0" * 400 + "]]}}": "the score of 'cloud' is inf",
    '{"concept": "cat", "irrelevant": {"far": [["cloud", 1' + "0" * 5000 + "]]}}": "the score of 'cloud' is inf",
    '{"concept": "cat", "prompts": ["a cat"], "prompts": ["two cats"]}': "has the key 'prompts' twice",
    '{"concept": "cat", "irrelevant": {"far": [["cloud", NaN]]}}': "the score of 'cloud' is nan",
    '{"concept": "cat", "irrelevant": {"far": [["wild cats", 0.3]]}}': "'wild cats' is to be kept and holds 'cat'",
    '{"concept": "cat", "synonyms": ["puss"], "retain": ["a puss"]}': "'a puss' is to be kept and holds 'puss'",
    '{"concept": "cat", "prompts": ["a photo of a dog"]}': "neither {} nor the concept 'cat'",
}


@pytest.mark.parametrize("text", BAD)
def test_a_set_that_is_wrong_says_where_in_one_line(text):
    with pytest.raises(ValueError, match=BAD[text]) as caught:
        ConceptSet.from_json(text)
    assert "\n" not in str(caught.value)


def test_the_text_shows_everything():
    text = CAT.text()
    for shown in ("cat (entity)", "far: chair 0.30, café 0.25", "synonyms: kitty", "variants: cats", "{} on a sofa"):
        assert shown in text
    assert "neutral: {animal}" in text and text.endswith("source: typed")


def test_a_large_set_is_checked_at_once():
    """ComfyUI reads the set in its event loop, whenever a workflow that holds it is queued."""
    words = [f"red fox {i}" for i in range(600)]
    kept = [f"a red fox {i} in the snow" for i in range(600, 1200)]
    text = json.dumps({"concept": "fox 1200", "synonyms": words, "retain": kept})
    begin = time.process_time()
    assert len(ConceptSet.from_json(text).retain) == 600
    with pytest.raises(ValueError, match="'a red fox 7 in the snow' is to be kept and holds 'red fox 7'"):
        ConceptSet.from_json(text.replace("a red fox 1199 in", "a red fox 7 in"))
    assert time.process_time() - begin < 2


TOO_LARGE = {
    "the concept set has 1,000,0": {"concept": "cat", "source": "x" * 1_000_000},
    "synonyms has 5,001 entries: shorten it to 5,000": {"concept": "cat", "synonyms": ["kitty"] * 5_001},
    "irrelevant 'far' has 5,001 entries": {"concept": "cat", "irrelevant": {"far": [["cloud", 0.3]] * 5_001}},
    "concept has 2,001 characters: shorten it to 2,000": {"concept": "c" * 2_001},
    "an entry of retain has 2,001 characters": {"concept": "cat", "retain": ["d" * 2_001]},
    "is to be erased and has more than 50 words": {"concept": "cat", "synonyms": ["red " * 51]},
    "a word of irrelevant has 2,001 characters": {"concept": "cat", "irrelevant": {"far": [["d" * 2_001, 0.3]]}},
}


@pytest.mark.parametrize("reason", TOO_LARGE)
def test_a_set_that_is_too_large_is_refused_by_name(reason):
    with pytest.raises(ValueError, match=reason) as caught:
        ConceptSet.from_json(json.dumps(TOO_LARGE[reason]))
    assert len(str(caught.value)) < 200


def test_json_nested_without_end_is_refused():
    with pytest.raises(ValueError, match="nested too deeply"):
        ConceptSet.from_json('{"concept": ' + "[" * 100_000)
