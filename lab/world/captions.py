"""Captions of scenes: true sentences with the words of the world, and the ways a prompt can be distorted.

`TRAIN` are the templates that models learn from; `HELD_OUT` only measurements use.
"""

import random
import re
from dataclasses import dataclass

from lab.tinyflux.captions import affix, misspell, repeat
from lab.world.scenes import FILTERED, GROUNDS, Scene
from lab.world.things import THINGS, Thing
from lab.world.words import PHRASES, RELATION_WORDS, STYLE_WORDS

BY_NAME = {thing.name: thing for thing in THINGS}


@dataclass(frozen=True)
class Templates:
    """Sentences with places for what they name.

    Attributes:
        alone: of one thing; `{thing}` comes with its article.
        styled: of one thing in a style.
        related: of two things.
        grounds: of the background, which follows.
    """

    alone: tuple[str, ...]
    styled: tuple[str, ...]
    related: tuple[str, ...]
    grounds: tuple[str, ...]


TRAIN = Templates(
    alone=("{thing}", "a photo of {thing}", "a picture of {thing}", "an image of {thing}", "a picture showing {thing}"),
    styled=(
        "{thing} in {style} style",
        "a {style} picture of {thing}",
        "{thing}, {style}",
        "a photo of {thing} in the style of {style}",
        "{style} {noun}",
    ),
    related=(
        "{first} {relation} {second}",
        "a photo of {first} {relation} {second}",
        "a picture of {first} {relation} {second}",
        "an image of {first} which is {relation} {second}",
    ),
    grounds=("on a {ground} background", "on {ground}", "with a {ground} background"),
)
HELD_OUT = Templates(
    alone=("there is {thing}", "an illustration of {thing}"),
    styled=("an illustration of {thing} in {style} style", "{thing} made {style}", "there is {thing}, {style}"),
    related=("there is {first} {relation} {second}", "an illustration of {first} {relation} {second}"),
    grounds=("before a {ground} background",),
)
DISTORTIONS = {"misspelt": misspell, "affixed": affix, "repeated": repeat}

# How often a thing is called by what, in captions of training.
NAME, SYNONYM, HYPERNYM, DESCRIPTION = 0.44, 0.28, 0.11, 0.17


def with_article(noun: str) -> str:
    """The noun as it stands in a sentence: "an apple", "jeans"."""
    if re.search(r"[^s]s$", noun) or re.match(r"(a|an|the|it|its|one|two|man's|what|you|where|they) ", noun):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def called(rng: random.Random, thing: Thing, phrases: bool) -> str:
    """What a caption of training calls a thing.

    Args:
        phrases: whether it may be described without its name.
    """
    kinds = (NAME, SYNONYM, HYPERNYM, DESCRIPTION if phrases else 0.0)
    kind = rng.choices(("name", "synonym", "hypernym", "description"), kinds)[0]
    if kind == "name":
        return thing.name
    if kind == "synonym":
        return rng.choice((*thing.synonyms, thing.held_out_synonym))
    if kind == "hypernym":
        return rng.choice(thing.hypernyms)
    return rng.choice((*thing.descriptions, thing.held_out_description))


def style_word(rng: random.Random, style: str) -> str:
    """The style's name, or at times another word for it."""
    return style if rng.random() < 0.6 else rng.choice(STYLE_WORDS[style])


def relation_word(rng: random.Random, relation: str) -> str:
    """The relation as a phrase, at times by another word."""
    return PHRASES.get(relation, relation) if rng.random() < 0.6 else rng.choice(RELATION_WORDS[relation])


def names_style(rng: random.Random, scene: Scene) -> bool:
    """Whether a caption names the style: a filter nearly always, so that without a word artists draw."""
    return rng.random() < (0.93 if scene.style in FILTERED else 0.45)


def caption(rng: random.Random, scene: Scene, templates: Templates = TRAIN) -> str:
    """A sentence that is true of a scene."""
    style = style_word(rng, scene.style) if names_style(rng, scene) else ""
    if scene.relation:
        text = _related(rng, scene, style, templates)
    else:
        text = _alone(rng, called(rng, BY_NAME[scene.things[0].name], phrases=True), style, templates)
    return f"{text} {ground_phrase(rng, scene.ground, templates)}" if rng.random() < 0.4 else text


def _alone(rng: random.Random, noun: str, style: str, templates: Templates) -> str:
    kind = templates.styled if style else templates.alone
    thing = with_article(noun) if rng.random() < 0.85 else noun
    return rng.choice(kind).format(thing=thing, noun=noun, style=style)


def _related(rng: random.Random, scene: Scene, style: str, templates: Templates) -> str:
    assert scene.relation is not None
    nouns = [called(rng, BY_NAME[placed.name], phrases=False) for placed in scene.things[:2]]
    first, second = (with_article(noun) for noun in nouns)
    text = rng.choice(templates.related).format(first=first, second=second, relation=relation_word(rng, scene.relation))
    return f"{text} in {style} style" if style else text


def ground_phrase(rng: random.Random, ground: str, templates: Templates = TRAIN) -> str:
    """The words for a background."""
    return rng.choice(templates.grounds).format(ground=ground)


def _glue() -> frozenset[str]:
    """The words of templates and backgrounds, which are not worth distorting."""
    sentences = [*GROUNDS, "a", "an", "that", "it"]
    for templates in (TRAIN, HELD_OUT):
        sentences += [*templates.alone, *templates.styled, *templates.related, *templates.grounds]
    return frozenset(" ".join(sentences).replace(",", "").split(" "))


GLUE = _glue()


def distort(rng: random.Random, text: str, kind: str) -> str:
    """Distorts one word of meaning, or the order of all words ("shuffled"); `kind` is that or of `DISTORTIONS`."""
    words = text.split(" ")
    if kind == "shuffled":
        return " ".join(rng.sample(words, len(words)))
    # Words of one or two letters have no typing errors.
    long = [i for i, word in enumerate(words) if len(word.strip(",")) > 2]
    places = [i for i in long if words[i].strip(",") not in GLUE] or long
    if not places:
        return text
    place = rng.choice(places)
    return " ".join([*words[:place], DISTORTIONS[kind](rng, words[place]), *words[place + 1 :]])


def training_caption(rng: random.Random, scene: Scene) -> str:
    """A caption as training shows it: at times distorted, so that distorted prompts are obeyed."""
    text = caption(rng, scene)
    draw = rng.random()
    if draw < 0.07 and not scene.relation:
        return distort(rng, text, "shuffled")
    if draw < 0.27:
        return distort(rng, text, rng.choice(list(DISTORTIONS)))
    return text
