"""Other forms of a person's name."""

import unicodedata

LINKS = {"van", "von", "de", "da", "di", "del", "della", "la", "le", "der", "den", "y"}  # small words inside a name
NAME_SUFFIXES = {"jr", "sr", "ii", "iii"}


def is_name(concept: str) -> bool:
    """Whether a concept that WordNet does not know is spelled like a full name."""
    words = [word for word in concept.split() if word not in LINKS]
    return len(words) > 1 and all(word[0].isupper() for word in words)


def is_figure(concept: str) -> bool:
    """Whether a concept names somebody by the work they are from: `Elsa from Frozen`."""
    figure, _, work = concept.partition(" from ")
    return figure.istitle() and work[:1].isupper()


def spellings(name: str) -> tuple[str, ...]:
    """The name without accents, hyphens, dots, a leading `The` or a trailing `Jr.`."""
    # In NFD an accent is a character of its own, which can be left out.
    plain = "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c))
    forms = (plain, plain.replace("-", " "), plain.replace(".", ""), " ".join(core(plain)))
    return tuple(dict.fromkeys(form for form in forms if form.strip() and form != name))


def core(name: str) -> list[str]:
    """The words of a name without a leading `The` and a trailing `Jr.`."""
    words = name.split()
    if len(words) > 1 and words[-1].casefold().strip(".") in NAME_SUFFIXES:
        words = words[:-1]
    return words[1:] if len(words) > 1 and words[0].casefold() == "the" else words
