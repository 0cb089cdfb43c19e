"""Words that WordNet 3.0 lacks, or knows in another sense than who types them for a picture."""

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .number_forms import number_forms, plural

TABLE = Path(__file__).with_name("known_words.json")


@dataclass(frozen=True)
class KnownWord:
    """A row of known_words.json; what a row leaves out is found as for any other word.

    Attributes:
        word: as people type it.
        category: entity, style, relation or person.
        kind: a key of `templates.TEMPLATES_BY_KIND`; "" is the category's.
        number: one, many, mass, name or the; see `noun_phrases`.
        sense: the name of the synset that is meant; "" asks WordNet for none.
        synonyms: other words; None are those of the sense.
        variants: its other forms; None are those that WordNet knows.
        neutral: see `prompts.neutral_prompt`; "" is chosen by the category.
    """

    word: str
    category: str
    kind: str = ""
    number: str = ""
    sense: str = ""
    synonyms: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    neutral: str = ""


@cache
def table() -> dict[str, KnownWord]:
    """The rows by their words, folded."""
    rows = {}
    for entry in json.loads(TABLE.read_text(encoding="utf-8")):
        lists = {name: tuple(entry[name]) for name in ("synonyms", "variants") if name in entry}
        rows[folded(entry["word"])] = KnownWord(**(entry | lists))
    return rows


def folded(word: str) -> str:
    """What two spellings of one word share."""
    return " ".join(word.casefold().replace("-", " ").split())


def find(word: str) -> KnownWord | None:
    """The row of a word in any casing, in the plural too; None when the table lacks it."""
    rows = table()
    row = rows.get(folded(word))
    if row is not None:
        return row
    for singular in number_forms(word):
        row = rows.get(folded(singular))
        if row is not None and row.number == "one":
            return in_plural(row)
    return None


def in_plural(row: KnownWord) -> KnownWord:
    """The row of a noun for its plural."""
    neutral = re.sub(r"^\{(\w.*)\}$", lambda braces: "{" + plural(braces[1]) + "}", row.neutral)
    synonyms = None if row.synonyms is None else tuple(map(plural, row.synonyms))
    return replace(row, word=plural(row.word), number="many", synonyms=synonyms, variants=(row.word,), neutral=neutral)
