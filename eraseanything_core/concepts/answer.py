"""What a language model answers: read strictly, and checked word by word."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..quoting import quoted
from . import matching
from .concept_set import TIERS, Word

MAX_ANSWER = 100_000  # characters after the thinking that are read
MAX_BRACES = 500  # that open no JSON object, before the search for one ends; each may cost a pass over the text
MAX_WORD = 40  # characters of a word
MAX_TEXTS = 12  # prompts, or neighbours, that are taken
WORD = re.compile(r"[A-Za-z]+(?:[ '-][A-Za-z]+){0,2}")
SENTENCE = re.compile(r"[\w ,.'’-]{3,200}")
TRAILING_COMMA = re.compile(r",\s*([\]}])")
SCORE = re.compile(r"(\d{1,6}(?:[.,]\d{1,20})?|[.,]\d{1,20})\s*(%?)")
# How models mark their thinking: DeepSeek, Qwen and others; Magistral; Kimi; Command A; gpt-oss.
_THOUGHT = r"(?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning|analysis|reflection|scratchpad)"
THINKING_BEGIN = re.compile(
    rf"<{_THOUGHT}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|>\s*(?:analysis|commentary)", re.IGNORECASE
)
THINKING_END = re.compile(rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|channel\|>\s*final", re.IGNORECASE)


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


def answer_schema(question: Question) -> dict[str, Any]:
    """The JSON schema of an answer, for servers that hold a model to one."""
    text = {"type": "string"}
    word = _object_schema({"word": text, "score": {"type": "number"}})
    properties: dict[str, Any] = {tier: {"type": "array", "items": word} for tier in TIERS}
    if question.prompts:
        properties["prompts"] = {"type": "array", "items": text}
        properties["neighbours"] = {"type": "array", "items": text}
        properties["neutral"] = text
    return _object_schema(properties)


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with exactly these properties, which OpenAI's strict mode asks for."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def find_answer(objects: Sequence[dict[str, Any]], question: Question) -> tuple[dict[str, Any], Answer]:
    """The last object that is an answer, as the model gave it and checked.

    Args:
        objects: see `json_objects`. Drafts and examples come before the answer.
        question: what was asked.

    Raises:
        AnswerError: none is; with what is wrong with the last one.
    """
    reason = AnswerError(f"it holds no complete JSON object with {', '.join(TIERS)}")
    # An answer that breaks off still holds whole objects: its words.
    candidates = [entries for entries in objects if any(tier in entries for tier in TIERS)]
    for i, entries in enumerate(reversed(candidates)):
        try:
            return entries, check(entries, question)
        except AnswerError as error:
            reason = error if i == 0 else reason
    raise reason


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, outside the model's thinking, in order; prose and code fences do not matter.

    An object that wraps another, as in `{"answer": {...}}`, is followed by the one inside.
    """
    # Small models end lists with a comma, which JSON does not have.
    text = TRAILING_COMMA.sub(r"\1", without_thinking(text)[:MAX_ANSWER])
    decoder = json.JSONDecoder()
    objects = []
    braces = 0
    position = text.find("{")
    while position >= 0 and braces < MAX_BRACES:
        try:
            value, end = decoder.raw_decode(text, position)
        except ValueError:  # a brace in the prose, an object that breaks off, a number of thousands of digits
            braces += 1
            end = position + 1
        except RecursionError:
            break
        else:
            objects.append(value)
            objects += [inner for inner in value.values() if isinstance(inner, dict) and TIERS[0] in inner]
        position = text.find("{", end)
    return objects


def without_thinking(text: str) -> str:
    """The text without what the model thought before it answered, finished or not.

    Some servers leave out the mark with which the thinking begins.
    """
    end = 0
    for match in THINKING_END.finditer(text):
        end = match.end()
    first = THINKING_BEGIN.search(text)
    before = text[: first.start()] if first and first.start() < end else ""
    after = text[end:]
    unfinished = THINKING_BEGIN.search(after)
    if unfinished:
        after = after[: unfinished.start()]
    return f"{before}\n{after}"


def check(entries: dict[str, Any], question: Question) -> Answer:
    """An Answer from a parsed one. A word or sentence that cannot be used is left out while half of them remain.

    Raises:
        AnswerError: with the first thing that is wrong.
    """
    irrelevant = {}
    seen: set[str] = set()
    divisor = _score_divisor(entries)
    for tier in TIERS:
        irrelevant[tier] = _read_tier(tier, entries.get(tier), question, divisor, seen)
    if not question.prompts:
        return Answer(irrelevant)

    def check_prompt(prompt: str) -> str:
        if not matching.occurs(prompt, question.concept):
            raise AnswerError(f"the prompt {quoted(prompt)} does not hold {quoted(question.concept)}")
        return prompt

    def check_neighbour(word: str) -> str:
        return _without_erased(word, question)

    prompts = _read_texts("prompts", entries, SENTENCE, check_prompt)
    neighbours = _read_texts("neighbours", entries, WORD, check_neighbour)
    neutral = entries.get("neutral")
    if not isinstance(neutral, str) or not SENTENCE.fullmatch(neutral.strip()):
        raise AnswerError("neutral is no short phrase")
    return Answer(irrelevant, prompts, neighbours, _without_erased(neutral.strip(), question))


def _pairs(entries: object) -> list[tuple[object, object]]:
    """The entries of a tier as pairs of a word and its score; what is no such entry is paired with None."""
    if isinstance(entries, dict):
        return list(entries.items())
    pairs: list[tuple[object, object]] = []
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"word": word, "score": score} | [word, score]:
                pairs.append((word, score))
            case _:
                pairs.append((entry, None))
    return pairs


def _score_divisor(entries: dict[str, Any]) -> int:
    """100 where the model gives its scores in percent without saying so, else 1."""
    scores = []
    for tier in TIERS:
        for _, score in _pairs(entries.get(tier)):
            if isinstance(score, (int, float)):
                scores.append(score)
    is_whole = all(isinstance(score, int) or score.is_integer() for score in scores)
    # Up to 10 it may be another scale.
    return 100 if scores and is_whole and 10 < max(scores) <= 100 else 1


def _read_tier(tier: str, entries: object, question: Question, divisor: int, seen: set[str]) -> tuple[Word, ...]:
    """The words of a tier, without those that are `seen` in an earlier one; adds its own to them."""
    pairs = _pairs(entries)
    if 2 * len(pairs) < question.count:
        raise AnswerError(f"{tier} must be a list of {question.count} words")
    words: list[Word] = []
    reasons = []
    for word, score in pairs:
        # Models often give a word more than they are asked for.
        if len(words) == question.count:
            break
        try:
            words.append(_read_word(word, score, question, divisor, seen))
        except AnswerError as reason:
            reasons.append(reason)
    if not words or 2 * len(words) < question.count:
        raise reasons[0]
    return tuple(words)


def _read_word(word: object, score: object, question: Question, divisor: int, seen: set[str]) -> Word:
    if not isinstance(word, str) or score is None:
        raise AnswerError(f"{quoted(word)} is no word with a score")
    stripped = word.strip()
    if len(word) > MAX_WORD or not WORD.fullmatch(stripped):
        raise AnswerError(f"{quoted(word)} is no plain English word")
    if stripped.casefold() in seen:
        raise AnswerError(f"{quoted(stripped.casefold())} is there twice")
    accepted = Word(_without_erased(stripped, question), _read_score(word, score, divisor))
    seen.add(stripped.casefold())
    return accepted


def _read_score(word: str, score: object, divisor: int) -> float:
    """A score from a number, or from a text such as "0.3" or "30 %"."""
    number: float = -1.0
    if isinstance(score, str):
        text = SCORE.fullmatch(score.strip().removeprefix("+"))
        if text:
            number = float(text[1].replace(",", ".")) / (100 if text[2] else divisor)
    # In Python, true counts as an int. Huge numbers are compared first, as they cannot be divided.
    elif isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= divisor:
        number = score / divisor
    if not 0 <= number <= 1:
        raise AnswerError(f"the score {quoted(score)} of {quoted(word)} is not from 0 to 1")
    return number


def _without_erased(text: str, question: Question) -> str:
    """The text, once it shares no word with what is erased."""
    for erased in question.erased:
        # `star` is neither kept beside an erased `red star`, nor the other way round.
        if matching.occurs(text, erased) or matching.occurs(erased, text):
            raise AnswerError(
                f"{quoted(text)} holds or is part of {quoted(erased)}, which is the concept or a synonym of it"
            )
    return text


def _read_texts(
    name: str, entries: dict[str, Any], pattern: re.Pattern[str], check_text: Callable[[str], str]
) -> tuple[str, ...]:
    """The usable texts of a list.

    Raises:
        AnswerError: it is no list of texts, or fewer than half can be used.
    """
    texts = entries.get(name)
    if not isinstance(texts, list) or not texts:
        raise AnswerError(f"{name} must be a list of texts")
    usable = []
    reasons = []
    for text in texts[:MAX_TEXTS]:
        try:
            if not isinstance(text, str) or not pattern.fullmatch(text.strip()):
                raise AnswerError(f"{quoted(text)} in {name} is not plain English")
            usable.append(check_text(text.strip()))
        except AnswerError as reason:
            reasons.append(reason)
    if len(usable) < len(reasons):
        raise reasons[0]
    return tuple(usable)
