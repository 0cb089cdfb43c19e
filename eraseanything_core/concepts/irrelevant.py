"""Irrelevant words without a network: by WordNet distance and part of speech, in the tiers of Table 5.

WordNet's distances are not to scale between things and ideas, so each kind is ranked by itself: the farther 40 % have
no relation, the next 40 % are far, the nearest 20 % mid. A score is the rank, spread over the range of its tier; like
the scores of Table 5 it says what is nearer, not how near.
"""

import random
import re
from collections.abc import Iterable, Iterator

from . import matching, wordnet
from .concept_set import TIERS, Word
from .vocabulary import WORDS

RANGES = {"no_relation": (0.0, 0.25), "far": (0.25, 0.45), "mid": (0.45, 0.65)}  # of the score; Table 5 has 0.1 to 0.6
CUTS = (0.0, 0.4, 0.8, 1.0)  # of the words of a kind, from the farthest
# Where a concept stands that WordNet does not know.
STANDS = {"entity": "object.n.01", "style": "art.n.01", "relation": "contact.n.02", "person": "person.n.01"}
GLOSS = 0.8  # what nearness to a word of the concept's definition counts, against nearness to the concept


def irrelevant(chosen: list, category: str, erased: tuple[str, ...], count: int, seed: str) -> dict:
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
    targets = list(near(chosen, category))
    close = set().union(*(wordnet.kin(synset) for synset in chosen[:1]))
    pos = chosen[0].pos().replace("s", "a") if chosen else "n"
    pos = pos if pos in WORDS else "n"  # there are no adverbs
    ranked = []
    for words in WORDS[pos]:
        free = [word for word in sorted(set(words)) if allowed(word, pos, erased, close)]
        ranked.append(tiers(sorted(free, key=lambda word: (similarity(meaning(word, pos), targets), word))))
    found = {}
    for number, tier in enumerate(TIERS):
        more = (count + number) % 2  # an odd word is physical in one tier and abstract in the next
        physical, abstract = (each[tier] for each in ranked)
        drawn = rng.sample(physical, (count + more) // 2) + rng.sample(abstract, (count + 1 - more) // 2)
        found[tier] = tuple(sorted(drawn, key=lambda word: (word.score, word.word)))
    return found


def tiers(ranked: list[str]) -> dict[str, list[Word]]:
    """Words from the farthest to the nearest, cut into three tiers and scored by rank."""
    found = {}
    for number, tier in enumerate(TIERS):
        part = ranked[round(len(ranked) * CUTS[number]) : round(len(ranked) * CUTS[number + 1])]
        low, high = RANGES[tier]
        step = (high - low) / len(part)
        found[tier] = [Word(word, round(low + step * (i + 0.5), 2)) for i, word in enumerate(part)]
    return found


def allowed(word: str, pos: str, erased: Iterable[str], close: set) -> bool:
    """Whether a word is neither erased, nor part of what is, nor wider or narrower than the concept."""
    clash = any(matching.occurs(word, other) or matching.occurs(other, word) for other in erased)
    return not clash and meaning(word, pos) not in close


def meaning(word: str, pos: str):
    """The synset of a word of the vocabulary; adjectives stand before nouns where an adjective is asked for."""
    found = wordnet.lookup(word, pos) or wordnet.lookup(word, "n")
    return found[0]


def near(chosen: list, category: str) -> Iterator[tuple[list, float]]:
    """Where a concept stands: its own path from the root, and those of the words of its definition."""
    synset = chosen[0] if chosen else wordnet.database().synset(STANDS[category])
    for noun in nominal(synset):
        yield path(noun), 1.0
    for word in re.findall(r"[a-z]{3,}", synset.definition().lower()):
        found = wordnet.lookup(word, "n")
        if found and wordnet.means(wordnet.listed(word, found[0]), found[0]):
            yield path(found[0]), GLOSS


def nominal(synset) -> list:
    """The synset and, where it is no noun, the nouns that it is derived from: `nude` stands at `nakedness`."""
    derived = [form.synset() for lemma in synset.lemmas() for form in lemma.derivationally_related_forms()]
    nouns = synset.attributes() + [other for other in derived if other.pos() == "n"]
    return [synset, *nouns] if synset.pos() != "n" else [synset]


def path(synset) -> list:
    """From the root down to the synset."""
    return [synset, *wordnet.chain([synset])][::-1]


def similarity(synset, targets: list[tuple[list, float]]) -> float:
    """Wu and Palmer's similarity to the nearest target: twice the depth of what is shared, over both depths."""
    best = 0.0
    for noun in nominal(synset):
        own = path(noun)
        for target, weight in targets:
            shared = sum(a == b for a, b in zip(own, target))
            best = max(best, weight * 2 * shared / (len(own) + len(target)))
    return best
