"""Irrelevant words without a network: by WordNet distance and part of speech, in the tiers of Table 5.

WordNet's distances are not to scale between things and ideas, so each kind is ranked by itself: the farther 40 % have
no relation, the next 40 % are far, the nearest 20 % mid. A score is the rank, spread over the range of its tier; like
the scores of Table 5 it says what is nearer, not how near.
"""

import random
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from . import matching, wordnet
from .concept_set import TIERS, Word
from .vocabulary import WORDS

RANGES = {"no_relation": (0.0, 0.25), "far": (0.25, 0.45), "mid": (0.45, 0.65)}  # of the score; Table 5 has 0.1 to 0.6
CUTS = (0.0, 0.4, 0.8, 1.0)  # of the words of a kind, from the farthest
# Stands for a concept that WordNet does not know.
FALLBACK_SYNSETS = {
    "entity": "object.n.01",
    "style": "art.n.01",
    "relation": "contact.n.02",
    "person": "person.n.01",
}
GLOSS_WEIGHT = 0.8  # what nearness to a word of the concept's definition counts, against nearness to the concept


class Target(NamedTuple):
    """A place in WordNet that words are compared with: its path from the root, and what nearness to it counts."""

    path: list[Any]
    weight: float


def irrelevant(
    chosen: list[Any], category: str, erased: Sequence[str], count: int, seed: str
) -> dict[str, tuple[Word, ...]]:
    """Draws irrelevant words, half of them physical and half abstract in every tier.

    Args:
        chosen: the concept's synsets; [] when WordNet does not know it.
        category: entity, style, relation or person.
        erased: the concept and its other words; none of these, nor a part of them, is drawn.
        count: words in each tier.
        seed: equal seeds draw equal words.

    Returns:
        tier: the words with scores, ascending.
    """
    rng = random.Random(seed)
    targets = comparison_targets(chosen, category)
    relatives = wordnet.relatives(chosen[0]) if chosen else set()
    pos = wordnet.pos_of(chosen[0]) if chosen else "n"
    if pos not in WORDS:
        pos = "n"  # there are no adverbs
    tiers_by_kind = []
    for vocabulary in WORDS[pos]:
        # Sorted before it is ranked, so that words of equal similarity have the same order in every process.
        candidates = without_erased(sorted(set(vocabulary)), erased)
        words = [word for word in candidates if meaning(word, pos) not in relatives]
        similarities = {word: similarity(vocabulary_paths(word, pos), targets) for word in words}
        tiers_by_kind.append(scored_tiers(sorted(words, key=lambda word: (similarities[word], word))))
    physical, abstract = tiers_by_kind
    drawn = {}
    for number, tier in enumerate(TIERS):
        # An odd word is physical in one tier and abstract in the next.
        extra = (count + number) % 2
        words_of_tier = rng.sample(physical[tier], (count + extra) // 2)
        words_of_tier += rng.sample(abstract[tier], (count + 1 - extra) // 2)
        drawn[tier] = tuple(sorted(words_of_tier, key=lambda word: (word.score, word.word)))
    return drawn


def scored_tiers(ranked: Sequence[str]) -> dict[str, list[Word]]:
    """Words from the farthest to the nearest, cut into three tiers and scored by rank."""
    tiers: dict[str, list[Word]] = {}
    for number, tier in enumerate(TIERS):
        start = round(len(ranked) * CUTS[number])
        stop = round(len(ranked) * CUTS[number + 1])
        low, high = RANGES[tier]
        step = (high - low) / (stop - start)
        tiers[tier] = []
        for rank, word in enumerate(ranked[start:stop]):
            # Half a step keeps every score inside its tier's range.
            tiers[tier].append(Word(word, round(low + step * (rank + 0.5), 2)))
    return tiers


def without_erased(words: Sequence[str], erased: Iterable[str]) -> list[str]:
    """The words that are neither erased nor a part of what is."""
    texts = tuple(erased)
    # All words in one pass a text: a user may type thousands of synonyms.
    parts: set[str] = set()
    for text in texts:
        parts |= matching.all_occurring(text, words)
    unwanted = (*texts, *sorted(parts))
    return [word for word in words if matching.first_occurring(word, unwanted) is None]


@cache  # the vocabulary is ranked anew for every concept
def meaning(word: str, pos: str) -> Any:
    """The synset of a word of the vocabulary; an adjective that WordNet lists only as a noun has the noun's."""
    synsets = wordnet.lookup(word, pos) or wordnet.lookup(word, "n")
    return synsets[0]


def comparison_targets(chosen: list[Any], category: str) -> list[Target]:
    """Where a concept stands: its own path from the root, and those of the words of its definition."""
    synset = chosen[0] if chosen else wordnet.database().synset(FALLBACK_SYNSETS[category])
    targets = []
    for noun in nominal(synset):
        targets.append(Target(path_from_root(noun), 1.0))
    for word in re.findall(r"[a-z]{3,}", synset.definition().lower()):
        nouns = wordnet.lookup(word, "n")
        if nouns and wordnet.is_main_meaning(wordnet.listed_form(word, nouns[0]), nouns[0]):
            targets.append(Target(path_from_root(nouns[0]), GLOSS_WEIGHT))
    return targets


def nominal(synset: Any) -> list[Any]:
    """The synset and, where it is no noun, the nouns that it is derived from: `nude` stands at `nakedness`."""
    if synset.pos() == "n":
        return [synset]
    nouns = synset.attributes()
    for lemma in synset.lemmas():
        for form in lemma.derivationally_related_forms():
            if form.synset().pos() == "n":
                nouns.append(form.synset())
    return [synset, *nouns]


def path_from_root(synset: Any) -> list[Any]:
    """The hypernyms of a synset, the widest first, and the synset itself."""
    return [synset, *wordnet.hypernym_path([synset])][::-1]


@cache
def vocabulary_paths(word: str, pos: str) -> list[list[Any]]:
    """Where a word of the vocabulary stands: its own path from the root, and those of the nouns beside it."""
    return list(map(path_from_root, nominal(meaning(word, pos))))


def similarity(paths: Sequence[list[Any]], targets: Sequence[Target]) -> float:
    """Wu and Palmer's similarity to the nearest target: twice the depth of what is shared, over both depths.

    Z. Wu and M. Palmer, "Verb semantics and lexical selection", ACL 1994.

    Args:
        paths: from the root to each synset of a word.
        targets: what they are compared with.
    """
    best = 0.0
    for own_path in paths:
        for target in targets:
            # The shorter path ends the comparison: what it shares is a prefix of both.
            shared = sum(ours == theirs for ours, theirs in zip(own_path, target.path))
            depths = len(own_path) + len(target.path)
            best = max(best, target.weight * 2 * shared / depths)
    return best
