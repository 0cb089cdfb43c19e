"""What shall be painted in a concept's place."""

import re
from collections.abc import Sequence
from typing import Any

from . import articles, matching, wordnet
from .number_forms import is_plural, plural

NUDITY = {"nude", "nudity", "naked", "nakedness", "nudeness", "nsfw", "undressed", "unclothed", "topless"}
BY_KIND = {
    "person": "{a person}",
    "style": "{a plain photograph}",
    "relation": "{stand together}",
    "act": "{standing}",
    "act of two": "{standing side by side}",
    "place": "{and}",
    "posture": "{and}",
}
# For what has no wider word: without one, `a photo of` would be left of a sentence.
ANYTHING = {"entity": "ordinary scene", "scene": "ordinary scene", "look": "plain finish", "part": "plain face"}
COMMON_THINGS = ("house", "tree")  # what every model draws, and draws as nothing else
# Synsets whose first word is a common name for what a picture could show instead. The nearest one is taken.
WIDER = {
    "dog.n.01": "dog",
    "bird.n.01": "bird",
    "fish.n.01": "fish",
    "insect.n.01": "insect",
    "animal.n.01": "animal",
    "person.n.01": "person",
    "tree.n.01": "tree",
    "flower.n.01": "flower",
    "plant.n.02": "plant",
    "plant_part.n.01": "plant",
    "edible_fruit.n.01": "fruit",
    "beverage.n.01": "drink",
    "food.n.01": "meal",
    "food.n.02": "meal",
    "truck.n.01": "truck",
    "aircraft.n.01": "aircraft",
    "ship.n.01": "boat",
    "vehicle.n.01": "vehicle",
    "musical_instrument.n.01": "musical instrument",
    "furniture.n.01": "piece of furniture",
    "footwear.n.02": "piece of clothing",
    "clothing.n.01": "piece of clothing",
    "tool.n.01": "tool",
    "weapon.n.01": "tool",
    "electronic_equipment.n.01": "electronic device",
    "building.n.01": "building",
    "structure.n.01": "structure",
    "symbol.n.01": "plain shape",
    "symbol.n.02": "plain shape",
    "celestial_body.n.01": "light in the sky",
    "body_part.n.01": "part of the body",
    "geological_formation.n.01": "landscape",
    "artifact.n.01": "object",
}


def choose(concept: str, kind: str, number: str, senses: Sequence[Any], noun: str) -> str:
    """A neutral text as `prompts.neutral_prompt` takes it, for a word that `known_words` has none for.

    Args:
        concept: the word or words to erase.
        kind: a key of `templates.TEMPLATES_BY_KIND`.
        number: see `noun_phrases.number_of`.
        senses: its synsets.
        noun: what a phrase that WordNet does not know is about, such as `logo` of `Nike logo`; else "".
    """
    bare = [word for word in concept.split() if word.casefold() not in NUDITY]
    # The empty prompt would leave the figure undressed: the clothes have to be named.
    if not bare:
        return "a fully dressed person"
    if len(bare) < len(concept.split()):
        return "{fully dressed " + " ".join(bare) + "}"
    if kind in BY_KIND:
        return BY_KIND[kind]
    wider = noun or (wider_word(senses) if kind in ("entity", "scene") else "")
    if not wider and kind in ANYTHING:
        wider = ANYTHING[kind]
    return "{" + in_number(wider, number) + "}" if wider else "{}"


def others(neutral: str, erased: Sequence[str]) -> tuple[str, ...]:
    """Common things that can be painted where a model draws the concept for its neutral word too.

    Args:
        neutral: the text, as `choose` gives it; only one that puts a word in the concept's place has others.
        erased: the concept's words, none of which is among them.
    """
    braces = re.fullmatch(r"\{(\w[^{}|]*)\}", neutral)
    if braces is None:
        return ()
    word = braces[1]
    numbered = []
    for thing in COMMON_THINGS:
        if is_plural(word):
            thing = plural(thing)
        elif word.startswith(("a ", "an ")):
            thing = articles.with_article(thing)
        if matching.first_occurring(thing, (word, *erased)) is None:
            numbered.append("{" + thing + "}")
    return tuple(numbered)


def wider_word(senses: Sequence[Any]) -> str:
    """A common word for something of the same kind; "" for what is no thing."""
    for synset in wordnet.hypernym_path(list(senses[:1])):
        if synset.name() in WIDER:
            return WIDER[synset.name()]
    return ""


def in_number(word: str, number: str) -> str:
    """The word as the sentences of a concept take it: after their article, without one, or as a plural."""
    if number == "many" and articles.takes_article(word):
        # Of `part of the body` the first noun is counted.
        first, blank, rest = word.partition(" of ")
        return plural(first) + blank + rest
    return word if number in ("one", "the") else articles.with_article(word)
