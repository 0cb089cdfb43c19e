"""Captions of the world: a grammar with synonyms, and the ways a prompt can be distorted.

Every concept has two synonyms that an eraser may use and one that is held out, so that generalisation can be
measured. Templates come in two sets as well: `TRAIN` ones and `HELD_OUT` ones, which only evaluation uses.
"""

import random
import re
import string

from .shapes import ENTITIES, STYLES
from .world import RELATIONS, Scene

# concept -> (two synonyms for training, one held out)
SYNONYMS = {
    "ball": ("sphere", "orb", "globe"),
    "box": ("cube", "crate", "square"),
    "star": ("pentagram", "asterisk", "starlet"),
    "heart": ("valentine", "love", "sweetheart"),
    "moon": ("crescent", "lune", "sickle"),
    "cross": ("plus", "crucifix", "rood"),
    "ring": ("hoop", "donut", "loop"),
    "house": ("home", "cottage", "hut"),
    "tree": ("pine", "fir", "spruce"),
    "fish": ("trout", "salmon", "carp"),
    "striped": ("banded", "lined", "streaked"),
    "dotted": ("spotted", "speckled", "freckled"),
    "checkered": ("checked", "tiled", "plaid"),
    "hatched": ("slashed", "slanted", "scratched"),
    "outlined": ("hollow", "contoured", "sketched"),
    "shaded": ("gradient", "faded", "dimmed"),
    "glowing": ("neon", "radiant", "luminous"),
    "shadowed": ("shadowy", "raised", "floating"),
    "bordered": ("cartoon", "inked", "rimmed"),
    "blurred": ("blurry", "fuzzy", "hazy"),
    "beside": ("alongside", "near", "by"),
    "above": ("over", "atop", "topping"),
    "inside": ("within", "enclosed", "into"),
    "touching": ("kissing", "meeting", "contacting"),
    "overlapping": ("crossing", "covering", "hugging"),
    "opposite": ("diagonal", "across", "far"),
    "tied": ("chained", "linked", "roped"),
    "divided": ("separated", "parted", "walled"),
    "amid": ("among", "surrounded", "encircled"),
    "between": ("flanked", "sandwiched", "bracketed"),
}
CONCEPTS = {"entity": tuple(ENTITIES), "style": STYLES, "relation": RELATIONS}
GENERIC = ("thing", "object", "shape")  # an entity that is not named

TRAIN = {
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
HELD_OUT = {
    "single": ("a drawing of a {thing} {ground}", "there is a {thing} {ground}"),
    "styled": ("a drawing of a {thing}, made {style} {ground}", "a {thing} that is {style} {ground}"),
    "related": (
        "a drawing of a {first} {relation} a {second} {ground}",
        "there is a {first} {relation} a {second} {ground}",
    ),
}


def _word(rng: random.Random, concept: str, synonyms: float) -> str:
    return rng.choice(SYNONYMS[concept]) if rng.random() < synonyms else concept


def _thing(rng: random.Random, scene: Scene, index: int, name: str | None, colours: float) -> str:
    thing = scene.objects[index]
    noun = name or rng.choice(GENERIC)
    return f"{thing.colour} {noun}" if rng.random() < colours else noun


def caption(rng: random.Random, scene: Scene, templates=TRAIN, synonyms=0.35, colours=0.8, generic=0.08) -> str:
    """A sentence that is true of a scene.

    Args:
        synonyms: how often a concept is named by one of its synonyms.
        colours: how often an object's colour is named.
        generic: how often an entity is called a thing, object or shape.
    """
    ground = f"on a {scene.background} background" if rng.random() < 0.5 else ""
    names = [None if rng.random() < generic else _word(rng, o.entity, synonyms) for o in scene.objects[:2]]
    things = [_thing(rng, scene, i, name, colours) for i, name in enumerate(names)]
    style = _word(rng, scene.style, synonyms) if scene.style else ""
    if scene.relation:
        if style:
            things = [f"{style} {thing}" for thing in things]
        relation = _word(rng, scene.relation, synonyms)
        text = rng.choice(templates["related"]).format(
            first=things[0], relation=relation, second=things[1], ground=ground
        )
    elif style and rng.random() < 0.5:
        text = rng.choice(templates["styled"]).format(thing=things[0], style=style, ground=ground)
    else:
        text = rng.choice(templates["single"]).format(thing=f"{style} {things[0]}".strip(), ground=ground)
    return re.sub(r"\s+", " ", text).strip()


NEIGHBOURS = {a: b for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") for a, b in zip(row, row[1:] + row[-2])}


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


def distort_words(rng: random.Random, words: list[str], kind: str, targets=None) -> list[tuple[str, int]]:
    """Distorts one word (`kind` of `DISTORTIONS`), or the order of all of them ("shuffled").

    Args:
        targets: the words that may be hit; by default every name of a concept.

    Returns:
        The new words, each with the index of the word that it came from.

    Raises:
        ValueError: if none of the targets stands among the words.
    """
    numbered = list(zip(words, range(len(words))))
    if kind == "shuffled":
        return rng.sample(numbered, len(numbered))
    hits = [i for word, i in numbered if word.strip(",") in (targets or VOCABULARY)]
    if not hits:
        raise ValueError(f"no word of {sorted(targets or VOCABULARY)} stands in the prompt '{' '.join(words)}'")
    i = rng.choice(hits)
    changed = DISTORTIONS[kind](rng, words[i].strip(",")).split(" ")
    return numbered[:i] + [(word, i) for word in changed] + numbered[i + 1 :]


def distort(rng: random.Random, text: str, kind: str, targets=None) -> str:
    """`distort_words` on a sentence."""
    return " ".join(word for word, _ in distort_words(rng, text.split(" "), kind, targets))


def training_prompt(rng: random.Random, scene: Scene) -> tuple[list[tuple[str, str]], bool]:
    """A caption as training shows it: often distorted, so that distorted prompts are obeyed.

    Returns:
        Pairs of a word and the undistorted word that it came from, and whether the order was shuffled.
    """
    words = caption(rng, scene).split(" ")
    draw = rng.random()
    kind = "shuffled" if draw < 0.15 else rng.choice(list(DISTORTIONS)) if draw < 0.45 else None
    if kind is None or (kind != "shuffled" and not any(w.strip(",") in VOCABULARY for w in words)):
        return [(word, word.strip(",")) for word in words], False
    pairs = [(word, words[i].strip(",")) for word, i in distort_words(rng, words, kind)]
    return pairs, kind == "shuffled"
