"""The concepts of TinyFlux's world and their synonyms.

Every concept has two synonyms that an eraser may train on and one that is held out, so that generalisation can be
measured.
"""

from ..quoting import quoted
from .shapes import ENTITIES, PAINT_STYLES
from .world import RELATIONS

# concept -> (two synonyms for training, one held out)
SYNONYMS: dict[str, tuple[str, str, str]] = {
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
CONCEPTS: dict[str, tuple[str, ...]] = {"entity": tuple(ENTITIES), "style": PAINT_STYLES, "relation": RELATIONS}


def kind_of(concept: str) -> str:
    """The kind of a concept: "entity", "style" or "relation".

    Raises:
        ValueError: the word is no concept of the world.
    """
    for kind, concepts in CONCEPTS.items():
        if concept in concepts:
            return kind
    raise ValueError(f"{quoted(concept)} is no concept of TinyFlux's world: choose one of {', '.join(SYNONYMS)}")
