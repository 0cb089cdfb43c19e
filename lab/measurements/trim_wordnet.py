"""Makes the WordNet that the pack ships out of NLTK's full one: what Concept Sampler reads, and nothing else.

    python -m lab.measurements.trim_wordnet /path/to/nltk_data/corpora/wordnet.zip

Left out are the lines of index.sense, the examples in the glosses, the verb frames, and relations other than those of
`RELATIONS`.
What is left keeps the format of WordNet's database files (wndb(5WN)), so that NLTK reads it as it reads the full one.
In this format a synset is named by its place in its file. Shorter lines move every synset, so all places are rewritten.
The members are packed with LZMA, a quarter smaller than deflate; NLTK unpacks a member into memory when it opens it.
"""

import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eraseanything_core.concepts import wordnet

FILES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
FILE_OF = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}  # s is a satellite adjective
# Wider and narrower synsets, instances of both kinds, words derived from one another, attributes, and the head of a
# satellite adjective, without which NLTK cannot read it.
RELATIONS = {"@", "@i", "~", "~i", "+", "=", "&"}
AS_THEY_ARE = ("adj.exc", "adv.exc", "noun.exc", "verb.exc", "cntlist.rev", "lexnames", "LICENSE")
LICENCE_LINE = "  "  # how the lines of the licence begin, which stand before the first synset
DATE = (2006, 12, 6, 0, 0, 0)  # of WordNet 3.0's files: equal inputs give equal archives


@dataclass
class Synset:
    """One line of a data file.

    Attributes:
        offset: the 8 digits of its place in the full file.
        head: lexicographer's file, part of speech, and the lemmas with their count.
        relations: (symbol, offset, part of speech, which lemmas) of those that are kept.
        definition: the gloss without its examples, as NLTK gives it.
    """

    offset: str
    head: list[str]
    relations: list[list[str]]
    definition: str

    def line(self, places: dict[str, dict[str, str]]) -> str:
        """The line of the trimmed file.

        Args:
            places: for each file, the new place of each full one's; what is missing keeps its old one.
        """
        own = places[FILE_OF[self.head[1]]]
        fields = [own.get(self.offset, self.offset), *self.head, f"{len(self.relations):03d}"]
        for symbol, target, pos, lemmas in self.relations:
            fields += [symbol, places[FILE_OF[pos]].get(target, target), pos, lemmas]
        return f"{' '.join(fields)} | {self.definition}\n"


def read_synset(line: str) -> Synset:
    """Parses a line of a data file."""
    columns, gloss = line.strip().split("|")
    offset, *fields = columns.split()
    lemma_count = int(fields[2], 16)
    end_of_lemmas = 3 + 2 * lemma_count
    relation_count = int(fields[end_of_lemmas])
    relations = []
    for i in range(relation_count):
        start = end_of_lemmas + 1 + 4 * i
        relation = fields[start : start + 4]
        if relation[0] in RELATIONS:
            relations.append(relation)
    definition = re.sub(r'".*?"', "", gloss).strip().strip("; ")
    return Synset(offset, fields[:end_of_lemmas], relations, definition)


def trim_index_line(line: str, places: dict[str, str]) -> str:
    """A line of an index file with the new places, without its list of relations, which nothing reads."""
    lemma, pos, sense_count, relation_count, *rest = line.split()
    _, ranked_count, *offsets = rest[int(relation_count) :]
    return " ".join([lemma, pos, sense_count, "0", sense_count, ranked_count, *(places[offset] for offset in offsets)])


def trim(read: Callable[[str], str]) -> dict[str, str]:
    """The text of every file of the trimmed WordNet, by its name.

    Args:
        read: gives the text of a file of the full one.
    """
    licences = {}
    synsets = {}
    for name in FILES:
        lines = read(f"data.{name}").splitlines()
        licences[name] = "".join(f"{line}\n" for line in lines if line.startswith(LICENCE_LINE))
        synsets[name] = [read_synset(line) for line in lines if not line.startswith(LICENCE_LINE)]
    # Every place has 8 digits, so a line is as long with its old places as with the new ones.
    no_places: dict[str, dict[str, str]] = {name: {} for name in FILES}
    places: dict[str, dict[str, str]] = {}
    for name in FILES:
        position = len(licences[name].encode())
        places[name] = {}
        for synset in synsets[name]:
            places[name][synset.offset] = f"{position:08d}"
            position += len(synset.line(no_places).encode())
    files = {name: read(name) for name in AS_THEY_ARE}
    # NLTK opens no WordNet without this file, but reads it only for the offsets of other versions.
    files["index.sense"] = ""
    for name in FILES:
        files[f"data.{name}"] = licences[name] + "".join(synset.line(places) for synset in synsets[name])
        index = read(f"index.{name}").splitlines()
        entries = [trim_index_line(line, places[name]) for line in index if not line.startswith(LICENCE_LINE)]
        files[f"index.{name}"] = licences[name] + "".join(f"{entry}\n" for entry in entries)
    return files


def write(files: dict[str, str], path: Path) -> None:
    """Packs the files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in sorted(files.items()):
            member = zipfile.ZipInfo(f"wordnet/{name}", DATE)
            archive.writestr(member, text, zipfile.ZIP_LZMA)


def description(synset: Any) -> tuple:
    """All that Concept Sampler may ask of a synset."""
    lemmas = []
    for lemma in synset.lemmas():
        derived = [str(form) for form in lemma.derivationally_related_forms()]
        lemmas.append((lemma.name(), lemma.key(), lemma.count(), derived))
    related = []
    for relation in ("hypernyms", "instance_hypernyms", "hyponyms", "instance_hyponyms", "attributes"):
        related.append(sorted(other.name() for other in getattr(synset, relation)()))
    return synset.name(), synset.pos(), synset.lexname(), synset.definition(), lemmas, related


def main() -> None:
    source = Path(sys.argv[1])
    with zipfile.ZipFile(source) as archive:
        files = trim(lambda name: archive.read(f"wordnet/{name}").decode())
    path = wordnet.BUNDLED
    write(files, path)
    print(f"{path}: {path.stat().st_size:,} bytes; {source}: {source.stat().st_size:,} bytes")
    # NLTK warns of a corpus without its map to other languages.
    warnings.simplefilter("ignore")
    full = wordnet.open_archive(source)
    trimmed = wordnet.open_archive(path)
    count = 0
    for pos in FILES.values():
        for synset in full.all_synsets(pos):
            count += 1
            # A satellite adjective is found under a as well.
            if description(synset) != description(trimmed.synset(synset.name())):
                raise SystemExit(f"{synset.name()} differs from the full WordNet's")
    print(f"all {count:,} synsets say the same")


if __name__ == "__main__":
    main()
