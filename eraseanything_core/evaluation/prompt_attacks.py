"""Attacks on an eraser that only change the prompt, and only the concept in it; every one repeats by its seed.

The families of the paper's Appendix B (nonsense before or after the word, misspelling, repetition), a synonym, the
order of the words, casing and look-alike letters. `search.py` and `whitebox.py` hold the attacks that search.
"""

import random
import string

from ..concepts import matching

KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
BESIDE = {
    key: (row[i - 1] if i else "") + (row[i + 1] if i + 1 < len(row) else "")
    for row in KEYS
    for i, key in enumerate(row)
}
HOMOGLYPHS = dict(zip("aceijopsxyABCEHIKMOPTX", "асеіјорѕхуАВСЕНІКМОРТХ"))  # Latin to Cyrillic
SEPARATORS = (" ", ", ", "-", " and ")


def double(rng: random.Random, word: str) -> str:
    """A letter twice: Nike, Nikke."""
    i = rng.choice(_letters(word))
    return word[: i + 1] + word[i:]


def delete(rng: random.Random, word: str) -> str:
    """A letter left out, not the first one: Nike, Nke. Of two letters none can go; one is doubled."""
    if len(word) < 3:
        return double(rng, word)
    i = rng.choice(_letters(word)[1:])
    return word[:i] + word[i + 1 :]


def transpose(rng: random.Random, word: str) -> str:
    """Two neighbours that differ change places: Nike, Nkie."""
    places = [i for i in _letters(word[:-1]) if word[i + 1] not in (" ", word[i])]
    if not places:
        return double(rng, word)
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def neighbour(rng: random.Random, word: str) -> str:
    """The key beside: Nike, Noke."""
    places = [i for i in _letters(word) if word[i].lower() in BESIDE]
    if not places:
        return double(rng, word)
    i = rng.choice(places)
    key = rng.choice(BESIDE[word[i].lower()])
    return word[:i] + (key.upper() if word[i].isupper() else key) + word[i + 1 :]


def prefix(rng: random.Random, word: str) -> str:
    """Two or three letters of nonsense before the word: soccer, xxsoccer."""
    return _nonsense(rng, word[0]) + word


def suffix(rng: random.Random, word: str) -> str:
    """Two or three letters of nonsense behind the word: soccer, soccerrrs."""
    return word + _nonsense(rng, word[-1])


def repeat(rng: random.Random, word: str) -> str:
    """The word two or three times, with some separator."""
    return rng.choice(SEPARATORS).join([word] * rng.choice((2, 3)))


def case(rng: random.Random, word: str) -> str:
    """Another casing: NIKE, nIkE, or every letter's drawn."""
    others = {word.upper(), word.lower(), word.swapcase(), word.title()} - {word}
    others |= {"".join(rng.choice((c.upper(), c.lower())) for c in word)} - {word}
    if not others:
        raise ValueError(f"{word!r} has no casing: choose another attack")
    return rng.choice(sorted(others))


def homoglyph(rng: random.Random, word: str) -> str:
    """One letter by its Cyrillic look-alike."""
    places = [i for i, letter in enumerate(word) if letter in HOMOGLYPHS]
    if not places:
        raise ValueError(f"no letter of {word!r} has a look-alike: choose another attack")
    i = rng.choice(places)
    return word[:i] + HOMOGLYPHS[word[i]] + word[i + 1 :]


def _letters(word: str) -> list[int]:
    """Places of the letters."""
    return [i for i, letter in enumerate(word) if not letter.isspace()]


def _nonsense(rng: random.Random, letter: str) -> str:
    drawn = "".join(rng.choices(string.ascii_lowercase, k=rng.choice((2, 3))))
    return rng.choice((letter * 2, letter * 2 + rng.choice(string.ascii_lowercase), drawn))


ON_WORD = {
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


def attack(prompt: str, concept: str, kind: str, seed: int, synonyms: tuple[str, ...] = ()) -> str:
    """The prompt with its concept attacked; the rest of the prompt stays, except that "shuffle" moves whole words.

    Args:
        prompt: holds the concept, by the rule of `matching.find_spans`.
        concept: one or more words. Every occurrence is changed in the same way.
        kind: of `ATTACKS`.
        seed: equal prompts, kinds and seeds give equal attacks.
        synonyms: what "synonym" draws from.

    Raises:
        ValueError: the prompt does not hold the concept, or there is no synonym or no such attack.
    """
    if kind not in ATTACKS:
        raise ValueError(f"there is no attack {kind!r}; known: {', '.join(ATTACKS)}")
    if not matching.occurs(prompt, concept):
        raise ValueError(f"the prompt {prompt!r} does not hold the concept {concept!r}: there is nothing to attack")
    if kind == "synonym" and not synonyms:
        raise ValueError("the attack by a synonym needs synonyms: give at least one")
    rng = random.Random(f"{kind} {seed} {prompt}")
    if kind == "shuffle":
        return _shuffled(rng, prompt, concept)
    word = rng.choice(synonyms) if kind == "synonym" else ON_WORD[kind](rng, concept)
    return matching.replace(prompt, concept, word)


def _shuffled(rng: random.Random, prompt: str, concept: str) -> str:
    """The words of the prompt in another order, the concept as one word."""
    words = matching.replace(prompt, concept, "{}").split()
    order = rng.sample(words, len(words))
    while order == words and len(set(words)) > 1:
        order = rng.sample(words, len(words))
    return " ".join(order).replace("{}", " ".join(concept.split()))
