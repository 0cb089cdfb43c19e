"""A prompt that brings the concept back without naming it: a genetic search in the text encoder.

After Ring-A-Bell (Tsai et al., ICLR 2024). The concept's direction is the mean difference between the encodings of
prompts with and without it. The target is an innocent prompt moved along that direction. The search combines words
until their encoding comes near to the target. It needs the text encoder only, neither the eraser nor the model.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..concepts import matching
from ..concepts.prompts import fill

Encode = Callable[[list[str]], Tensor]  # prompts to states [n, tokens, features]
GenerationDone = Callable[[int, float], None]  # generations done, distance of the best prompt
Candidate = tuple[str, ...]  # the words of a prompt


@dataclass(frozen=True)
class GeneticConfig:
    """How long the prompt is, how far the target lies, and how much is tried.

    Attributes:
        words: of the prompt.
        eta: how far the target lies along the concept's direction.
        population: prompts of one generation.
        generations: how many.
        survivors: share of a generation that the next one descends from; survivors stay in it unchanged.
        mutation: chance of each word of a child to be drawn anew.
        seed: of the search.
    """

    words: int = 6
    eta: float = 1.0
    population: int = 60
    generations: int = 40
    survivors: float = 0.3
    mutation: float = 0.15
    seed: int = 0


def words_of_pieces(pieces: Iterable[str]) -> list[str]:
    """Plain words among a SentencePiece vocabulary: those that begin a word and hold only letters."""
    # "▁" marks the begin of a word; shorter pieces are mostly fragments.
    words = set()
    for piece in pieces:
        word = piece[1:]
        if piece.startswith("▁") and len(word) > 2 and word.isascii() and word.isalpha():
            words.add(word)
    return sorted(words)


def direction(encode: Encode, concept: str, templates: Sequence[str]) -> Tensor:
    """What the concept adds to a prompt, [features]: the mean over templates and tokens."""
    with_concept = encode([fill(template, concept) for template in templates])
    without = encode([fill(template, "") for template in templates])
    return (with_concept.mean(1) - without.mean(1)).mean(0)


def allowed_words(vocabulary: Iterable[str], forbidden: Sequence[str]) -> list[str]:
    """The words of a vocabulary that neither match a forbidden word nor contain one.

    Raises:
        ValueError: none is left.
    """
    words = []
    lowered = list(map(str.lower, forbidden))
    for word in vocabulary:
        if matching.first_occurring(word, forbidden) is not None:
            continue
        # A word that contains a forbidden one would name the concept as well: "heartbeat" for "heart".
        if not any(other in word.lower() for other in lowered):
            words.append(word)
    if not words:
        raise ValueError("no word of the vocabulary may be used: give more words or forbid fewer")
    return words


def genetic_search(
    encode: Encode,
    concept: str,
    templates: Sequence[str],
    vocabulary: Iterable[str],
    forbidden: Sequence[str] = (),
    config: GeneticConfig = GeneticConfig(),
    progress: GenerationDone | None = None,
) -> tuple[str, list[float]]:
    """Searches the prompt whose mean state is nearest to that of a bare template plus the concept's direction.

    Args:
        encode: the text encoder.
        concept: is not among the words of the prompt, nor is any word that holds it.
        templates: prompts with {} for the concept; the first without it is the one that is moved.
        vocabulary: words to combine.
        forbidden: further words that must not be used, such as synonyms.
        config: the size of the search.
        progress: called as progress(generations done, distance) after every generation; what it raises ends the
            search.

    Returns:
        The prompt, and the distance of the best one in every generation.

    Raises:
        ValueError: no template with {}, or no word that may be used.
    """
    if not templates or not all("{}" in template for template in templates):
        raise ValueError("the search needs templates with {} for the concept")
    words = allowed_words(vocabulary, [concept, *forbidden])
    bare = encode([fill(templates[0], "")]).mean(1)
    target = bare + config.eta * direction(encode, concept, templates)
    rng = random.Random(config.seed)
    population = [tuple(rng.choices(words, k=config.words)) for _ in range(config.population)]
    survivor_count = max(2, int(config.survivors * config.population))  # a child needs two parents
    distances: dict[Candidate, float] = {}
    survivors: list[Candidate] = []
    history = []
    for generation in range(config.generations):
        # Survivors keep their distance, so that only new prompts cost an encoding.
        _measure(encode, population, target, distances)
        # The words decide between equal distances: a set has no order that a seed could repeat.
        ranked = sorted(set(population), key=lambda candidate: (distances[candidate], candidate))
        survivors = ranked[:survivor_count]
        distances = {candidate: distances[candidate] for candidate in survivors}
        history.append(distances[survivors[0]])
        population = list(survivors)
        while len(population) < config.population:
            population.append(_child(rng, survivors, words, config))
        if progress:
            progress(generation + 1, history[-1])
    return " ".join(survivors[0]), history


def _measure(
    encode: Encode, candidates: Sequence[Candidate], target: Tensor, distances: dict[Candidate, float]
) -> None:
    """Adds to `distances` how far the mean states of new candidates are from the target."""
    new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in distances]
    if new:
        states = encode(list(map(" ".join, new))).mean(1)
        distances |= dict(zip(new, (states - target).norm(dim=1).tolist()))


def _child(rng: random.Random, parents: Sequence[Candidate], words: Sequence[str], config: GeneticConfig) -> Candidate:
    """Two parents cut at one place and joined, some words drawn anew."""
    first, second = rng.sample(parents, 2)
    cut = rng.randrange(1, config.words) if config.words > 1 else 0
    child = []
    for word in first[:cut] + second[cut:]:
        child.append(rng.choice(words) if rng.random() < config.mutation else word)
    return tuple(child)
