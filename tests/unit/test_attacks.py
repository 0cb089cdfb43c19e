"""Attacks by the prompt: they hit the concept, leave the rest alone, and repeat."""

import random

import pytest

from eraseanything_core.evaluation import prompt_attacks
from eraseanything_core.evaluation.prompt_attacks import ATTACKS, attack

PROMPT = "a photo of Nike on a red background, soft light"
SYNONYMS = ("swoosh",)


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_repeats_and_changes_with_the_seed(kind):
    made = [attack(PROMPT, "Nike", kind, seed, SYNONYMS) for seed in range(20)]
    assert made == [attack(PROMPT, "Nike", kind, seed, SYNONYMS) for seed in range(20)]
    assert PROMPT not in made
    assert len(set(made)) > 1 or kind == "synonym"


@pytest.mark.parametrize("kind", [kind for kind in ATTACKS if kind != "shuffle"])
def test_only_the_concept_is_hit(kind):
    for seed in range(20):
        made = attack(PROMPT, "Nike", kind, seed, SYNONYMS)
        assert made.startswith("a photo of ") and made.endswith(" on a red background, soft light")


def test_shuffling_keeps_the_words():
    for seed in range(20):
        made = attack("a photo of Van Gogh on a wall", "Van Gogh", "shuffle", seed)
        assert sorted(made.split()) == sorted("a photo of Van Gogh on a wall".split())
        assert "Van Gogh" in made


@pytest.mark.parametrize(
    "mutate, length",
    [
        (prompt_attacks.double, 5),
        (prompt_attacks.delete, 3),
        (prompt_attacks.transpose, 4),
        (prompt_attacks.neighbour, 4),
        (prompt_attacks.homoglyph, 4),
    ],
)
def test_a_misspelling_is_one_edit(mutate, length):
    for seed in range(50):
        made = mutate(random.Random(seed), "Nike")
        assert len(made) == length and made != "Nike"
        if mutate in (prompt_attacks.neighbour, prompt_attacks.homoglyph):
            assert sum(a != b for a, b in zip(made, "Nike")) == 1


def test_a_neighbour_key_is_beside():
    assert (
        prompt_attacks.ADJACENT_KEYS["q"] == "w"
        and prompt_attacks.ADJACENT_KEYS["s"] == "ad"
        and prompt_attacks.ADJACENT_KEYS["m"] == "n"
    )


def test_look_alikes_look_alike_and_are_others():
    made = prompt_attacks.homoglyph(random.Random(0), "case")
    assert made != "case" and not made.isascii()
    with pytest.raises(ValueError, match="look-alike"):
        prompt_attacks.homoglyph(random.Random(0), "drum")


def test_affixes_keep_the_word_and_repetition_repeats_it():
    for seed in range(30):
        rng = random.Random(seed)
        assert prompt_attacks.prefix(rng, "ball").endswith("ball") and prompt_attacks.suffix(rng, "ball").startswith(
            "ball"
        )
        assert prompt_attacks.repeat(rng, "ball").count("ball") in (2, 3)
        assert prompt_attacks.case(rng, "ball").lower() == "ball"


def test_every_occurrence_is_hit_alike():
    made = attack("a ball and a ball", "ball", "double", 3)
    first, second = made.split(" and ")
    assert first == second != "a ball"


def test_words_that_only_hold_the_concept_are_left():
    assert attack("a carpet in a car", "car", "synonym", 0, ("bus",)) == "a carpet in a bus"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("a dog", "cat", "double", 0), "does not hold the concept 'cat'"),
        (("a cat", "cat", "synonym", 0), "needs synonyms"),
        (("a cat", "cat", "shout", 0), "no attack 'shout'; known: shuffle"),
        (("route 66", "66", "case", 0), "has no casing"),
    ],
)
def test_what_cannot_be_attacked_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        attack(*arguments)


def test_every_attack_is_of_one_family():
    assert sorted(kind for kinds in prompt_attacks.FAMILIES.values() for kind in kinds) == sorted(ATTACKS)


def test_many_prompts_are_attacked_in_order_and_can_be_stopped():
    prompts = ["a cat", "the cat sat"]
    calls = []
    attacks = prompt_attacks.attack_all(
        prompts, "cat", "double", range(3, 5), progress=lambda done, total: calls.append((done, total))
    )
    assert attacks == [attack(prompt, "cat", "double", seed) for prompt in prompts for seed in (3, 4)]
    assert calls == [(2, 4), (4, 4)]

    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        prompt_attacks.attack_all(prompts, "cat", "double", range(2), progress=stop)
    with pytest.raises(ValueError, match="no prompt to attack"):
        prompt_attacks.attack_all([], "cat", "double", range(2))
