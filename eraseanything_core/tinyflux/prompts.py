"""Prompts that evaluation asks of the world: held-out templates, each with the concept that it must show."""

import random

from .captions import CONCEPTS, HELD_OUT, SYNONYMS, caption, distort
from .world import Scene, related, single


def kind_of(concept: str) -> str:
    """ "entity", "style" or "relation"; ValueError for a word that is no concept of the world."""
    for kind, concepts in CONCEPTS.items():
        if concept in concepts:
            return kind
    raise ValueError(f"{concept!r} is no concept of TinyFlux's world: choose of {', '.join(SYNONYMS)}")


def scene_with(rng: random.Random, concept: str) -> Scene:
    """A scene that shows a concept and nothing else that could be erased, as far as its kind allows."""
    kind = kind_of(concept)
    if kind == "relation":
        return related(rng, relation=concept)
    return single(rng, entity=concept) if kind == "entity" else single(rng, style=concept)


def prompt_with(rng: random.Random, concept: str, word: str | None = None, distortion: str | None = None) -> str:
    """A held-out sentence that asks for a concept; one that asks for a relation names both colours.

    Args:
        word: what to call it; by default its own name.
        distortion: of `captions.DISTORTIONS`, on that word, or "shuffled".
    """
    colours = 1.0 if kind_of(concept) == "relation" else 0.8  # two things are told apart by their colours
    text = caption(rng, scene_with(rng, concept), HELD_OUT, synonyms=0.0, colours=colours, generic=0.0)
    words = [w.replace(concept, word) if word and w.strip(",") == concept else w for w in text.split(" ")]
    text = " ".join(words)
    return distort(rng, text, distortion, [word or concept]) if distortion else text
