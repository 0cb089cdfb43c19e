"""Captions of the world: a grammar with synonyms, and the ways a prompt can be distorted.

Templates come in two sets: `TRAIN`, and `HELD_OUT`, which only evaluation uses. The synonyms are split in the same
way, see `eraseanything_core/tinyflux/concepts.py`.
"""

import random
import re
import string
from collections.abc import Collection

from eraseanything_core.tinyflux.concepts import SYNONYMS
from eraseanything_core.tinyflux.world import Scene

Templates = dict[str, tuple[str, ...]]

GENERIC = ("thing", "object", "shape")  # an entity that is not named

TRAIN: Templates = {
    "single": (
        "a photo of a {thing} {ground}",
        "a {thing} {ground}",
        "an image of a {thing} {ground}",
        "one {thing} {ground}",
        "a picture showing a {thing} {ground}",
        "{thing} {ground}",
    ),
    "styled": (
        "a {thing} in {style} style {ground}",
        "a {style} picture of a {thing} {ground}",
        "{thing}, {style} {ground}",
    ),
    "related": (
        "a {first} {relation} a {second} {ground}",
        "a photo of a {first} {relation} a {second} {ground}",
        "{first} {relation} {second} {ground}",
        "an image of one {first} {relation} one {second} {ground}",
    ),
}
HELD_OUT: Templates = {
    "single": ("a drawing of a {thing} {ground}", "there is a {thing} {ground}"),
    "styled": ("a drawing of a {thing}, made {style} {ground}", "a {thing} that is {style} {ground}"),
    "related": (
        "a drawing of a {first} {relation} a {second} {ground}",
        "there is a {first} {relation} a {second} {ground}",
    ),
}


def _name(rng: random.Random, concept: str, synonyms: float) -> str:
    """The concept's own name, or now and then one of its synonyms."""
    return rng.choice(SYNONYMS[concept]) if rng.random() < synonyms else concept


def _described(rng: random.Random, colour: str, name: str | None, colours: float) -> str:
    """An object's noun, mostly with its colour; an object without a name is called by a generic word."""
    noun = name or rng.choice(GENERIC)
    return f"{colour} {noun}" if rng.random() < colours else noun


def caption(
    rng: random.Random,
    scene: Scene,
    templates: Templates = TRAIN,
    synonyms: float = 0.35,
    colours: float = 0.8,
    generic: float = 0.08,
) -> str:
    """A sentence that is true of a scene.

    Args:
        synonyms: how often a concept is named by one of its synonyms.
        colours: how often an object's colour is named.
        generic: how often an entity is called a thing, object or shape.
    """
    # The order of the draws is part of the data: another order gives other boards, prompts and trainings.
    ground = f"on a {scene.background} background" if rng.random() < 0.5 else ""
    names: list[str | None] = []
    for thing in scene.objects[:2]:
        names.append(None if rng.random() < generic else _name(rng, thing.entity, synonyms))
    things = []
    for thing, name in zip(scene.objects, names):
        things.append(_described(rng, thing.colour, name, colours))
    style = _name(rng, scene.style, synonyms) if scene.style else ""
    if scene.relation:
        if style:
            things = [f"{style} {thing}" for thing in things]
        relation = _name(rng, scene.relation, synonyms)
        template = rng.choice(templates["related"])
        text = template.format(first=things[0], relation=relation, second=things[1], ground=ground)
    elif style and rng.random() < 0.5:
        text = rng.choice(templates["styled"]).format(thing=things[0], style=style, ground=ground)
    else:
        text = rng.choice(templates["single"]).format(thing=f"{style} {things[0]}".strip(), ground=ground)
    return re.sub(r"\s+", " ", text).strip()


def _keyboard_neighbours() -> dict[str, str]:
    """Each letter's neighbour to the right on a keyboard; the last of a row has the one to its left."""
    neighbours = {}
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm"):
        neighbours |= dict(zip(row, row[1:] + row[-2]))
    return neighbours


NEIGHBOURS = _keyboard_neighbours()


def misspell(rng: random.Random, word: str) -> str:
    """One typing error: a letter doubled, left out, swapped with the next or hit beside its key."""
    i = rng.randrange(1, max(2, len(word) - 1))
    kind = rng.choice(("double", "leave out", "swap", "neighbour"))
    if kind == "double":
        return word[:i] + word[i] + word[i:]
    if kind == "leave out" and len(word) > 3:
        return word[:i] + word[i + 1 :]
    if kind == "swap" and i + 1 < len(word) and word[i] != word[i + 1]:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + NEIGHBOURS.get(word[i], word[i] * 2) + word[i + 1 :]


def affix(rng: random.Random, word: str) -> str:
    """The word with two or three letters of nonsense before or after it (soccer -> soccerrrs)."""
    letters = rng.choice((word[-1] * 2, word[-1] * 2 + "s", "".join(rng.choices(string.ascii_lowercase, k=2))))
    return word + letters if rng.random() < 0.6 else "".join(rng.choices(string.ascii_lowercase, k=2)) + word


def repeat(rng: random.Random, word: str) -> str:
    """The word two or three times."""
    return " ".join([word] * rng.choice((2, 3)))


DISTORTIONS = {"misspelt": misspell, "affixed": affix, "repeated": repeat}
VOCABULARY = {word: concept for concept, words in SYNONYMS.items() for word in (concept, *words)}


def distort_words(
    rng: random.Random, words: list[str], kind: str, targets: Collection[str] = ()
) -> list[tuple[str, int]]:
    """Distorts one word (`kind` of `DISTORTIONS`), or the order of all of them ("shuffled").

    Args:
        targets: the words that may be hit; by default every name of a concept.

    Returns:
        The new words, each with the index of the word that it came from.

    Raises:
        ValueError: none of the targets stands among the words.
    """
    numbered = list(zip(words, range(len(words))))
    if kind == "shuffled":
        return rng.sample(numbered, len(numbered))
    targets = targets or VOCABULARY
    hits = [i for word, i in numbered if word.strip(",") in targets]
    if not hits:
        raise ValueError(f"no word of {sorted(targets)} stands in the prompt '{' '.join(words)}'")
    i = rng.choice(hits)
    changed = DISTORTIONS[kind](rng, words[i].strip(",")).split(" ")
    return numbered[:i] + [(word, i) for word in changed] + numbered[i + 1 :]


def distort(rng: random.Random, text: str, kind: str, targets: Collection[str] = ()) -> str:
    """`distort_words` on a sentence."""
    return " ".join(word for word, _ in distort_words(rng, text.split(" "), kind, targets))


def training_prompt(rng: random.Random, scene: Scene) -> tuple[list[tuple[str, str]], bool]:
    """A caption as training shows it: often distorted, so that distorted prompts are obeyed.

    Returns:
        Pairs of a word and the undistorted word that it came from, and whether the order was shuffled.
    """
    words = caption(rng, scene).split(" ")
    draw = rng.random()
    kind = None
    if draw < 0.15:
        kind = "shuffled"
    elif draw < 0.45:
        kind = rng.choice(list(DISTORTIONS))
    names_a_concept = any(word.strip(",") in VOCABULARY for word in words)
    if kind is None or (kind != "shuffled" and not names_a_concept):
        return [(word, word.strip(",")) for word in words], False
    pairs = [(word, words[i].strip(",")) for word, i in distort_words(rng, words, kind)]
    return pairs, kind == "shuffled"
