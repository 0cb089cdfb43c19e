"""Sentences by category, prompts to keep, and what stands in a concept's place."""

from .relations import PLACES

TEMPLATES_BY_KIND = {
    "entity": (
        "a photo of {}",
        "an image of {}",
        "a close view of {}",
        "a painting of {}",
        "{} on a plain background",
        "{} in the middle of the picture",
        "{} outdoors in daylight",
        "a drawing that shows {}",
    ),
    "style": (
        "an art in the style of {}",
        "a landscape in the style of {}",
        "a portrait in the style of {}",
        "a bowl of oranges in the style of {}",
        "a house by a road, {} style",
        "a harbour with boats painted in the style of {}",
    ),
    "relation": (
        "two people {}",
        "a photo of two people who {}",
        "a man and a woman {}",
        "a drawing of two children who {}",
        "an image of a group of people who {}",
    ),
    "place": (
        "a ball {} a box",
        "a photo of a cup {} a table",
        "a bird {} a tree",
        "a drawing of a child {} a house",
        "a red car {} a garage",
    ),
    "person": (
        "a photo of {}",
        "a portrait of {}",
        "{} smiling",
        "{} on a stage",
        "{} walking along a street",
        "a painting of {}",
        "the face of {}, close view",
    ),
    "adjective": (
        "a photo of something {}",
        "a {} figure",
        "a {} person in a room",
        "a painting of a {} person",
        "an image of a {} scene",
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
NUDITY = {"nude", "nudity", "naked", "nakedness", "nudeness", "nsfw", "undressed", "unclothed"}
NEUTRAL = {"person": "{a person}", "style": "{a plain photograph}", "relation": "{stand together}", "place": "{and}"}


def sentences(concept: str, category: str, is_adjective: bool = False) -> tuple[str, ...]:
    """The templates of a concept, filled with it."""
    chosen = TEMPLATES_BY_KIND[kind(concept, category, is_adjective)]
    return tuple(template.replace("{}", concept) for template in chosen)


def kind(concept: str, category: str, is_adjective: bool = False) -> str:
    """The templates' name: relations are acts or places, and an adjective needs a noun beside it."""
    if category == "relation" and concept.casefold() in PLACES:
        return "place"
    return "adjective" if category == "entity" and is_adjective else category


def choose_neutral(concept: str, category: str, anchors: tuple[str, ...], is_adjective: bool = False) -> str:
    """What shall be painted instead: a person in clothes, a wider word, or a word of the category.

    Returns:
        A neutral text as `prompts.neutral_prompt` takes it.
    """
    # The empty prompt would leave the figure undressed: the clothes have to be named.
    if concept.casefold() in NUDITY:
        return "a fully dressed person"
    # Only a thing has wider words that can be painted in its place: an animal for a dog.
    wider = f"{{{anchors[0]}}}" if anchors and category == "entity" else "{}"
    return NEUTRAL.get(kind(concept, category, is_adjective), wider)
