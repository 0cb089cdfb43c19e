"""What a language model answers: read strictly, and checked word by word."""

import json
import re
from dataclasses import dataclass

from . import matching
from .concept_set import TIERS, Word

LONGEST = 100_000  # characters of an answer that are read
WORD = re.compile(r"[A-Za-z]+(?:[ '-][A-Za-z]+){0,2}")
SENTENCE = re.compile(r"[\w ,.'’-]{3,200}")


class AnswerError(ValueError):
    """An answer that cannot be used; the message says why, for the model and for people."""


@dataclass(frozen=True)
class Question:
    """What the model is asked for.

    Attributes:
        concept: the word or words to erase.
        erased: the concept and its other words.
        count: words in each tier.
        prompts: whether sentences, neighbours and a neutral phrase are asked for too.
    """

    concept: str
    erased: tuple[str, ...]
    count: int
    prompts: bool = False


@dataclass(frozen=True)
class Answer:
    """A checked answer."""

    irrelevant: dict[str, tuple[Word, ...]]
    prompts: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    neutral: str = ""


def schema(question: Question) -> dict:
    """The JSON schema of an answer, for servers that hold a model to one."""
    text = {"type": "string"}
    word = _object({"word": text, "score": {"type": "number"}})
    parts = {tier: {"type": "array", "items": word} for tier in TIERS}
    if question.prompts:
        parts |= {name: {"type": "array", "items": text} for name in ("prompts", "neighbours")} | {"neutral": text}
    return _object(parts)


def _object(properties: dict) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse(text: str) -> dict:
    """The first JSON object in a text; prose and code fences around it do not matter.

    Raises:
        AnswerError: there is none.
    """
    decoder = json.JSONDecoder()
    for brace in re.finditer(r"\{", text[:LONGEST]):
        try:
            return decoder.raw_decode(text[:LONGEST], brace.start())[0]
        except json.JSONDecodeError:
            continue
        except RecursionError:
            break
    raise AnswerError("it holds no complete JSON object")


def check(found: dict, question: Question) -> Answer:
    """An Answer from a parsed one.

    Raises:
        AnswerError: with the first thing that is wrong.
    """
    irrelevant = {tier: _tier(tier, found.get(tier), question) for tier in TIERS}
    words = [word.word.casefold() for tier in irrelevant.values() for word in tier]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise AnswerError(f"{twice[0]!r} is there twice")
    if not question.prompts:
        return Answer(irrelevant)
    neighbours = tuple(_free(word, question) for word in _texts("neighbours", found, WORD))
    neutral = found.get("neutral")
    if not isinstance(neutral, str) or not SENTENCE.fullmatch(neutral):
        raise AnswerError("neutral is no short phrase")
    return Answer(irrelevant, _prompts(found, question), neighbours, _free(neutral, question))


def _tier(tier: str, entries, question: Question) -> tuple[Word, ...]:
    if not isinstance(entries, list) or len(entries) < question.count:
        raise AnswerError(f"{tier} must be a list of {question.count} words")
    return tuple(_word(entry, question) for entry in entries[: question.count])


def _word(entry, question: Question) -> Word:
    match entry:
        case {"word": str(word), "score": int() | float() as score} if not isinstance(score, bool):
            pass
        case [str(word), int() | float() as score] if not isinstance(score, bool):
            pass
        case _:
            raise AnswerError(f"{json.dumps(entry)[:80]} is no word with a score")
    if not WORD.fullmatch(word.strip()) or len(word) > 40:
        raise AnswerError(f"{word[:40]!r} is no plain English word")
    if not 0 <= score <= 1:
        raise AnswerError(f"the score {score} of {word!r} is not from 0 to 1")
    return Word(_free(word.strip(), question), float(score))


def _free(text: str, question: Question) -> str:
    """The text, once it shares no word with what is erased."""
    for erased in question.erased:
        if matching.occurs(text, erased) or matching.occurs(erased, text):
            raise AnswerError(f"{text!r} holds or is part of {erased!r}, which is the concept or a synonym of it")
    return text


def _texts(name: str, found: dict, pattern: re.Pattern) -> list[str]:
    texts = found.get(name)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise AnswerError(f"{name} must be a list of texts")
    for text in texts:
        if not pattern.fullmatch(text):
            raise AnswerError(f"{text[:40]!r} in {name} is not plain English")
    return texts[:12]


def _prompts(found: dict, question: Question) -> tuple[str, ...]:
    texts = _texts("prompts", found, SENTENCE)
    for text in texts:
        if not matching.occurs(text, question.concept):
            raise AnswerError(f"the prompt {text[:60]!r} does not hold {question.concept!r}")
    return tuple(texts)
