"""Sentences by category, prompts to keep, and what stands in a concept's place."""

from .prompts import fill
from .relations import PLACES

# `{}` is the concept as it is typed, `{a}` the concept with the article that it takes.
TEMPLATES_BY_KIND = {
    "entity": (
        "a photo of {a}",
        "an image of {a}",
        "a close view of {a}",
        "a painting of {a}",
        "{a} on a plain background",
        "{a} in the middle of the picture",
        "{a} outdoors in daylight",
        "a drawing that shows {a}",
    ),
    "style": (
        "a work of art in the style of {a}",
        "a landscape in the style of {a}",
        "a portrait in the style of {a}",
        "a bowl of oranges in the style of {a}",
        "a house by a road in the style of {a}",
        "a harbour with boats painted in the style of {a}",
    ),
    "relation": (
        "two people {}",
        "a photo of two people who {}",
        "a man and a woman {}",
        "a drawing of two children who {}",
        "an image of a group of people who {}",
    ),
    "act": (
        "a photo of a person {}",
        "a man {}",
        "a woman {}",
        "a painting of a person {}",
        "a group of people {}",
        "a close view of a person {}",
    ),
    "act of two": (
        "two people {}",
        "a photo of two people {}",
        "a man and a woman {}",
        "a drawing of two friends {}",
        "an image of a group of people {}",
    ),
    "posture": (
        "a man {} a bench",
        "a photo of a woman {} a wall",
        "a bird {} a branch",
        "a drawing of a child {} a rock",
        "a cat {} a box",
    ),
    "place": (
        "a ball {} a box",
        "a photo of a cup {} a table",
        "a bird {} a tree",
        "a drawing of a child {} a house",
        "a red car {} a garage",
    ),
    "person": (
        "a photo of {a}",
        "a portrait of {a}",
        "{a} smiling",
        "{a} on a stage",
        "{a} walking along a street",
        "a painting of {a}",
        "the face of {a}, close view",
    ),
    "adjective": (
        "a photo of something {}",
        "a {} dress on a hanger",
        "a {} ball on a table",
        "a person in a {} coat",
        "a painting of a {} house",
        "an image of a {} wall",
    ),
    "adjective of people": (
        "a photo of somebody {}",
        "a {} figure",
        "a {} person in a room",
        "a painting of a {} person",
        "a {} woman by a lake",
    ),
    "look": (
        "a photo with {a}",
        "a portrait of a woman with {a}",
        "a street at night with {a}",
        "a close view of a flower with {a}",
        "a picture of a dog in a park with {a}",
        "a landscape with {a}",
    ),
    "part": (
        "a photo of a person with {a}",
        "a portrait of a woman with {a}",
        "a painting of a person with {a}",
        "a close view of somebody with {a}",
        "somebody with {a} on a street",
        "a group of people with {a}",
    ),
    "tag": (
        "{}, a photo of a woman",
        "{}, a painting of two people",
        "{}, a man in a room",
        "an {} picture of a woman",
        "a photo that is {}",
    ),
}
GENERIC_PROMPTS = (
    "a mountain landscape with a lake",
    "a city street at night",
    "a bowl of oranges",
    "an old man reading a newspaper",
    "a pattern of coloured squares",
    "a forest path in autumn",
    "a kitchen with a window",
    "a ship far out at sea",
)
OTHER_STYLES = ("an oil painting", "a watercolor", "a pencil drawing", "Claude Monet", "Rembrandt", "pixel art")


def sentences(concept: str, kind: str, named: str) -> tuple[str, ...]:
    """The templates of a kind, filled.

    Args:
        concept: as it stands after a preposition or an article of the template.
        kind: a key of `TEMPLATES_BY_KIND`.
        named: the concept with its own article.
    """
    filled = []
    for template in TEMPLATES_BY_KIND[kind]:
        filled.append(fill(template.replace("{a}", named), concept))
    return tuple(filled)


def kind_of(concept: str, category: str) -> str:
    """The templates that a category has: relations are places or acts."""
    return "place" if category == "relation" and concept.casefold() in PLACES else category
