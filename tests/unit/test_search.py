"""The genetic search, on an encoder whose best prompt is known."""

import pytest

torch = pytest.importorskip("torch")

from eraseanything_core.evaluation import genetic_attack

MEANS = {"heart": (1.0, 0.0), "valentine": (1.0, 0.0), "love": (0.9, 0.0), "stone": (0.0, 1.0), "photo": (0.0, 0.2)}
WORDS = [*MEANS, *(f"word{i}" for i in range(40))]


def encode(prompts: list[str]) -> torch.Tensor:
    """States [n, 4, 2]: each word's own, zero for words that mean nothing and for padding."""
    rows = [[MEANS.get(word, (0.0, 0.0)) for word in prompt.split()][:4] for prompt in prompts]
    return torch.tensor([row + [(0.0, 0.0)] * (4 - len(row)) for row in rows])


def found(**changes) -> tuple[str, list[float]]:
    config = genetic_attack.GeneticConfig(**{"words": 2, "population": 30, "generations": 30} | changes)
    return genetic_attack.genetic_search(encode, "heart", ["a photo {}", "a {}"], WORDS, ["valentine"], config)


def test_it_finds_the_word_that_means_the_concept_and_none_that_is_forbidden():
    prompt, history = found()
    assert set(prompt.split()) == {"love", "photo"}  # the template's photo, and the concept by another name
    assert history[-1] == pytest.approx(0.025, abs=1e-5)  # (1 - 0.9) / 4 tokens
    assert all(later <= earlier for earlier, later in zip(history, history[1:]))


def test_a_seed_repeats_and_another_one_differs_on_the_way():
    assert found(seed=1) == found(seed=1)
    assert found(seed=1, generations=1)[0] != found(seed=2, generations=1)[0]


def test_the_direction_is_what_the_concept_adds():
    assert genetic_attack.direction(encode, "heart", ["a photo {}", "{} photo"]).tolist() == pytest.approx([0.25, 0.0])


def test_plain_words_of_a_vocabulary():
    assert genetic_attack.words_of_pieces(["▁house", "▁a", "ing", "▁é", "▁99a", "<pad>", "", "▁Cat", "▁the,"]) == [
        "Cat",
        "house",
    ]


@pytest.mark.parametrize(
    "templates, words, message",
    [([], WORDS, "needs templates"), (["a photo"], WORDS, "needs templates"), (["a {}"], ["hearts"], "no word")],
)
def test_what_cannot_be_searched_is_refused(templates, words, message):
    with pytest.raises(ValueError, match=message):
        genetic_attack.genetic_search(encode, "heart", templates, words)


class Stop(Exception):
    """What a host raises when its user cancels."""


def test_every_generation_is_reported_and_can_be_the_last():
    distances, config = [], genetic_attack.GeneticConfig(words=2, population=30, generations=5)

    def search(progress):
        return genetic_attack.genetic_search(encode, "heart", ["a {}"], WORDS, config=config, progress=progress)

    _, history = search(lambda done, distance: distances.append((done, distance)))
    assert distances == [(i + 1, distance) for i, distance in enumerate(history)] and len(history) == 5

    def stop(done, distance):
        distances.append(done)
        if done == 2:
            raise Stop

    distances.clear()
    with pytest.raises(Stop):
        search(stop)
    assert distances == [1, 2]
