"""What somebody does, typed in the form that ends in -ing: `smoking`, `riding a horse`, `sitting on`."""

from collections.abc import Iterable
from typing import Any

from . import wordnet
from .articles import DETERMINERS, PREPOSITIONS, is_mass
from .inflections import verb_forms
from .number_forms import is_plural

BETWEEN_TWO = {"kiss", "hug", "fight", "embrace", "cuddle", "wrestle", "argue", "marry", "date", "fence", "duel"}
DOINGS = {"noun.act", "noun.process", "noun.state", "noun.cognition"}
SHOWN = wordnet.CONTACT | {"verb.consumption", "verb.competition", "verb.creation", "verb.social", "verb.communication"}
# Verbs whose -ing form, before a noun without an article, has that noun as its object.
TAKES_OBJECT = set(
    """
    bake brush build carry catch chase cook cut drink drive eat feed fire give grab have hold hug inject kill kiss lick
    lift make play point pour pull push read ride shake shoot show smoke spread squeeze suck take throw touch use watch
    wear
    """.split()
)
PLACES_OF_POSTURE = PREPOSITIONS | {"against", "on", "between"}


def base_of(word: str) -> str | None:
    """The verb of a word in -ing; None when it is none: `king` and `spring` are not."""
    base = wordnet.database().morphy(word.lower(), "v")
    if not word.lower().endswith("ing") or base is None or base == word.lower():
        return None
    return base if verb_forms(base)[1] == word.lower() else None


def kind_of(phrase: str) -> str | None:
    """`act`, `act of two` or `posture`; None when the phrase is not what somebody does."""
    first, *rest = phrase.split()
    base = base_of(first)
    if base is None or (rest and wordnet.lookup(phrase)):
        return None
    if not rest:
        return _by_partner(base) if _is_doing(first) else None
    if rest[-1].lower() in PLACES_OF_POSTURE:
        return "posture"
    if rest[0].lower() in DETERMINERS | PLACES_OF_POSTURE or _takes(base, rest[-1]):
        return _by_partner(base)
    return None


def _by_partner(base: str) -> str:
    return "act of two" if base in BETWEEN_TWO else "act"


def _is_doing(word: str) -> bool:
    """Whether a word alone is first of all what is done: `swimming`, but neither `painting` nor `wedding`."""
    nouns = [synset for synset in wordnet.lookup(word, "n") if word.lower() in map(str.lower, synset.lemma_names())]
    return not nouns or nouns[0].lexname() in DOINGS


def _takes(base: str, noun: str) -> bool:
    """Whether the noun is the verb's object, as in `drinking beer`; in `burning house` it is what burns.

    An object without an article is a plural or is not counted.
    """
    return base in TAKES_OBJECT and (is_plural(noun) or is_mass(noun))


def senses(phrase: str) -> list[Any]:
    """The verb's synsets of a phrase of one word that a picture can show; [] of several words."""
    first, *rest = phrase.split()
    base = base_of(first)
    if rest or base is None:
        return []
    return [synset for synset in wordnet.lookup(base, "v") if synset.lexname() in SHOWN]


def gerunds(verbs: Iterable[str]) -> list[str]:
    """`kissing` of `kiss`; verbs of several words, such as `log Z's`, are left out."""
    return [verb_forms(verb)[1] for verb in verbs if verb.isalpha()]


def other_forms(phrase: str) -> tuple[str, ...]:
    """`ride a horse`, `rides a horse`, `rode a horse` of `riding a horse`.

    Of one word the base is left out where it is a thing as well: to erase `smoke` would erase that of a chimney.
    """
    first, *rest = phrase.split()
    base = base_of(first)
    assert base is not None, "the phrase begins with a form of a verb"
    forms = [" ".join([base, *rest]), *verb_forms(" ".join([base, *rest]))]
    if not rest and wordnet.lookup(base, "n") and wordnet.lookup(base, "n")[0].lexname() not in DOINGS:
        forms = forms[3:]
    return tuple(form for form in dict.fromkeys(forms) if form.casefold() != phrase.casefold())
