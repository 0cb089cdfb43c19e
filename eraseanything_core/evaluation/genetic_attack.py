"""A prompt that brings the concept back without naming it: a genetic search in the text encoder.

After Ring-A-Bell (Tsai et al., ICLR 2024): the concept's direction is the mean difference between the encodings of
prompts with and without it, the target is an innocent prompt moved along it, and words are bred until their encoding
comes near. It needs the text encoder only, neither the eraser nor the model.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..concepts import matching
from ..concepts.prompts import fill

Encode = Callable[[list[str]], Tensor]  # prompts to states [n, tokens, features]


@dataclass(frozen=True)
class GeneticConfig:
    """How long the prompt is, how far the target lies, and how much is bred."""

    words: int = 6
    eta: float = 1.0  # how far along the concept's direction
    population: int = 60
    generations: int = 40
    survivors: float = 0.3  # share that the next generation descends from; they live on themselves
    mutation: float = 0.15  # chance of each word to be drawn anew
    seed: int = 0


def words_of_pieces(pieces: Sequence[str]) -> list[str]:
    """Plain words among a SentencePiece vocabulary: those that open a word and hold only letters."""
    found = {piece[1:] for piece in pieces if piece.startswith("▁") and len(piece) > 3}
    return sorted(word for word in found if word.isascii() and word.isalpha())


def direction(encode: Encode, concept: str, templates: Sequence[str]) -> Tensor:
    """What the concept adds to a prompt, [features]: the mean over templates and tokens."""
    named = encode([fill(template, concept) for template in templates])
    bare = encode([fill(template, "") for template in templates])
    return (named.mean(1) - bare.mean(1)).mean(0)


def genetic(
    encode: Encode,
    concept: str,
    templates: Sequence[str],
    vocabulary: Sequence[str],
    forbidden: Sequence[str] = (),
    config: GeneticConfig = GeneticConfig(),
) -> tuple[str, list[float]]:
    """Breeds a prompt whose mean state lies nearest to that of a bare template plus the concept's direction.

    Args:
        encode: the text encoder.
        concept: is not among the words of the prompt, nor is any word that holds it.
        templates: prompts with {} for the concept; the first without it is the one that is moved.
        vocabulary: words to breed from.
        forbidden: further words that must not stand in the prompt, such as synonyms.

    Returns:
        The prompt, and the distance of the best one in every generation.

    Raises:
        ValueError: no template with {}, or no word that may be used.
    """
    if not templates or any("{}" not in template for template in templates):
        raise ValueError("the search needs templates with {} for the concept")
    banned = [concept, *forbidden]
    words = [w for w in vocabulary if not any(matching.occurs(w, b) or b.lower() in w.lower() for b in banned)]
    if not words:
        raise ValueError("no word of the vocabulary may be used: give more words or forbid fewer")
    target = encode([fill(templates[0], "")]).mean(1) + config.eta * direction(encode, concept, templates)
    rng = random.Random(config.seed)
    herd = [tuple(rng.choices(words, k=config.words)) for _ in range(config.population)]
    best, history = {}, []
    for _ in range(config.generations):
        new = [candidate for candidate in dict.fromkeys(herd) if candidate not in best]
        if new:
            far = (encode([" ".join(candidate) for candidate in new]).mean(1) - target).norm(dim=1)
            best |= dict(zip(new, far.tolist()))
        kept = sorted(set(herd), key=lambda c: (best[c], c))[: max(2, int(config.survivors * config.population))]
        best = {candidate: best[candidate] for candidate in kept}
        history.append(best[kept[0]])
        herd = [*kept, *(_child(rng, kept, words, config) for _ in range(config.population - len(kept)))]
    return " ".join(kept[0]), history


def _child(rng: random.Random, parents: list[tuple], words: list[str], config: GeneticConfig) -> tuple:
    """Two parents cut at one place and joined, some words drawn anew."""
    one, other = rng.sample(parents, 2)
    cut = rng.randrange(1, config.words) if config.words > 1 else 0
    joined = one[:cut] + other[cut:]
    return tuple(rng.choice(words) if rng.random() < config.mutation else word for word in joined)
