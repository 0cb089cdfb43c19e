"""The ConceptSet: one concept with everything that is erased, compared and kept with it, as JSON and as text."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import NamedTuple

from . import matching
from .prompts import words_of

TIERS = ("no_relation", "far", "mid")  # Table 5 of the paper
CATEGORIES = ("entity", "style", "relation", "person")  # Table 6; persons are those of Table 7
LISTS = ("synonyms", "variants", "prompts", "retain", "anchors")


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
        neutral: what shall be painted instead; see `prompts.neutral`.
        source: where the words came from.
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

    def check(self) -> "ConceptSet":
        """The set itself, once it holds together.

        Raises:
            ValueError: no concept, an unknown category or tier, a score outside 0 to 1, a prompt without the concept,
                or something to keep that holds a word to erase.
        """
        if not self.concept.strip():
            raise ValueError("the concept set has no concept: fill in `concept`")
        if self.category not in CATEGORIES:
            raise ValueError(f"category {self.category!r} is none of {', '.join(CATEGORIES)}")
        unknown = set(self.irrelevant) - set(TIERS)
        if unknown:
            raise ValueError(f"irrelevant has the tier {min(unknown)!r}; there are {', '.join(TIERS)}")
        words = [word for tier in self.irrelevant.values() for word in tier]
        for word in words:
            if not 0 <= word.score <= 1:
                raise ValueError(f"the score of {word.word!r} is {word.score}: it must be from 0 to 1")
        for prompt in self.prompts:
            if "{}" not in prompt and not matching.occurs(prompt, self.concept):
                raise ValueError(f"the prompt {prompt!r} has neither {{}} nor the concept {self.concept!r}")
        for kept in (*(word.word for word in words), *self.retain):
            for erased in self.erased():
                if matching.occurs(kept, erased):
                    raise ValueError(f"{kept!r} is to be kept and holds {erased!r}, which is to be erased")
        return self

    def erased(self) -> tuple[str, ...]:
        """The concept and all its other words."""
        return tuple(dict.fromkeys((self.concept, *self.synonyms, *self.variants)))

    def label(self, wanted: str) -> str:
        """What a judge is asked: the concept for nothing and for each of its words, else what is wanted."""
        own = {"", *(word.casefold() for word in self.erased())}
        return self.concept if wanted.strip().casefold() in own else wanted

    def labels(self) -> tuple[str, ...]:
        """What a judge can choose between: the concept, what is wider, and what must survive."""
        return tuple(dict.fromkeys((self.concept, *self.anchors, *(word for tier in self.tiers() for word in tier))))

    def tiers(self) -> tuple[tuple[str, ...], ...]:
        """The irrelevant words by tier, from no relation to mid, without empty tiers."""
        found = (tuple(word.word for word in self.irrelevant.get(tier, ())) for tier in TIERS)
        return tuple(tier for tier in found if tier)

    def settings(self) -> dict:
        """The fields of an EraseConfig that the set decides; a concept without other words has no rsc loss."""
        decided = {
            "concept": self.concept,
            "synonyms": self.erased()[1:],
            "irrelevant": tuple(dict.fromkeys(word for tier in self.tiers() for word in tier)),
            "tiers": self.tiers(),
            "neutral": self.neutral,
            "retain": self.retain,
        }
        alone = {} if decided["synonyms"] else {"rsc_weight": 0.0}
        return decided | alone | ({"templates": self.prompts} if self.prompts else {})

    def to_json(self) -> str:
        """The set as JSON, one list or word a line."""
        entries = [f"  {_dump(key)}: {_dump(value)}" for key, value in dataclasses.asdict(self).items()]
        at = next(i for i, entry in enumerate(entries) if entry.startswith('  "irrelevant"'))
        tiers = [f"    {_dump(tier)}: {_dump(words)}" for tier, words in self.irrelevant.items()]
        entries[at] = '  "irrelevant": {\n' + ",\n".join(tiers) + "\n  }" if tiers else '  "irrelevant": {}'
        return "{\n" + ",\n".join(entries) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "ConceptSet":
        """A set from JSON, checked.

        Raises:
            ValueError: no JSON, a key that is unknown or missing, or a value of another kind; see also `check`.
        """
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the concept set is no JSON: line {error.lineno}: {error.msg}") from None
        if not isinstance(found, dict):
            raise ValueError("the concept set must be a JSON object, with at least `concept`")
        known = [entry.name for entry in dataclasses.fields(cls)]
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise ValueError(f"the concept set has the key {unknown[0]!r}; there are {', '.join(known)}")
        values = {name: _strings(name, value) if name in LISTS else value for name, value in found.items()}
        for name in set(known) - set(LISTS) - {"irrelevant"}:
            if not isinstance(values.get(name, ""), str):
                raise ValueError(f"{name} must be a text")
        values["irrelevant"] = _tiers(values.get("irrelevant", {}))
        return cls(**{"concept": ""} | values).check()

    def text(self) -> str:
        """The set as people read it."""
        tiers = [
            f"{tier.replace('_', ' ')}: " + ", ".join(f"{word} {score:.2f}" for word, score in words)
            for tier, words in self.irrelevant.items()
        ]
        lines = [f"{self.concept} ({self.category})", *tiers]
        for name in ("synonyms", "variants", "anchors", "prompts", "retain"):
            separator = "\n  " if name in ("prompts", "retain") else ", "
            lines.append(f"{name}: " + (separator.join(getattr(self, name)) or "none"))
        if len(self.erased()) == 1:
            lines.append("no other word is known: Erase Trainer does without its rsc loss, unless you type synonyms")
        return "\n".join([*lines, f"neutral: {self.neutral or 'the empty prompt'}", f"source: {self.source}"])


def erased(concepts: ConceptSet | None, concept: str, others: str = "") -> tuple[str, tuple[str, ...]]:
    """The concept and its other words: those of a set where there is one, else as typed."""
    if concepts is None:
        return concept, words_of(others)
    first, *rest = concepts.erased()
    return first, tuple(rest)


def _dump(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _strings(name: str, value) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise ValueError(f"{name} must be a list of texts")
    return tuple(value)


def _tiers(value) -> dict[str, tuple[Word, ...]]:
    if not isinstance(value, dict) or not all(isinstance(words, list) for words in value.values()):
        raise ValueError(f"irrelevant must have lists under {', '.join(TIERS)}")
    return {tier: tuple(_word(entry) for entry in words) for tier, words in value.items()}


def _word(entry) -> Word:
    match entry:
        case [str(word), int() | float() as score] if word.strip() and not isinstance(score, bool):
            return Word(word, float(score))
    raise ValueError(f'{json.dumps(entry)} is no [word, score], such as ["cloud", 0.1]')
