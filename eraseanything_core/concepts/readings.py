"""How a typed concept is understood: what of it is erased, its category, its sentences and its sense."""

from dataclasses import dataclass
from typing import Any

from . import acts, known_words, noun_phrases, person_names, style_phrases, wordnet
from .known_words import KnownWord
from .neutrals import NUDITY
from .relations import ACTS, PLACES
from .templates import kind_of

STYLES = {"artistic_style.n.01", "artistic_movement.n.01", "expressive_style.n.01"}
ARTISTS = {"painter.n.01", "illustrator.n.01", "printmaker.n.01"}
PEOPLE = ("person", "people", "human", "feel", "emotion", "clothed", "mood", "pleasure", "offspring", "muscle", "flesh")


@dataclass(frozen=True)
class Reading:
    """A concept as it is understood.

    Attributes:
        concept: what is erased: `Van Gogh` of `in the style of Van Gogh`.
        category: entity, style, relation or person.
        kind: a key of `templates.TEMPLATES_BY_KIND`.
        number: see `noun_phrases.number_of`.
        senses: its synsets, the likeliest first; [] when WordNet does not know it.
        known: its row in known_words.json.
    """

    concept: str
    category: str
    kind: str
    number: str
    senses: list[Any]
    known: KnownWord | None

    def noun(self) -> str:
        """What an entity that WordNet does not know is about: `logo` of `Nike logo`; "" where that is no other word."""
        is_phrase = self.category == "entity" and not self.senses and not self.known
        return noun_phrases.wider(self.concept) if is_phrase else ""

    def kin(self) -> list[Any]:
        """The synsets that tell what is near: its own, else those of the noun that it is about."""
        noun = self.noun()
        return self.senses or (wordnet.senses(noun, "entity", "n") if noun else [])

    def named(self) -> str:
        """The concept with the article that it takes."""
        return noun_phrases.named(self.concept, self.number)


def read(typed: str, category: str = "auto", part_of_speech: str = "auto") -> Reading:
    """Understands what was typed.

    Args:
        typed: the concept, its blanks already single.
        category: auto, or the one that the user wants.
        part_of_speech: auto, noun, verb, adjective or adverb.
    """
    concept = typed
    if category in ("auto", "style"):
        style = style_phrases.core(typed)
        if style is not None:
            concept = style
            category = "style"
    known = known_words.find(concept)
    # What the user chose outweighs the table.
    if known and (part_of_speech != "auto" or category not in ("auto", known.category)):
        known = None
    if category == "auto":
        category = known.category if known else category_of(concept)
    senses = _senses(concept, category, part_of_speech, known)
    number = (known.number if known else "") or _number(concept, category, senses)
    kind = (known.kind if known else "") or _kind(concept, category, senses, number)
    return Reading(concept, category, kind, number, senses, known)


def category_of(concept: str) -> str:
    """The category that a concept most likely has."""
    if concept.casefold() in PLACES | ACTS or acts.kind_of(concept):
        return "relation"
    synsets = wordnet.lookup(concept)
    people = wordnet.senses(concept, "person")
    if people:
        # Whoever types a painter's name means the paintings.
        wider = wordnet.hypernym_path(people[:1])
        return "style" if any(synset.name() in ARTISTS for synset in wider) else "person"
    is_landmark = concept.split()[-1].casefold() in noun_phrases.LANDMARKS
    if not synsets and not is_landmark and (person_names.is_name(concept) or person_names.is_figure(concept)):
        return "person"
    wider = wordnet.hypernym_path(wordnet.senses(concept, "style")[:1])
    if any(synset.name() in STYLES for synset in wider):
        return "style"
    return "relation" if synsets and all(synset.pos() == "v" for synset in synsets) else "entity"


def is_name_of_person(reading: Reading) -> bool:
    """Whether a concept is the name of a person."""
    if reading.category == "person" or (reading.senses and wordnet.is_instance(reading.senses[0])):
        return True
    return reading.category == "style" and not reading.senses and person_names.is_name(reading.concept)


def _senses(concept: str, category: str, part_of_speech: str, known: KnownWord | None) -> list[Any]:
    if known:
        return [wordnet.database().synset(known.sense)] if known.sense else []
    if category == "relation" and part_of_speech == "auto" and acts.kind_of(concept):
        return acts.senses(concept)
    return wordnet.senses(concept, category, wordnet.POS.get(part_of_speech))


def _kind(concept: str, category: str, senses: list[Any], number: str) -> str:
    """The templates of a word that the table lacks."""
    if category == "relation":
        return acts.kind_of(concept) or kind_of(concept, category)
    if category != "entity":
        return category
    if senses and wordnet.pos_of(senses[0]) == "a":
        words = senses[0].definition().casefold()
        is_of_people = concept.casefold() in NUDITY or any(word in words for word in PEOPLE)
        return "adjective of people" if is_of_people else "adjective"
    words_of_part = concept.casefold().split()
    if len(words_of_part) > 1 and words_of_part[-1] in noun_phrases.PARTS_OF_PEOPLE:
        return "part"
    return "scene" if noun_phrases.is_scene(concept, number, senses) else "entity"


def _number(concept: str, category: str, senses: list[Any]) -> str:
    """How a word is counted that the table lacks; names and styles have no article."""
    return noun_phrases.number_of(concept, senses) if category == "entity" else "name"
