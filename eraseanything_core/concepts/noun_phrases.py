"""The noun that a concept is about, and whether it is counted."""

from typing import Any

from . import articles, wordnet
from .number_forms import is_plural

# Kinds of WordNet that have no article of their own: `nudity`, `anger`, `fog`.
UNCOUNTED = {f"noun.{kind}" for kind in "substance state attribute feeling motive process relation time".split()}
# Names that end in such a word have an article: the Eiffel Tower, the Golden Gate Bridge.
LANDMARKS = set(
    """
    tower bridge building palace cathedral temple statue monument museum wall pyramid pyramids canal river ocean sea
    desert colosseum acropolis parthenon louvre kremlin capitol pentagon vatican alps planet
    """.split()
)
PLACES = {"geological_formation.n.01", "body_of_water.n.01", "region.n.03"}  # synsets of what one stands in
NAMED_PLACES = {"Mount", "Lake", "Cape"}  # before a name that WordNet may lack
# Kinds of WordNet for what happens or is: it fills a picture, and lies on no table.
HAPPENINGS = {f"noun.{kind}" for kind in "state phenomenon time act event process feeling".split()}
PARTS_OF_PEOPLE = {"hair", "beard", "skin", "eyes", "lips", "teeth", "eyebrows", "fingers", "eyelashes", "nails"}


def number_of(concept: str, chosen: list[Any]) -> str:
    """How a concept is counted.

    Args:
        concept: the word or words to erase.
        chosen: its synsets; [] when WordNet does not know it.

    Returns:
        one (`a dog`), many (`dogs`), mass (`blood`), name (`Pikachu`), or the (`the Eiffel Tower`). What WordNet does
        not know at all, such as `xyzzy`, is taken for a name, for that gets no article.
    """
    noun = articles.head(concept)
    if not noun or concept.split()[0].casefold() in articles.DETERMINERS | articles.PREPOSITIONS:
        return "name"
    is_name = any(word[0].isupper() for word in concept.split())
    if is_name and (noun.casefold() in LANDMARKS and len(concept.split()) > 1):
        return "the"
    if chosen and wordnet.is_instance(chosen[0]):
        return "name"
    known = chosen or _nouns(noun)
    if not known or (not chosen and noun[0].isupper() and len(concept.split()) > 1):
        return "name"
    if is_plural(noun):
        return "many"
    return "mass" if articles.is_mass(noun) or is_uncounted(known, noun) else "one"


def is_scene(concept: str, number: str, chosen: list[Any]) -> bool:
    """Whether a concept fills a picture and is no thing in it: a place, a landmark, or what is not counted and happens.

    Args:
        concept: the word or words to erase.
        number: how it is counted, see `number_of`.
        chosen: its synsets.
    """
    first, *rest = concept.split()
    is_landmark = number == "the" and articles.head(concept).casefold() in LANDMARKS
    if is_landmark or (rest and first in NAMED_PLACES):
        return True
    if any(synset.name() in PLACES for synset in wordnet.hypernym_path(chosen[:1])):
        return True
    return number == "mass" and bool(chosen) and chosen[0].lexname() in HAPPENINGS


def is_uncounted(synsets: list[Any], noun: str) -> bool:
    """Whether a noun's first sense is no thing; a `glass` is a substance first but a thing as well."""
    kinds = [synset.lexname() for synset in synsets]
    return (kinds[0] in UNCOUNTED and "noun.artifact" not in kinds) or (kinds[0] == "noun.act" and noun.endswith("ing"))


def named(concept: str, number: str) -> str:
    """The concept with its article."""
    if number == "the":
        return f"the {concept}"
    return f"{articles.article(concept)} {concept}" if number == "one" else concept


def _nouns(noun: str) -> list[Any]:
    return [synset for synset in wordnet.lookup(noun, "n") if not wordnet.is_instance(synset)]


def wider(concept: str) -> str:
    """The noun that a phrase is about, with what follows it: `tower at night` of `Eiffel tower at night`.

    Returns:
        "" when the phrase is one word, or its noun is none that WordNet knows.
    """
    noun = articles.head(concept)
    words = concept.split()
    is_proper = noun[:1].isupper() and noun.casefold() not in LANDMARKS
    begins_oddly = words[0] == noun or words[0].casefold() in articles.DETERMINERS | articles.PREPOSITIONS
    if not noun or begins_oddly or is_proper or not _nouns(noun):
        return ""
    return " ".join([noun.lower(), *words[words.index(noun) + 1 :]])
