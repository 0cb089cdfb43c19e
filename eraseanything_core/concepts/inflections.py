"""Other forms of a concept that WordNet knows: its inflections, and the words of state derived from it."""

from collections import defaultdict
from functools import cache
from typing import Any

from . import wordnet
from .articles import is_mass
from .number_forms import is_plural, plural, with_s

# Kinds of things that are counted; `soccer` and `music` have no plural.
COUNTED = {f"noun.{kind}" for kind in "animal artifact body event food group object person plant shape".split()}
UNCOUNTED = ("ness", "ity", "ism")
STATES = {"noun.state", "noun.attribute", "adj.all", "adj.pert"}


@cache
def irregular_verbs() -> dict[str, list[str]]:
    """base form: its irregular forms, from WordNet's list of exceptions."""
    forms = defaultdict(list)
    with wordnet.database().open("verb.exc") as lines:
        for line in lines:
            form, base, *_ = line.split()
            forms[base].append(form)
    return dict(forms)


def verb_forms(verb: str) -> list[str]:
    """Third person, -ing and past forms of a verb; of its first word when it has several."""
    first, *rest = verb.split()
    irregular = irregular_verbs().get(first, [])
    gerunds = []
    pasts = []
    for form in irregular:
        if form.endswith("ing"):
            gerunds.append(form)
        elif not form.endswith("s"):
            pasts.append(form)
    # The e falls away in `dancing`, but not in `seeing`, `dyeing` and `hoeing`.
    drops_e = first.endswith("e") and not first.endswith(("ee", "ye", "oe"))
    stem = first.removesuffix("e") if drops_e else first
    is_y_after_consonant = first.endswith("y") and first[-2:-1] not in "aeiou"
    regular_past = first.removesuffix("y") + "ied" if is_y_after_consonant else stem + "ed"
    forms = [with_s(first), *(gerunds[:1] or [stem + "ing"]), *(pasts or [regular_past])]
    return [" ".join([form, *rest]) for form in forms]


def variants(concept: str, chosen: list[Any]) -> tuple[str, ...]:
    """Other forms of a concept that WordNet knows, in its first sense.

    Args:
        concept: the word or words to erase.
        chosen: its synsets; names of persons and places have no forms.
    """
    if not chosen or wordnet.is_instance(chosen[0]):
        return ()
    synset = chosen[0]
    base = wordnet.spelled(wordnet.listed_form(concept, synset))
    forms = [base, *derived(base, synset)]
    is_counted = synset.lexname() in COUNTED and not base.endswith(UNCOUNTED)
    if is_counted and not is_plural(base) and not is_mass(base):
        forms.append(plural(base))
    if synset.pos() == "v":
        forms += verb_forms(base)
    return tuple(dict.fromkeys(form for form in forms if form.casefold() != concept.casefold()))


def derived(base: str, synset: Any) -> list[str]:
    """Nouns and adjectives of state made from one another: nude, nudity, nudeness."""
    if synset.lexname() not in STATES:
        return []
    words = []
    for lemma in synset.lemmas():
        if wordnet.spelled(lemma.name()) != base:
            continue
        for form in lemma.derivationally_related_forms():
            other = form.synset()
            if other.lexname() in STATES and other.pos() != synset.pos():
                words.append(wordnet.spelled(form.name()))
    return words
