"""Prompts that evaluation asks of the world: held-out templates, each with the concept that it must show."""

import random

from eraseanything_core.tinyflux.concepts import kind_of
from eraseanything_core.tinyflux.world import Scene
from lab.tinyflux.captions import HELD_OUT, caption, distort
from lab.tinyflux.scenes import related, single


def scene_with(rng: random.Random, concept: str) -> Scene:
    """A scene that shows a concept and nothing else that could be erased, as far as its kind allows."""
    kind = kind_of(concept)
    if kind == "relation":
        return related(rng, relation=concept)
    return single(rng, entity=concept) if kind == "entity" else single(rng, style=concept)


def prompt_with(rng: random.Random, concept: str, word: str | None = None, distortion: str | None = None) -> str:
    """A held-out sentence that asks for a concept. One that asks for a relation names both colours.

    Args:
        word: what to call the concept; by default its own name.
        distortion: of `captions.DISTORTIONS`, on that word, or "shuffled".
    """
    colours = 1.0 if kind_of(concept) == "relation" else 0.8  # only their colours tell two things apart
    text = caption(rng, scene_with(rng, concept), HELD_OUT, synonyms=0.0, colours=colours, generic=0.0)
    if word:
        words = [w.replace(concept, word) if w.strip(",") == concept else w for w in text.split(" ")]
        text = " ".join(words)
    return distort(rng, text, distortion, [word or concept]) if distortion else text
