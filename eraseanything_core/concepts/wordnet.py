"""WordNet through NLTK: the sense of a concept, and the words that share it.

NLTK looks for `corpora/wordnet` in the user's own nltk_data first and finds the copy of this pack last. It takes a
second to import, so that happens at the first question and not when ComfyUI starts.
"""

import shutil
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path

from . import matching

BUNDLED = Path(__file__).with_name("nltk_data") / "corpora" / "wordnet.zip"
POS = {"noun": "n", "verb": "v", "adjective": "a", "adverb": "r"}
CONTACT = {"verb.contact", "verb.motion", "verb.body", "verb.perception"}  # what a picture of two people can show
OWN_SHARE = 0.5  # how often a word must mean this, of how often it means what it means most, or of all its senses


@cache
def database():
    """NLTK's reader of WordNet, loaded.

    Raises:
        ModuleNotFoundError: NLTK is not installed.
    """
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    class English(WordNetCorpusReader):
        """Without the map to other languages, which is half of the load."""

        def map_wn(self, version="wordnet"):
            return {}

    nltk.data.path.append(private_copy().name)
    reader = LazyCorpusLoader("wordnet", English, omw_reader=False)
    reader.ensure_loaded()
    return reader


@cache
def private_copy() -> tempfile.TemporaryDirectory:
    """An nltk_data folder with the bundled WordNet, for as long as the process lives.

    NLTK refuses data that another account owns or that a group may write to, as in a checkout with umask 002.
    """
    folder = tempfile.TemporaryDirectory(prefix="wordnet-", ignore_cleanup_errors=True)
    corpora = Path(folder.name) / "corpora"
    corpora.mkdir(mode=0o700)
    copy = corpora / BUNDLED.name
    copy.touch(mode=0o600)
    shutil.copyfile(BUNDLED, copy)
    return folder


@cache
def counts() -> dict[str, list[tuple[int, str, int]]]:
    """How often each sense of a word stands in WordNet's tagged texts.

    Returns:
        word: (count, part of speech, index of the sense among those of that part of speech).
    """
    found = defaultdict(list)
    with database().open("cntlist.rev") as lines:
        for line in lines:
            key, number, count = line.split()
            word, _, rest = key.partition("%")
            found[word].append((int(count), " nvars"[int(rest[0])].replace("s", "a"), int(number) - 1))
    return dict(found)


def spelled(lemma: str) -> str:
    """A lemma of WordNet as people write it."""
    return lemma.replace("_", " ")


def same(word: str) -> str:
    """What two spellings of one word share."""
    return word.replace("_", " ").replace("-", " ").replace(".", "").casefold().strip()


def lookup(concept: str, pos: str | None = None) -> list:
    """The synsets of a concept, most frequent first; blanks may be hyphens in WordNet."""
    words = concept.lower().split()
    for form in ("_".join(words), "-".join(words)):
        if found := database().synsets(form, pos):
            return sorted(found, key=lambda s: -count(listed(form, s), s))
    return []


def listed(word: str, synset) -> str:
    """The form under which a synset lists a word: `shoe` for `Shoes`."""
    form = "_".join(word.lower().split())
    lemmas = {lemma.lower() for lemma in synset.lemma_names()}
    forms = (form, database().morphy(form, synset.pos()), form.rstrip("s"), form.replace("_", "-"))
    return next((form for form in forms if form in lemmas), form)


def count(word: str, synset) -> int:
    """How often a word stands for a synset in the tagged texts."""
    pos = synset.pos().replace("s", "a")
    senses = database().synsets(word, pos)
    entries = counts().get(word.lower(), ())
    return next((n for n, p, i in entries if p == pos and i < len(senses) and senses[i] == synset), 0)


def means(word: str, synset) -> bool:
    """Whether a word alone would be read as this synset.

    It must be the main sense of its part of speech, or nearly as frequent as that, and the main part of speech: `red`
    is a `Bolshevik` and to `jump` is to `spring`, but these words say something else first.
    """
    if synset.instance_hypernyms():  # a name: nobody else may bear it, and no thing come before it
        nouns = database().synsets(word, "n")
        alone = nouns[:1] == [synset] and not any(word in s.lemma_names() for s in nouns[1:])
        return alone and not given(word, synset)
    pos, entries = synset.pos().replace("s", "a"), counts().get(word.lower(), ())
    if not entries:  # WordNet lists nouns first
        return database().synsets(word, "n" if pos == "n" else None)[0] == synset and own_share(word, synset)
    own = count(word, synset)
    alike = max((n for n, p, _ in entries if p == pos), default=0)
    others = max((n for n, p, _ in entries if p != pos), default=0)
    return own > 0 and own >= OWN_SHARE * alike and (own > others or own == others and pos == "n")


def given(word: str, synset) -> bool:
    """Whether a word is the first name of somebody who also has a last name: `Leonardo`, but not `Rembrandt`."""
    lemmas = synset.lemma_names()
    return any(f"{word}_{last}" in lemmas for last in lemmas)


def own_share(word: str, synset) -> bool:
    """Whether enough senses of a word that the texts lack are this one or share another word with it.

    Their order says nothing: `blowup` is an explosion first, but as well an outburst and an enlargement.
    """
    others, found = set(synset.lemma_names()) - {word}, database().synsets(word)
    return sum(s == synset or bool(others & set(s.lemma_names())) for s in found) >= OWN_SHARE * len(found)


def senses(concept: str, category: str, pos: str | None = None) -> list:
    """The synsets that a concept of this category can mean, the likeliest first.

    Args:
        concept: the word or words to erase.
        category: entity, style, relation or person.
        pos: n, v, a or r; None chooses.
    """
    people = [s for s in lookup(concept, "n") if names(s, concept)]
    if category == "person":
        return people
    if category == "style":
        return people or [s for s in lookup(concept, pos or "n") if not s.instance_hypernyms()]
    if category == "relation" and pos is None:
        return [s for s in lookup(concept, "v") if s.lexname() in CONTACT]
    found = [s for s in lookup(concept, pos) if not s.instance_hypernyms()]
    if pos is None and found:
        chosen = usual_pos(concept, found)
        found = [s for s in found if s.pos().replace("s", "a") == chosen]
    return found


def usual_pos(concept: str, found: list) -> str:
    """The part of speech that a concept has most often; adjective before noun before verb where that is equal."""
    total = defaultdict(int)
    for synset in found:
        total[synset.pos().replace("s", "a")] += count(listed(concept, synset), synset)
    shown = [pos for pos in "an" if pos in total] or list(total)  # a building before to build
    return max(shown, key=total.get)


def names(synset, concept: str) -> bool:
    """Whether a synset is the one person whom the concept names: in full, or by a surname that is nobody else's."""
    if synset.lexname() != "noun.person" or not synset.instance_hypernyms():
        return False
    name, lemmas = same(concept), [same(lemma) for lemma in synset.lemma_names()]
    if " " not in name:
        return any(lemma.endswith(f" {name}") for lemma in lemmas) and len(lookup(concept)) == 1
    # WordNet lists the short name of a person too: it tells the boxer Muhammad Ali from a soldier.
    return any(name.startswith(f"{lemma} ") or name.endswith(f" {lemma}") for lemma in lemmas)


def synonyms(concept: str, chosen: list) -> tuple[str, ...]:
    """Other words for these senses, in their order; words that mostly mean something else are left out."""
    found = []
    for synset in chosen:
        found += [lemma for lemma in synset.lemma_names() if means(lemma, synset)]
        for casual in informal(synset):
            found += [lemma for lemma in casual.lemma_names() if means(lemma, casual)]
    own = {same(concept), *(same(listed(concept, synset)) for synset in chosen)}
    kept = {same(word): spelled(word) for word in found if not any(f" {o} " in f" {same(word)} " for o in own)}
    return tuple(kept.values())


def informal(synset) -> list:
    """The synsets below this one that are only casual names of it, such as pooch below dog; a racehorse is no horse."""
    below = [s for child in sorted(synset.hyponyms()) for s in (child, *sorted(child.hyponyms()))]
    casual = [s for s in below if s.definition().startswith(("informal term", "an informal term"))]
    return [s for s in casual if any(matching.occurs(s.definition(), spelled(word)) for word in synset.lemma_names())]


def anchors(chosen: list, most: int = 4) -> tuple[str, ...]:
    """Common wider words, nearest first, without the widest such as `thing`."""
    found = []
    for wider in chain(chosen):
        word = wider.lemma_names()[0]
        if wider.min_depth() >= 4 and count(word, wider) >= 3 and means(word, wider):
            found.append(spelled(word))
    return tuple(found[:most])


def chain(chosen: list) -> list:
    """The hypernyms of the first sense, nearest first; of two, the one with the commoner word.

    NLTK keeps relations in sets, in another order in every process.
    """
    found, synset = [], chosen[0] if chosen else None
    while synset and (above := synset.hypernyms() or synset.instance_hypernyms()):
        synset = max(sorted(above), key=lambda s: count(s.lemma_names()[0], s))
        found.append(synset)
    return found


def neighbours(chosen: list, most: int = 6) -> tuple[str, ...]:
    """Common words of the same kind that are neither wider nor narrower than the concept."""
    found: dict[str, None] = {}
    own = kin(chosen[0]) if chosen else set()
    for wider in [s for s in chain(chosen) if s.pos() == "v" or s.min_depth() >= 5][:3]:
        if len(found) < most:
            below = [s for s in wider.closure(narrower) if s not in own]
            found |= dict.fromkeys(people(below) if chosen[0].instance_hypernyms() else common(below))
    return tuple(found)[:most]


def narrower(synset) -> list:
    return synset.hyponyms() + synset.instance_hyponyms()


def kin(synset) -> set:
    """A synset, all that is wider and all that is narrower."""
    return {synset, *synset.closure(lambda s: s.hypernyms() + s.instance_hypernyms()), *synset.closure(narrower)}


def people(synsets: list) -> list[str]:
    """The full names of persons, those of WordNet's texts first."""
    found = [
        (-count(s.lemma_names()[0], s), spelled(name)) for s in synsets if s.instance_hypernyms() for name in full(s)
    ]
    return [name for _, name in sorted(found)]


def full(synset) -> list[str]:
    """The first of a person's names that has several words."""
    return [name for name in synset.lemma_names() if "_" in name][:1]


def common(synsets: list) -> list[str]:
    """The words for synsets that stand in WordNet's texts at least twice, most frequent first."""
    found = [(-count(s.lemma_names()[0], s), s.lemma_names()[0], s) for s in synsets if not s.instance_hypernyms()]
    return [spelled(word) for n, word, s in sorted(found, key=lambda f: f[:2]) if n <= -2 and means(word, s)]
