"""WordNet through NLTK: the sense of a concept, and the words that share it.

NLTK takes a second to import, so that happens at the first question and not when ComfyUI starts. Only the copy that is
bundled with the pack is read: another version of the user's would give other words, and a broken one none.

A synset is NLTK's `Synset`: one meaning with all the words (lemmas) for it.
"""

import zipfile
from collections import defaultdict
from functools import cache, partial
from io import BytesIO
from itertools import filterfalse
from pathlib import Path
from typing import Any

from ..packages import require_package
from . import matching

BUNDLED = Path(__file__).with_name("nltk_data") / "corpora" / "wordnet.zip"
POS = {"noun": "n", "verb": "v", "adjective": "a", "adverb": "r"}
POS_OF_SENSE_KEY = " nvars"  # the digit in a sense key is an index into this; s is a satellite adjective
CONTACT = {"verb.contact", "verb.motion", "verb.body", "verb.perception"}  # what a picture of two people can show
MAIN_SHARE = 0.5  # how often a word must mean this, of how often it means what it means most, or of all its senses
IDEAS = {f"noun.{kind}" for kind in "cognition feeling motive attribute state process group relation".split()}
VISIBLE = {f"noun.{kind}" for kind in "artifact body animal plant food object shape".split()}
MIN_DEPTH = 4  # of a word that stands in a concept's place; those nearer to the root are as wide as `thing`
MIN_DEPTH_OF_KIND = 5  # of what a concept and its neighbours have in common
CASUAL = ("informal term", "an informal term")  # how the definition of a casual name begins


@cache
def database() -> Any:
    """NLTK's reader of the bundled WordNet, loaded once a process.

    Raises:
        ModuleNotFoundError: NLTK is not installed.
    """
    return open_archive(BUNDLED)


def open_archive(path: Path) -> Any:
    """NLTK's reader of a WordNet that is packed as NLTK distributes it.

    Args:
        path: a zip file with the folder `wordnet`.

    Raises:
        ModuleNotFoundError: NLTK is not installed.
    """
    require_package("nltk", used_by="Concept Sampler")
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.data import PathPointer, SeekableUnicodeStreamReader

    class Member(PathPointer):
        """A file of the archive, which is read as a whole: WordNet is searched by places in its files.

        NLTK's own pointer into a zip file refuses one that its group may write to, as a checkout with umask 002 has.
        """

        def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
            self.archive = archive
            self.name = name

        def join(self, fileid: str) -> "Member":
            return Member(self.archive, f"{self.name}/{fileid}")

        def file_size(self) -> int:
            return self.archive.getinfo(self.name).file_size

        def open(self, encoding: str = "utf-8") -> Any:
            return SeekableUnicodeStreamReader(BytesIO(self.archive.read(self.name)), encoding)

    class EnglishWordNet(WordNetCorpusReader):
        """Reads only the archive, and not the map to other languages, which is half of the load."""

        def open(self, file: str) -> Any:
            return self._root.join(file).open()

        def map_wn(self, version: str = "wordnet") -> dict:
            return {}

    return EnglishWordNet(Member(zipfile.ZipFile(path), "wordnet"), omw_reader=False)


@cache
def tagged_counts() -> dict[str, list[tuple[int, str, int]]]:
    """How often each sense of a word stands in WordNet's tagged texts.

    Returns:
        word: (count, part of speech, index of the sense among those of that part of speech).
    """
    counts = defaultdict(list)
    with database().open("cntlist.rev") as lines:
        for line in lines:
            # Such as `dog%1:05:00:: 1 42`: the sense key, the sense's number, and the count.
            key, number, count = line.split()
            word, _, rest = key.partition("%")
            pos = POS_OF_SENSE_KEY[int(rest[0])].replace("s", "a")
            counts[word].append((int(count), pos, int(number) - 1))
    return dict(counts)


def spelled(lemma: str) -> str:
    """A lemma of WordNet as people write it."""
    return lemma.replace("_", " ")


def simplified(word: str) -> str:
    """What two spellings of one word share."""
    return word.replace("_", " ").replace("-", " ").replace(".", "").casefold().strip()


def pos_of(synset: Any) -> str:
    """The part of speech of a synset; satellite adjectives are adjectives."""
    return synset.pos().replace("s", "a")


def is_instance(synset: Any) -> bool:
    """Whether a synset is one person, place or thing with a name, and no kind of them."""
    return bool(synset.instance_hypernyms())


def lookup(concept: str, pos: str | None = None) -> list[Any]:
    """The synsets of a concept, most frequent first; blanks may be hyphens in WordNet."""
    words = concept.lower().split()
    for form in ("_".join(words), "-".join(words)):
        synsets = database().synsets(form, pos)
        if synsets:
            return sorted(synsets, key=lambda synset: -tagged_count(listed_form(form, synset), synset))
    return []


def listed_form(word: str, synset: Any) -> str:
    """The form under which a synset lists a word: `shoe` for `Shoes`."""
    form = "_".join(word.lower().split())
    lemmas = {lemma.lower() for lemma in synset.lemma_names()}
    for spelling in (form, database().morphy(form, synset.pos()), form.rstrip("s"), form.replace("_", "-")):
        if spelling in lemmas:
            return spelling
    return form


def tagged_count(word: str, synset: Any) -> int:
    """How often a word stands for a synset in the tagged texts."""
    synsets = database().synsets(word, pos_of(synset))
    for count, pos, index in tagged_counts().get(word.lower(), ()):
        if pos == pos_of(synset) and index < len(synsets) and synsets[index] == synset:
            return count
    return 0


def is_main_meaning(word: str, synset: Any) -> bool:
    """Whether a word alone would be read as this synset.

    It must be the main sense of its part of speech, or nearly as frequent as that, and the main part of speech: `red`
    is a `Bolshevik` and to `jump` is to `spring`, but these words say something else first.
    """
    if is_instance(synset):
        return _is_only_name(word, synset)
    pos = pos_of(synset)
    counts = tagged_counts().get(word.lower(), ())
    if not counts:
        # Nothing is known of frequency. WordNet lists nouns first, and the first sense counts.
        first = database().synsets(word, "n" if pos == "n" else None)[0]
        return first == synset and _has_main_share(word, synset)
    own = tagged_count(word, synset)
    highest_of_pos = 0
    highest_of_others = 0
    for count, other, _ in counts:
        if other == pos:
            highest_of_pos = max(highest_of_pos, count)
        else:
            highest_of_others = max(highest_of_others, count)
    is_main_pos = own > highest_of_others or (own == highest_of_others and pos == "n")
    return own > 0 and own >= MAIN_SHARE * highest_of_pos and is_main_pos


def _is_only_name(word: str, synset: Any) -> bool:
    """Whether nobody else has this name, and nothing is called so before this person or place."""
    nouns = database().synsets(word, "n")
    if nouns[:1] != [synset] or any(word in other.lemma_names() for other in nouns[1:]):
        return False
    return not is_first_name(word, synset)


def is_first_name(word: str, synset: Any) -> bool:
    """Whether a word is the first name of somebody who also has a last name: `Leonardo`, but not `Rembrandt`."""
    lemmas = synset.lemma_names()
    return any(f"{word}_{last}" in lemmas for last in lemmas)


def _has_main_share(word: str, synset: Any) -> bool:
    """Whether enough senses of a word that the texts lack are this one or share another word with it.

    Their order says nothing: `blowup` is an explosion first, but as well an outburst and an enlargement.
    """
    others = set(synset.lemma_names()) - {word}
    synsets = database().synsets(word)
    alike = 0
    for sense in synsets:
        alike += sense == synset or not others.isdisjoint(sense.lemma_names())
    return alike >= MAIN_SHARE * len(synsets)


def senses(concept: str, category: str, pos: str | None = None) -> list[Any]:
    """The synsets that a concept of this category can mean, the likeliest first.

    Args:
        concept: the word or words to erase.
        category: entity, style, relation or person.
        pos: n, v, a or r; None chooses.
    """
    people = list(filter(partial(is_person_named, concept), lookup(concept, "n")))
    if category == "person":
        return people
    if category == "style":
        # A style is named after an artist, or it is a movement.
        return people or list(filterfalse(is_instance, lookup(concept, pos or "n")))
    # What two people do to one another can be painted only where bodies move or touch.
    if category == "relation" and pos is None:
        return [synset for synset in lookup(concept, "v") if synset.lexname() in CONTACT]
    synsets = list(filterfalse(is_instance, lookup(concept, pos)))
    if pos is None and synsets:
        usual = usual_pos(concept, synsets)
        synsets = [synset for synset in synsets if pos_of(synset) == usual]
    return visible_first(concept, synsets)


def visible_first(concept: str, synsets: list[Any]) -> list[Any]:
    """The synsets, but a thing that can be seen first, where the first is an idea that is hardly more frequent.

    A `church` is a building here rather than those who believe.
    """
    if not synsets or synsets[0].lexname() not in IDEAS:
        return synsets
    most = tagged_count(listed_form(concept, synsets[0]), synsets[0])
    for synset in synsets:
        count = tagged_count(listed_form(concept, synset), synset)
        if synset.lexname() in VISIBLE and count >= MAIN_SHARE * most:
            return [synset, *(other for other in synsets if other != synset)]
    return synsets


def usual_pos(concept: str, synsets: list[Any]) -> str:
    """The part of speech that a concept has most often; adjective before noun before verb where that is equal."""
    totals: dict[str, int] = defaultdict(int)
    for synset in synsets:
        totals[pos_of(synset)] += tagged_count(listed_form(concept, synset), synset)
    # A picture shows what is, not what is done: a building rather than to build. Of words that the texts lack, such
    # as sunset, a thing is likelier than a quality.
    order = "an" if any(totals.values()) else "na"
    shown = [pos for pos in order if pos in totals] or list(totals)
    return max(shown, key=totals.__getitem__)


def is_person_named(concept: str, synset: Any) -> bool:
    """Whether a synset is the one person whom the concept names: in full, or by a surname that is nobody else's."""
    if synset.lexname() != "noun.person" or not is_instance(synset):
        return False
    name = simplified(concept)
    is_surname = " " not in name
    for lemma in map(simplified, synset.lemma_names()):
        if is_surname and lemma.endswith(f" {name}"):
            return len(lookup(concept)) == 1
        # WordNet lists the short name of a person too: it tells the boxer Muhammad Ali from a soldier.
        if not is_surname and (name.startswith(f"{lemma} ") or name.endswith(f" {lemma}")):
            return True
    return False


def synonyms(concept: str, chosen: list[Any]) -> tuple[str, ...]:
    """Other words for these senses, in their order; words that mostly mean something else are left out."""
    lemmas = []
    for synset in chosen:
        for alike in (synset, *informal(synset)):
            lemmas += [lemma for lemma in alike.lemma_names() if is_main_meaning(lemma, alike)]
    own = {simplified(concept)}
    for synset in chosen:
        own.add(simplified(listed_form(concept, synset)))
    words = {}
    for lemma in lemmas:
        word = simplified(lemma)
        # What holds the concept as a word of its own, such as `red wolf`, is found by the concept already.
        if not any(f" {name} " in f" {word} " for name in own):
            words[word] = spelled(lemma)
    return tuple(words.values())


def informal(synset: Any) -> list[Any]:
    """The synsets below this one that are only casual names of it, such as pooch below dog; a racehorse is no horse."""
    names = list(map(spelled, synset.lemma_names()))
    casual = []
    for child in sorted(synset.hyponyms()):
        for below in (child, *sorted(child.hyponyms())):
            definition = below.definition()
            if definition.startswith(CASUAL) and matching.first_occurring(definition, names) is not None:
                casual.append(below)
    return casual


def anchors(chosen: list[Any], most: int = 4) -> tuple[str, ...]:
    """Common wider words, nearest first, without the widest such as `thing`."""
    words = []
    for wider in hypernym_path(chosen):
        # The first lemma of a synset is its commonest word.
        word = wider.lemma_names()[0]
        if wider.min_depth() >= MIN_DEPTH and tagged_count(word, wider) >= 3 and is_main_meaning(word, wider):
            words.append(spelled(word))
    return tuple(words[:most])


def hypernym_path(chosen: list[Any]) -> list[Any]:
    """The hypernyms of the first sense, nearest first; of two, the one with the commoner word."""
    path = []
    above = _direct_hypernyms(chosen[0]) if chosen else []
    while above:
        # NLTK keeps relations in sets, whose order differs between processes.
        synset = max(sorted(above), key=lambda each: tagged_count(each.lemma_names()[0], each))
        path.append(synset)
        above = _direct_hypernyms(synset)
    return path


def _direct_hypernyms(synset: Any) -> list[Any]:
    return synset.hypernyms() or synset.instance_hypernyms()


def neighbours(chosen: list[Any], most: int = 6) -> tuple[str, ...]:
    """Common words of the same kind that are neither wider nor narrower than the concept."""
    if not chosen:
        return ()
    words: dict[str, None] = {}
    own = relatives(chosen[0])
    # Verbs have no common root, so their depth says nothing.
    path = hypernym_path(chosen)
    kinds = [kind for kind in path if kind.pos() == "v" or kind.min_depth() >= MIN_DEPTH_OF_KIND]
    for kind in kinds[:3]:
        if len(words) < most:
            below = [synset for synset in kind.closure(narrower) if synset not in own]
            alike = names_of_people(below) if is_instance(chosen[0]) else common_words(below)
            words |= dict.fromkeys(alike)
    return tuple(words)[:most]


def narrower(synset: Any) -> list[Any]:
    """The kinds and the instances of a synset."""
    return synset.hyponyms() + synset.instance_hyponyms()


def broader(synset: Any) -> list[Any]:
    """What a synset is a kind or an instance of."""
    return synset.hypernyms() + synset.instance_hypernyms()


def relatives(synset: Any) -> set[Any]:
    """A synset, all that is wider and all that is narrower."""
    return {synset, *synset.closure(broader), *synset.closure(narrower)}


def names_of_people(synsets: list[Any]) -> list[str]:
    """The full names of persons, those of WordNet's texts first."""
    ranked = []
    for synset in synsets:
        full_names = [lemma for lemma in synset.lemma_names() if "_" in lemma]
        if is_instance(synset) and full_names:
            ranked.append((-tagged_count(synset.lemma_names()[0], synset), spelled(full_names[0])))
    return [name for _, name in sorted(ranked)]


def common_words(synsets: list[Any]) -> list[str]:
    """The words for synsets that stand in WordNet's texts at least twice, most frequent first."""
    ranked = []
    for synset in synsets:
        word = synset.lemma_names()[0]
        count = tagged_count(word, synset)
        if not is_instance(synset) and count >= 2 and is_main_meaning(word, synset):
            ranked.append((-count, word))
    return [spelled(word) for _, word in sorted(ranked)]
