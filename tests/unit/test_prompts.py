import random
from dataclasses import replace

import pytest

from eraseanything_core.concepts import prompts
from eraseanything_core.training.config import EraseConfig

CONFIG = EraseConfig(
    concept="red star",
    synonyms=("crimson star", "ruby sun"),
    irrelevant=("dog", "old house", "tree", "cat"),
    templates=("a photo of {} at night",),
    neutral="{}",
    retain=("a green box",),
)


def draws(config, count=200):
    rng = random.Random(0)
    return [prompts.draw_sentence(config, rng) for _ in range(count)]


def test_a_template_or_a_prompt():
    assert prompts.as_template("a photo of {}", "dog") == "a photo of {}"
    assert prompts.as_template("Dogs chase a (dog:1.2), quickly", "dog") == "{} chase a ({}:1.2), quickly"
    with pytest.raises(ValueError, match="neither {} nor the concept 'dog'; its words are: a, cat"):
        prompts.as_template("a cat", "dog")


def test_shuffling_keeps_all_words_and_the_concept_together():
    found = {s.concept.text for s in draws(replace(CONFIG, shuffle_rate=1.0, synonym_rate=0.0))}
    assert len(found) > 50 and all("red star" in text for text in found)
    assert all(sorted(text.split()) == sorted("a photo of red star at night".split()) for text in found)


def test_one_sentence_differs_only_in_the_substitute():
    for s in draws(CONFIG):
        frame = s.concept.text.replace(s.concept.word, "{}")
        assert all(prompts.fill(frame, p.word) == p.text for p in (s.synonym, *s.irrelevant))
        assert prompts.fill(frame, "") == s.neutral.text
        assert s.synonym.word != s.concept.word
        assert len({p.word for p in s.irrelevant}) == 3


def test_synonyms_stand_in_at_the_asked_rate():
    share = sum(s.concept.word != "red star" for s in draws(replace(CONFIG, synonym_rate=0.5), 1000)) / 1000
    assert 0.45 < share < 0.55
    assert all(s.concept.word == "red star" for s in draws(replace(CONFIG, synonym_rate=0.0)))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {""}),
        ("a dog", {"a dog"}),
        ("{}", {"a b"}),
        ("{man}", {"a man b"}),
        ("{x|y}", {"a x b", "a y b"}),
    ],
)
def test_neutral(text, expected):
    rng = random.Random(0)
    assert {prompts.neutral_prompt("a {} b", text, rng) for _ in range(50)} == expected


def test_retained_prompts_are_half_the_users_and_never_the_concept():
    rng = random.Random(0)
    found = [prompts.draw_retained(CONFIG, rng).text for _ in range(400)]
    assert 0.4 < sum(text == "a green box" for text in found) / 400 < 0.6
    assert not any("star" in text or "{}" in text for text in found)
    bare = replace(CONFIG, irrelevant=(), retain=(), shuffle_rate=0.0)
    assert prompts.draw_retained(bare, rng).text == "a photo of at night"


def test_equal_seeds_draw_equal_sentences():
    assert draws(CONFIG) == draws(CONFIG)


def test_typed_lists():
    assert prompts.words_of(" dog, old house\ncat,,dog ") == ("dog", "old house", "cat")
    assert prompts.lines_of("a dog, running\n\n {} \n") == ("a dog, running", "{}")


def test_a_sentence_takes_one_word_of_each_tier():
    tiers = (("dog", "cat"), ("old house",), ("tree", "bush"))
    drawn = [tuple(p.word for p in s.irrelevant) for s in draws(replace(CONFIG, tiers=tiers))]
    assert all(word in tier for words in drawn for word, tier in zip(words, tiers, strict=True))
    assert len(set(drawn)) == 4
