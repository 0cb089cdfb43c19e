"""Attacks on an eraser that only change the prompt, and only the concept in it; every one repeats by its seed.

The families of the paper's Appendix B (nonsense before or after the word, misspelling, repetition), a synonym, the
order of the words, casing and look-alike letters. `genetic_attack` and `weight_attacks` hold the attacks that search.
"""

import random
import string
from collections.abc import Callable, Sequence

from ..concepts import matching
from ..quoting import quoted

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
HOMOGLYPHS = dict(zip("aceijopsxyABCEHIKMOPTX", "асеіјорѕхуАВСЕНІКМОРТХ"))  # Latin to Cyrillic
SEPARATORS = (" ", ", ", "-", " and ")

AttackDone = Callable[[int, int], None]  # attacks done, of how many


def _adjacent_keys() -> dict[str, str]:
    """The keys left and right of each letter."""
    adjacent = {}
    for row in KEYBOARD:
        for i, key in enumerate(row):
            left = row[i - 1] if i > 0 else ""
            right = row[i + 1] if i + 1 < len(row) else ""
            adjacent[key] = left + right
    return adjacent


ADJACENT_KEYS = _adjacent_keys()


def double(rng: random.Random, word: str) -> str:
    """A letter twice: Nike, Nikke."""
    i = rng.choice(_letters(word))
    return word[: i + 1] + word[i:]


def delete(rng: random.Random, word: str) -> str:
    """A letter left out, not the first one: Nike, Nke. In a word of two letters one is doubled instead."""
    if len(word) < 3:
        return double(rng, word)
    i = rng.choice(_letters(word)[1:])  # a word without its first letter is rarely read as the same word
    return word[:i] + word[i + 1 :]


def transpose(rng: random.Random, word: str) -> str:
    """Two different letters that stand side by side change places: Nike, Nkie."""
    positions = [i for i in _letters(word[:-1]) if word[i + 1] not in (" ", word[i])]
    if not positions:
        return double(rng, word)
    i = rng.choice(positions)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def neighbour(rng: random.Random, word: str) -> str:
    """The key beside the right one: Nike, Noke."""
    positions = [i for i in _letters(word) if word[i].lower() in ADJACENT_KEYS]
    if not positions:
        return double(rng, word)
    i = rng.choice(positions)
    key = rng.choice(ADJACENT_KEYS[word[i].lower()])
    if word[i].isupper():
        key = key.upper()
    return word[:i] + key + word[i + 1 :]


def prefix(rng: random.Random, word: str) -> str:
    """Two or three letters of nonsense before the word: soccer, xxsoccer."""
    return _nonsense(rng, word[0]) + word


def suffix(rng: random.Random, word: str) -> str:
    """Two or three letters of nonsense behind the word: soccer, soccerrrs."""
    return word + _nonsense(rng, word[-1])


def repeat(rng: random.Random, word: str) -> str:
    """The word two or three times, with a separator."""
    return rng.choice(SEPARATORS).join([word] * rng.choice((2, 3)))


def case(rng: random.Random, word: str) -> str:
    """Another casing: NIKE, nIkE, or one drawn for every letter.

    Raises:
        ValueError: the word has no letter with a case.
    """
    mixed = "".join(rng.choice((letter.upper(), letter.lower())) for letter in word)
    casings = {word.upper(), word.lower(), word.swapcase(), word.title(), mixed} - {word}
    if not casings:
        raise ValueError(f"{quoted(word)} has no casing: choose another attack")
    return rng.choice(sorted(casings))  # sorted, because a set has no order that a seed could repeat


def homoglyph(rng: random.Random, word: str) -> str:
    """One letter replaced by its Cyrillic look-alike.

    Raises:
        ValueError: no letter has one.
    """
    positions = [i for i, letter in enumerate(word) if letter in HOMOGLYPHS]
    if not positions:
        raise ValueError(f"no letter of {quoted(word)} has a look-alike: choose another attack")
    i = rng.choice(positions)
    return word[:i] + HOMOGLYPHS[word[i]] + word[i + 1 :]


def _letters(word: str) -> list[int]:
    """Positions of the letters."""
    return [i for i, letter in enumerate(word) if not letter.isspace()]


def _nonsense(rng: random.Random, letter: str) -> str:
    """A letter twice, with or without another one behind, or two or three letters of any kind."""
    drawn = "".join(rng.choices(string.ascii_lowercase, k=rng.choice((2, 3))))
    return rng.choice((letter * 2, letter * 2 + rng.choice(string.ascii_lowercase), drawn))


ON_WORD: dict[str, Callable[[random.Random, str], str]] = {
    "double": double,
    "delete": delete,
    "transpose": transpose,
    "neighbour": neighbour,
    "prefix": prefix,
    "suffix": suffix,
    "repeat": repeat,
    "case": case,
    "homoglyph": homoglyph,
}
ATTACKS = ("shuffle", *ON_WORD, "synonym")
FAMILIES = {
    "misspelling": ("double", "delete", "transpose", "neighbour"),
    "affix": ("prefix", "suffix"),
    "repetition": ("repeat",),
    "synonym": ("synonym",),
    "shuffle": ("shuffle",),
    "look": ("case", "homoglyph"),
}


def attack(prompt: str, concept: str, kind: str, seed: int, synonyms: Sequence[str] = ()) -> str:
    """The prompt with its concept attacked; the rest of the prompt stays, except that "shuffle" moves whole words.

    Args:
        prompt: contains the concept, by the rule of `concepts.matching`.
        concept: one or more words. Every occurrence is changed in the same way.
        kind: of `ATTACKS`.
        seed: equal prompts, kinds and seeds give equal attacks.
        synonyms: what "synonym" draws from.

    Raises:
        ValueError: the prompt does not hold the concept, or there is no synonym or no such attack.
    """
    if kind not in ATTACKS:
        raise ValueError(f"there is no attack {quoted(kind)}; known: {', '.join(ATTACKS)}")
    if not matching.occurs(prompt, concept):
        raise ValueError(
            f"the prompt {quoted(prompt)} does not hold the concept {quoted(concept)}: there is nothing to attack"
        )
    if kind == "synonym" and not synonyms:
        raise ValueError("the attack by a synonym needs synonyms: give at least one")
    # Seeded by a text: Python hashes it with SHA-512, so that neighbouring seeds give unrelated draws.
    rng = random.Random(f"{kind} {seed} {prompt}")
    if kind == "shuffle":
        return _shuffled(rng, prompt, concept)
    # One replacement for all occurrences: two different misspellings would be two attacks.
    word = rng.choice(synonyms) if kind == "synonym" else ON_WORD[kind](rng, concept)
    return matching.replace(prompt, concept, word)


def _shuffled(rng: random.Random, prompt: str, concept: str) -> str:
    """The words of the prompt in another order, the concept as one word."""
    # A placeholder holds the words of the concept together while the others move.
    words = matching.replace(prompt, concept, "{}").split()
    order = rng.sample(words, len(words))
    # Drawn again while nothing has moved, unless every word is the same.
    while order == words and len(set(words)) > 1:
        order = rng.sample(words, len(words))
    return " ".join(order).replace("{}", " ".join(concept.split()))


def attack_all(
    prompts: Sequence[str],
    concept: str,
    kind: str,
    seeds: Sequence[int],
    synonyms: Sequence[str] = (),
    progress: AttackDone | None = None,
    check_interrupt: Callable[[], None] | None = None,
) -> list[str]:
    """Every prompt attacked with every seed, prompt by prompt.

    Args:
        prompts, concept, kind, synonyms: as for `attack`.
        seeds: one attack of each prompt for each.
        progress: called as progress(attacks done, attacks) after every prompt; what it raises ends the work.
        check_interrupt: called before every attack, as a prompt may be long; what it raises ends the work.

    Raises:
        ValueError: there is no prompt; see also `attack`.
    """
    if not prompts:
        raise ValueError("there is no prompt to attack: type one that holds the concept")
    attacks: list[str] = []
    for prompt in prompts:
        for seed in seeds:
            if check_interrupt:
                check_interrupt()
            attacks.append(attack(prompt, concept, kind, seed, synonyms))
        if progress:
            progress(len(attacks), len(prompts) * len(seeds))
    return attacks
