"""The ConceptSet: one concept with everything that is erased, compared and kept with it, as JSON and as text."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from ..quoting import check_text, quoted
from . import matching, neutrals
from .prompts import words_of

TIERS = ("no_relation", "far", "mid")  # Table 5 of the paper
CATEGORIES = ("entity", "style", "relation", "person")  # Table 6; persons are those of Table 7
LISTS = ("synonyms", "variants", "prompts", "retain", "anchors")
# ComfyUI checks a set in its event loop whenever a workflow is queued, so its size is bounded.
MAX_JSON = 1_000_000  # characters
MAX_LIST_LENGTH = 5_000  # entries of one list
HELD_OUT_PROMPTS = 4  # of a set that has more than twice as many; of a smaller one half as many
WATCHED_EVERY = 8  # one in so many prompts to preserve is looked at and not trained on
THINGS = ("entity", "person")  # categories in whose place another thing can be painted
MAX_TEXT = 2_000  # characters of one entry
MAX_WORDS = 50  # of a concept; the time of a search grows with it


def held_out_prompts(count: int) -> int:
    """How many of so many sentences are kept from training; a set of few has none to spare."""
    for held_out in (HELD_OUT_PROMPTS, HELD_OUT_PROMPTS // 2):
        if count > 2 * held_out:
            return held_out
    return 0


class Word(NamedTuple):
    """A word and how near it is to the concept, 0 (not at all) to 1 (the same)."""

    word: str
    score: float


@dataclass(frozen=True)
class ConceptSet:
    """What a node shows, a file holds and the trainer takes.

    Attributes:
        concept: the word or words to erase.
        category: entity, style, relation or person.
        synonyms: other words for it.
        variants: its inflections and derived words.
        irrelevant: words that must survive, by tier.
        prompts: sentences that contain the concept, or templates with `{}` in its place.
        retain: prompts that must stay as they are.
        anchors: wider words that could stand in its place.
        neutral: what shall be painted instead; see `prompts.neutral_prompt`.
        source: where the words came from, or what a set that the pack ships does.
        unasked: a look that pictures have though no prompt names it, as a prompt with `{}` for an ordinary one:
            `{}, blurred background`. The prompts of such a set are ordinary ones, without the concept.
        wanted: the same prompt with the look that shall be painted instead: `{}, everything in sharp focus`.
    """

    concept: str
    category: str = "entity"
    synonyms: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    irrelevant: dict[str, tuple[Word, ...]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    neutral: str = ""
    source: str = ""
    unasked: str = ""
    wanted: str = ""

    def check(self) -> "ConceptSet":
        """The set itself, once it holds together.

        Raises:
            ValueError: no concept, an unknown category or tier, a score outside 0 to 1, a prompt without the concept,
                or something to keep that holds a word to erase.
        """
        if not self.concept.strip():
            raise ValueError("the concept set has no concept: fill in `concept`")
        if self.category not in CATEGORIES:
            raise ValueError(f"category {quoted(self.category)} is none of {', '.join(CATEGORIES)}")
        unknown = set(self.irrelevant) - set(TIERS)
        if unknown:
            raise ValueError(f"irrelevant has the tier {quoted(min(unknown))}; there are {', '.join(TIERS)}")
        for word in self._scored_words():
            # Written so that NaN fails too.
            if not 0 <= word.score <= 1:
                raise ValueError(f"the score of {quoted(word.word)} is {word.score}: it must be from 0 to 1")
        if self.unasked or self.wanted:
            self._check_unasked()
        else:
            self._check_prompts()
        for words in self.erased():
            if matching.word_count(words) > MAX_WORDS:
                raise ValueError(f"{quoted(words)} is to be erased and has more than {MAX_WORDS} words: shorten it")
        irrelevant = [word.word for word in self._scored_words()]
        matching.check_kept((*irrelevant, *self.retain), self.erased())
        return self

    def _check_prompts(self) -> None:
        """Raises ValueError when a prompt has no place for the concept."""
        for prompt in self.prompts:
            if "{}" not in prompt and not matching.occurs(prompt, self.concept):
                raise ValueError(f"the prompt {quoted(prompt)} has neither {{}} nor the concept {quoted(self.concept)}")

    def _check_unasked(self) -> None:
        """Raises ValueError when a set against a look that no prompt names does not hold together."""
        for name in ("unasked", "wanted"):
            if getattr(self, name).count("{}") != 1:
                raise ValueError(f"{name} must hold {{}} once, where the prompt stands: `{{}}, in sharp focus`")
        if not self.prompts:
            raise ValueError("a set with `unasked` needs ordinary prompts: add some")
        if self.irrelevant:
            raise ValueError("a set with `unasked` has no irrelevant words: its prompts have no place for them")
        for prompt in self.prompts:
            found = "{}" if "{}" in prompt else matching.first_occurring(prompt, self.erased())
            if found is not None:
                raise ValueError(f"the prompt {quoted(prompt)} must be an ordinary one, without {quoted(found)}")

    def _scored_words(self) -> list[Word]:
        return list(chain.from_iterable(self.irrelevant.values()))

    def erased(self) -> tuple[str, ...]:
        """The concept and all its other words."""
        return tuple(dict.fromkeys((self.concept, *self.synonyms, *self.variants)))

    def label(self, wanted: str) -> str:
        """What a judge is asked: the concept for nothing and for each of its words, else what is wanted."""
        # Also for nothing: a judge that is not told otherwise looks for the concept.
        own = {"", *map(str.casefold, self.erased())}
        return self.concept if wanted.strip().casefold() in own else wanted

    def labels(self) -> tuple[str, ...]:
        """What a judge can choose between: the concept, what is wider, and what must survive."""
        return tuple(dict.fromkeys((self.concept, *self.anchors, *self._irrelevant_words())))

    def tiers(self) -> tuple[tuple[str, ...], ...]:
        """The irrelevant words by tier, from no relation to mid, without empty tiers."""
        tiers = []
        for name in TIERS:
            words = tuple(word.word for word in self.irrelevant.get(name, ()))
            if words:
                tiers.append(words)
        return tuple(tiers)

    def _irrelevant_words(self) -> tuple[str, ...]:
        """The irrelevant words in the order of the tiers, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(self.tiers())))

    def settings(self) -> dict[str, Any]:
        """The fields of an EraseConfig that the set decides."""
        settings: dict[str, Any] = {
            "concept": self.concept,
            "synonyms": self.erased()[1:],
            "irrelevant": self._irrelevant_words(),
            "tiers": self.tiers(),
            "neutral": self.neutral,
            "other_neutrals": neutrals.others(self.neutral, self.erased()) if self.category in THINGS else (),
            **self._kept_settings(),
        }
        if self.unasked:
            # No prompt has a word whose attention could be read.
            return settings | self._unasked_settings()
        # Eq. 5 compares the concept with a synonym. Without one, only that loss is left out.
        if not settings["synonyms"]:
            settings["rsc_weight"] = 0.0
        return settings | self._sentence_settings()

    def _sentence_settings(self) -> dict[str, Any]:
        """The sentences that are trained on, and those that are only looked at."""
        held_out = held_out_prompts(len(self.prompts))
        if held_out:
            # The last ones are never trained on: in them the trainer looks whether the concept is gone.
            return {"templates": self.prompts[:-held_out], "held_out": self.prompts[-held_out:]}
        return {"templates": self.prompts} if self.prompts else {}

    def _kept_settings(self) -> dict[str, Any]:
        """The prompts to preserve, and those of them that are looked at and never trained on."""
        if len(self.retain) < 2 * WATCHED_EVERY:
            return {"retain": self.retain}
        watched = self.retain[1::WATCHED_EVERY]
        return {"retain": tuple(prompt for prompt in self.retain if prompt not in watched), "watched": watched}

    def _unasked_settings(self) -> dict[str, Any]:
        return {
            "unasked": self.unasked,
            "wanted": self.wanted,
            "attn_weight": 0.0,
            "rsc_weight": 0.0,
            **self._sentence_settings(),
        }

    def to_json(self) -> str:
        """The set as JSON, with one list or tier a line, so that people can edit it and see what changed."""
        entries = []
        for name, value in dataclasses.asdict(self).items():
            # What few sets have is left out elsewhere, and older versions read those sets.
            if name in ("unasked", "wanted") and not value:
                continue
            text = self._tiers_to_json() if name == "irrelevant" else _dump(value)
            entries.append(f"  {_dump(name)}: {text}")
        return "{\n" + ",\n".join(entries) + "\n}\n"

    def _tiers_to_json(self) -> str:
        if not self.irrelevant:
            return "{}"
        tiers = []
        for tier, words in self.irrelevant.items():
            tiers.append(f"    {_dump(tier)}: {_dump(words)}")
        return "{\n" + ",\n".join(tiers) + "\n  }"

    @classmethod
    def from_json(cls, text: str) -> "ConceptSet":
        """A set from JSON, checked.

        Raises:
            ValueError: no JSON, too large, a key that is unknown or missing, or a value of another kind; see `check`.
        """
        entries = _load(text)
        names = [entry.name for entry in dataclasses.fields(cls)]
        unknown = sorted(set(entries) - set(names))
        if unknown:
            raise ValueError(f"the concept set has the key {quoted(unknown[0])}; there are {', '.join(names)}")
        values: dict[str, Any] = {"concept": ""}
        for name, value in entries.items():
            if name in LISTS:
                values[name] = _read_texts(name, value)
            elif name == "irrelevant":
                values[name] = _read_tiers(value)
            else:
                values[name] = _read_text(name, value)
        return cls(**values).check()

    def text(self) -> str:
        """The set as people read it."""
        lines = [f"{self.concept} ({self.category})"]
        for tier, words in self.irrelevant.items():
            lines.append(f"{tier.replace('_', ' ')}: " + ", ".join(f"{word} {score:.2f}" for word, score in words))
        for name in ("synonyms", "variants", "anchors", "prompts", "retain"):
            separator = "\n  " if name in ("prompts", "retain") else ", "
            lines.append(f"{name}: " + (separator.join(getattr(self, name)) or "none"))
        if self.unasked:
            lines.append(f"nobody asks for: {self.unasked}\nwanted: {self.wanted}\nsource: {self.source}")
            return "\n".join(lines)
        if len(self.erased()) == 1:
            lines.append("no other word is known: Erase Trainer does without its rsc loss, unless you type synonyms")
        lines.append(f"neutral: {self.neutral or 'the empty prompt'}")
        lines.append(f"source: {self.source}")
        return "\n".join(lines)


def erased(concepts: ConceptSet | None, concept: str, others: str = "") -> tuple[str, tuple[str, ...]]:
    """The concept and its other words: those of a set where there is one, else as typed."""
    # A connected set replaces what is typed, so that one workflow has one source of words.
    if concepts is None:
        return concept, words_of(others)
    first, *rest = concepts.erased()
    return first, tuple(rest)


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _load(text: str) -> dict[str, Any]:
    """The JSON object of a set; raises ValueError when it is none."""
    if len(text) > MAX_JSON:
        raise ValueError(f"the concept set has {len(text):,} characters: shorten it to {MAX_JSON:,}")
    try:
        # Whole numbers as floats: those of JSON have no end, and Python converts only some thousand digits.
        entries = json.loads(text.lstrip("\ufeff"), object_pairs_hook=_read_object, parse_int=float)
    except json.JSONDecodeError as error:
        raise ValueError(f"the concept set is no JSON: line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("the concept set is nested too deeply: it holds lists of texts and of [word, score]") from None
    if not isinstance(entries, dict):
        raise ValueError("the concept set must be a JSON object, with at least `concept`")
    return entries


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError for a key that is there twice, of which Python keeps the last one."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in entries if names.count(name) > 1)
        raise ValueError(f"the concept set has the key {quoted(twice)} twice: join their values")
    return entries


def _read_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{name} has {len(value):,} characters: shorten it to {MAX_TEXT:,}")
    check_text(value, name)  # JSON can spell what its own text does not hold: "\ud800"
    return value


def _read_texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise ValueError(f"{name} must be a list of texts")
    _check_size(name, value)
    return tuple(_read_text(f"an entry of {name}", entry) for entry in value)


def _read_tiers(value: object) -> dict[str, tuple[Word, ...]]:
    if not isinstance(value, dict) or not all(isinstance(words, list) for words in value.values()):
        raise ValueError(f"irrelevant must have lists under {', '.join(TIERS)}")
    tiers = {}
    for tier, words in value.items():
        _check_size(f"irrelevant {quoted(tier)}", words)
        tiers[tier] = tuple(map(_read_word, words))
    return tiers


def _check_size(name: str, entries: Sequence[object]) -> None:
    if len(entries) > MAX_LIST_LENGTH:
        raise ValueError(f"{name} has {len(entries):,} entries: shorten it to {MAX_LIST_LENGTH:,}")


def _read_word(entry: object) -> Word:
    match entry:
        # In Python, true counts as an int.
        case [str(word), int() | float() as score] if word.strip() and not isinstance(score, bool):
            return Word(_read_text("a word of irrelevant", word), float(score))
    raise ValueError(f'{json.dumps(entry)[:80]} is no [word, score], such as ["cloud", 0.1]')
