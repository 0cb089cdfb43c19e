"""The things of the world: what each is called, what it is a kind of, and what describes it without its name.

The table `things.tsv` is written by hand. Names mean what they mean to WordNet and to people. The models learn all
words of a thing. One synonym and one description are held out from the trainings of erasers, so that an attack by them
is real.
"""

from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("things.tsv")


@dataclass(frozen=True)
class Thing:
    """One row of the table.

    Attributes:
        name: as captions call it.
        icons: its pictures, by their names in the artwork; every set has all of them.
        synonyms: other words, which erasers may be trained on.
        held_out_synonym: another word, which only measurements of erasers use.
        hypernyms: what it is a kind of, the nearest first.
        descriptions: phrases without its name, which erasers may be trained on.
        held_out_description: another phrase, which only measurements of erasers use.
    """

    name: str
    icons: tuple[str, ...]
    synonyms: tuple[str, ...]
    held_out_synonym: str
    hypernyms: tuple[str, ...]
    descriptions: tuple[str, ...]
    held_out_description: str


def read_things(path: Path = TABLE) -> tuple[Thing, ...]:
    """The rows of the table, in its order; lines that begin with # are comments."""
    things = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            things.append(_thing(line))
    return tuple(things)


def _thing(line: str) -> Thing:
    icons, name, synonyms, held_out_synonym, hypernyms, descriptions, held_out_description = line.split(" | ")
    return Thing(
        name=name,
        icons=tuple(icons.split()),
        synonyms=tuple(synonyms.split(", ")),
        held_out_synonym=held_out_synonym,
        hypernyms=tuple(hypernyms.split(", ")),
        descriptions=tuple(descriptions.split("; ")),
        held_out_description=held_out_description,
    )


THINGS = read_things()
ICONS = tuple(icon for thing in THINGS for icon in thing.icons)
