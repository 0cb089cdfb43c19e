"""Forms of a word: its inflections and the words of state derived from it."""

from collections import defaultdict
from functools import cache

from . import wordnet

COUNTED = {f"noun.{kind}" for kind in "animal artifact body event food group object person plant shape".split()}
MANS = ("human", "german", "roman", "norman", "shaman", "talisman", "ottoman", "caiman", "cayman", "brahman")
UNCOUNTED = ("ness", "ity", "ism")
STATES = {"noun.state", "noun.attribute", "adj.all", "adj.pert"}


@cache
def irregular(pos: str) -> dict[str, list[str]]:
    """base form: its irregular forms, from WordNet's lists of exceptions."""
    found = defaultdict(list)
    with wordnet.database().open({"n": "noun", "v": "verb"}[pos] + ".exc") as lines:
        for line in lines:
            form, base, *_ = line.split()
            found[base].append(form)
    return dict(found)


def plural(noun: str) -> str:
    """The plural of a noun; of its last word when it has several."""
    *first, last = noun.split()
    if last in irregular("n"):
        last = irregular("n")[last][0]
    elif last.endswith("man") and not last.endswith(MANS):
        last = last[:-3] + "men"
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*first, last])


def numbers(noun: str) -> tuple[str, ...]:
    """The singular of a noun and its plurals, without itself; of its last word when it has several.

    What WordNet lists as a word of its own, such as glasses, has no singular.
    """
    *first, last = noun.lower().split()
    bases = [wordnet.database().morphy(last, "n") or last]
    bases += [base for base, forms in irregular("n").items() if last in forms]
    found = [form for base in bases for form in (base, plural(base), *irregular("n").get(base, ()))]
    return tuple(" ".join([*first, form]) for form in dict.fromkeys(found) if form != last)


def verb_forms(verb: str) -> list[str]:
    """Third person, -ing and past forms of a verb; of its first word when it has several."""
    first, *rest = verb.split()
    listed = irregular("v").get(first, [])
    stem = first[:-1] if first.endswith("e") and not first.endswith(("ee", "ye", "oe")) else first
    past = first[:-1] + "ied" if first.endswith("y") and first[-2:-1] not in "aeiou" else stem + "ed"
    forms = [plural(first) if first not in irregular("n") else first + "s"]
    forms += [form for form in listed if form.endswith("ing")][:1] or [stem + "ing"]
    forms += [form for form in listed if not form.endswith(("ing", "s"))] or [past]
    return [" ".join([form, *rest]) for form in forms]


def variants(concept: str, chosen: list) -> tuple[str, ...]:
    """Other forms of a concept that WordNet knows, in its first sense."""
    if not chosen or chosen[0].instance_hypernyms():
        return ()
    synset, base = chosen[0], wordnet.spelled(wordnet.listed(concept, chosen[0]))
    found = [base, *derived(base, synset)]
    if synset.lexname() in COUNTED and not base.endswith(UNCOUNTED):
        found.append(plural(base))
    if synset.pos() == "v":
        found += verb_forms(base)
    return tuple(dict.fromkeys(form for form in found if form.casefold() != concept.casefold()))


def derived(base: str, synset) -> list[str]:
    """Nouns and adjectives of state made from one another: nude, nudity, nudeness."""
    if synset.lexname() not in STATES:
        return []
    lemmas = [lemma for lemma in synset.lemmas() if wordnet.spelled(lemma.name()) == base]
    forms = [form for lemma in lemmas for form in lemma.derivationally_related_forms()]
    others = [form for form in forms if form.synset().lexname() in STATES and form.synset().pos() != synset.pos()]
    return [wordnet.spelled(form.name()) for form in others]
