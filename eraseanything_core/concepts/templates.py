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
        "{a} in bright red",
        "{a} in blue on a white background",
        "{a} beside a green tree",
        "a man with {a}",
        "a yellow sign with {a}",
        "{a} in a dark room",
        "a drawing that shows {a}",
        "{a} in green on a grey background",
        "{a} outdoors in daylight",
        "{a} on a table",
    ),
    # What fills a picture and is no thing in it: a mountain, the Eiffel Tower, rain, nudity.
    "scene": (
        "a photo of {a}",
        "an image of {a}",
        "a painting of {a}",
        "a black and white photo of {a}",
        "a drawing that shows {a}",
        "a postcard with {a}",
        "a film with {a}",
        "a picture of {a} in blue and grey",
        "a magazine with {a} on its cover",
        "a large print of {a}",
        "an old photograph of {a}",
        "a picture that shows {a}",
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
        "a red car {} a garage",
        "a blue chair {} a yellow lamp",
        "an image of a green star {} a white cloud",
        "an orange fish {} a purple stone on a grey background",
        "one dog {} one cat",
        "a drawing of a child {} a house",
        "there is a black box {} a red ball",
        "a green bottle {} a blue plate on a white background",
        "a picture of a horse {} a fence",
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
        "a {} red box on a white background",
        "an orange car, {}",
        "a green bird in a {} frame",
        "a photo of a {} blue cup",
        "a {} tree beside a road",
        "a picture of a {} purple fish",
        "a blue boat that is {}",
        "a yellow cat in {} style",
        "a painting of a {} house",
        "an image of a {} wall",
        "a drawing of a {} yellow chair",
        "there is a red lamp, {}, on a grey background",
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
# What any model draws: places, people, animals, things with their colours, patterns, places beside each other, media.
GENERIC_PROMPTS = (
    "a mountain landscape with a lake",
    "a city street at night",
    "a forest path in autumn",
    "a kitchen with a window",
    "a ship far out at sea",
    "a village in the snow",
    "an old man reading a newspaper",
    "two children playing in a garden",
    "a smiling woman with black hair",
    "a white dog on a sofa",
    "a grey cat under a table",
    "an orange fish in a glass bowl",
    "a black bird above a river",
    "a red ball on green grass",
    "a blue box on a grey background",
    "a yellow star on a blue flag",
    "a green tree beside a white house",
    "a golden ring on a pink cloth",
    "a wooden cross on a hill",
    "the moon behind clouds",
    "a bowl of oranges",
    "a purple flower in a vase",
    "a pair of brown shoes",
    "a cup between two plates",
    "a lamp above a bed",
    "a bridge over a river",
    "a car behind a truck",
    "a striped shirt on a hanger",
    "a dress with white dots",
    "a checkered floor",
    "a pattern of coloured squares",
    "a drawing of a castle with black outlines",
    "a blurred photo of a train",
    "an oil painting of a harbour",
    "a glowing sign on a wall",
    "a plain red circle on a white background",
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
