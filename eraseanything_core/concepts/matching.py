"""Where a concept stands in a text, or among the pieces of the prompt that was really encoded.

There is one rule for trainer, concept sets, attacks and attention nodes. A concept is found as whole words, in any
casing, in the singular and the plural, with or without accents and a possessive ending, and with a hyphen, an
underscore or nothing for a blank. It does not depend on how a tokenizer cut a word: `nude` is found in `▁nu·de`, and in
`(nude:1.2)` once ComfyUI took the weight off. The `a` of `Frida` is never taken for an article.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from ..quoting import escaped, quoted
from .articles import PREPOSITIONS
from .lexer import Lexeme, split
from .number_forms import NOT_PLURAL, number_forms

ALIKE = 0.75  # similarity (difflib's ratio) from which a word is taken for the concept misspelt
AFFIX = 4  # letters that may stand before or after the concept
WEIGHT_SIGNS = frozenset("()")  # ComfyUI takes them off a prompt
UNKNOWN_SIGNS = frozenset("<\\^`{}~")  # those of ASCII that T5's vocabulary lacks: they become tokens without text
JOINED_LETTERS = 3  # of each of two words that may be written as one: `hotdog`, but `a part` is not apart
MOST_JOINED = 4  # words of a concept that may be written with one blank less
GERUND_LETTERS = 5  # of a word in -ing that may be what somebody does: `riding`, not `king`
# What Korean hangs on a noun: subject, topic, object, possession, place, direction, company.
PARTICLES = "이 가 은 는 을 를 의 에 에서 에게 도 만 로 으로 와 과 랑 이랑 하고 들 들이 들을 들의".split()
EMPTY = "the concept is empty: type the word to erase"


def find_spans(pieces: Sequence[str], concept: str) -> list[range]:
    """The token positions of every occurrence of a concept, in order.

    Args:
        pieces: the prompt as encoded, one string a token; see `pieces.pieces_of`.
        concept: one or more words.

    Returns:
        One range of contiguous token positions an occurrence.

    Raises:
        ValueError: the concept is empty, or the prompt does not hold it.
    """
    text, owner = _spell(pieces)
    spans = []
    for start, end in _occurrences(text, concept):
        spans.append(range(owner[start], owner[end - 1] + 1))
    if not spans:
        words = escaped(", ".join(text.split()))
        raise ValueError(f"the prompt does not hold the concept {quoted(concept)}; its words are: {words}")
    return spans


def find_similar(pieces: Sequence[str], concept: str) -> list[tuple[range, str]]:
    """Words that are likely the concept misspelt or with letters around it: `Nikke`, `soccerrrs`.

    Args:
        pieces: see `find_spans`; what that finds is left out here.
        concept: one or more words.

    Returns:
        The token positions of each such word (of as many words as the concept has), and the word as it stands there.
    """
    text, owner = _spell(pieces)
    lexemes = split(concept)
    spelling = _joined_lexemes(lexemes)
    count = sum(lexeme.is_word for lexeme in lexemes)
    words = [lexeme for lexeme in split(text) if lexeme.is_word]
    similar = []
    for i in range(len(words) - count + 1 if count else 0):
        window = words[i : i + count]
        start = window[0].start
        end = window[-1].end
        if _is_alike(_joined_lexemes(window), spelling) and not occurs(text[start:end], concept):
            similar.append((range(owner[start], owner[end - 1] + 1), text[start:end]))
    return similar


def _joined_lexemes(lexemes: Iterable[Lexeme]) -> str:
    return " ".join(lexeme.text for lexeme in lexemes)


def _is_alike(word: str, concept: str) -> bool:
    """Whether a word is the concept with few letters around it, or close to it in spelling."""
    if concept in word:
        return 0 < len(word) - len(concept) <= AFFIX
    # Without autojunk: it would leave out frequent letters of long words.
    return SequenceMatcher(None, word, concept, autojunk=False).ratio() >= ALIKE


def locate(pieces: Sequence[str], concept: str, fuzzy: bool = False) -> tuple[list[range], str]:
    """The spans of a concept, with those of similar words if `fuzzy`, and a sentence that names the similar words.

    Raises:
        ValueError: see `find_spans`.
    """
    similar = find_similar(pieces, concept) if fuzzy else []
    if not similar:
        return find_spans(pieces, concept), ""
    spans = [span for span, _ in similar]
    if occurs(_spell(pieces)[0], concept):
        spans += find_spans(pieces, concept)
    names = escaped(", ".join(quoted(word) for _, word in similar))
    note = f"taken for {quoted(concept)} though it is spelt otherwise: {names}"
    return sorted(spans, key=lambda span: span.start), note


def holds(pieces: Sequence[str], concept: str, fuzzy: bool = False) -> bool:
    """Whether `locate` finds the concept."""
    return occurs(_spell(pieces)[0], concept) or (fuzzy and bool(find_similar(pieces, concept)))


def positions(pieces: Sequence[str], concept: str) -> list[int]:
    """Every token position of every occurrence of a concept; see `find_spans`."""
    return list(chain.from_iterable(find_spans(pieces, concept)))


def check_concept(concept: str, tokenize: Callable[[str], Sequence[str]]) -> str:
    """The concept without surrounding blanks, once it is sure that the encoder can see it.

    Args:
        concept: what the user typed.
        tokenize: gives the pieces of a prompt.

    Raises:
        ValueError: the concept is empty or becomes no token.
    """
    word = " ".join(concept.split())
    if not word:
        raise ValueError(EMPTY)
    text, _ = _spell(tokenize(word))
    # Some tokenizers drop letters that they do not know and give a lone blank for them.
    if not split(text):
        raise ValueError(f"the text encoder has no token for {quoted(word)}: it would be erased from nothing")
    return word


def occurs(text: str, concept: str) -> bool:
    """Whether a plain text holds the concept, by the same rule as `find_spans`."""
    return first_occurring(text, (concept,)) is not None


def first_occurring(text: str, concepts: Sequence[str]) -> str | None:
    """The first of several concepts that a plain text holds; None when it holds none.

    The time grows with the length of the text and not with the number of concepts.

    Raises:
        ValueError: a concept is empty.
    """
    numbers = _occurring_numbers(text, concepts)
    return concepts[min(numbers)] if numbers else None


def all_occurring(text: str, concepts: Sequence[str]) -> set[str]:
    """Those of several concepts that a text holds; of some that are spelt alike, as wolf and wolves, the first."""
    return {concepts[number] for number in _occurring_numbers(text, concepts)}


def _occurring_numbers(text: str, concepts: Sequence[str]) -> set[int]:
    """The numbers of the concepts that a text holds."""
    trie = _trie(tuple(concepts))
    readings = _readings(split(text))
    numbers = set()
    for start in range(len(readings)):
        numbers |= {end.number for end in trie.ends(readings, start)}
    return numbers


def check_kept(kept: Iterable[str], erased: Sequence[str]) -> None:
    """Raises ValueError when something that is to be kept holds a concept that is to be erased."""
    for text in kept:
        concept = first_occurring(text, erased)
        if concept is not None:
            raise ValueError(f"{quoted(text)} is to be kept and holds {quoted(concept)}, which is to be erased")


def replace(text: str, concept: str, replacement: str) -> str:
    """The text with every occurrence of the concept replaced, endings included, by the rule of `find_spans`."""
    # Places are those of the text as it is, so what stands between the occurrences keeps its casing and blanks.
    parts = []
    copied = 0
    for start, end in _occurrences(text, concept):
        parts += [text[copied:start], replacement]
        copied = end
    return "".join([*parts, text[copied:]])


def _occurrences(text: str, concept: str) -> Iterator[tuple[int, int]]:
    """The (start, end) of every occurrence in a text, the longest where several begin together."""
    trie = _trie((concept,))
    lexemes = split(text)
    readings = _readings(lexemes)
    # Occurrences do not overlap: the search goes on after the one before.
    position = 0
    while position < len(lexemes):
        ends = trie.ends(readings, position)
        if not ends:
            position += 1
            continue
        stop = _after_possessive(lexemes, ends[-1].stop)
        yield lexemes[position].start, lexemes[stop - 1].end
        position = stop


def _after_possessive(lexemes: Sequence[Lexeme], stop: int) -> int:
    """Where an occurrence ends, with the 's that may follow it."""
    following = [lexeme.text for lexeme in lexemes[stop : stop + 2]]
    return stop + 2 if following == ["'", "s"] else stop


class _End(NamedTuple):
    """Where a spelling of a concept ends: the lexeme after it, and the concept's number."""

    stop: int
    number: int


class _Trie:
    """The spellings of concepts as a tree of lexemes, in which a text is looked up in one pass."""

    def __init__(self, concepts: Sequence[str]) -> None:
        self.children: dict[str, _Trie] = {}
        self.number: int | None = None  # of the concept that ends here
        for number, concept in enumerate(concepts):
            for spelling in _spellings(concept):
                self._add(spelling, number)

    def _add(self, spelling: Sequence[str], number: int) -> None:
        node = self
        for lexeme in spelling:
            node = node.children.setdefault(lexeme, _Trie(()))
        # Two concepts may share a spelling, as `wolf` and `wolves` do. The earlier one is named.
        if node.number is None:
            node.number = number

    def ends(self, readings: Sequence[Sequence[tuple[str, int]]], start: int) -> list[_End]:
        """Where the spellings that begin at a lexeme end, the shortest first; see `_readings`."""
        ends: dict[int, int] = {}
        paths: list[tuple[_Trie, int]] = [(self, start)]
        while paths:
            node, position = paths.pop()
            if node.number is not None:
                ends[position] = min(node.number, ends.get(position, node.number))
            for word, stop in readings[position] if position < len(readings) else ():
                if word in node.children:
                    paths.append((node.children[word], stop))
        return [_End(stop, number) for stop, number in sorted(ends.items())]


def _readings(lexemes: Sequence[Lexeme]) -> list[list[tuple[str, int]]]:
    """What may be read at each lexeme, with the lexeme after it: itself, and it and the next one written as one."""
    readings = []
    for i, lexeme in enumerate(lexemes):
        here = [(lexeme.text, i + 1)]
        if i + 1 < len(lexemes) and _may_be_one(lexeme, lexemes[i + 1]):
            here.append((lexeme.text + lexemes[i + 1].text, i + 2))
        readings.append(here)
    return readings


def _may_be_one(first: Lexeme, second: Lexeme) -> bool:
    """Whether two lexemes may be written as one word: `t-shirt`, and `hot dog`."""
    if not (first.is_word and second.is_word):
        return False
    return second.is_joined or min(len(first.text), len(second.text)) >= JOINED_LETTERS


def word_count(text: str) -> int:
    """How many words and signs a text has, by the rule of `find_spans`."""
    return len(split(text))


@lru_cache(maxsize=1024)
def _trie(concepts: tuple[str, ...]) -> _Trie:
    return _Trie(concepts)


def _spellings(concept: str) -> list[tuple[str, ...]]:
    """The lexemes of a concept in its numbers, with and without the signs that an encoded prompt may lack.

    ComfyUI reads round brackets that are not escaped as a weight and takes them off: `tracer (overwatch)` reaches the
    text encoder as `tracer overwatch`. Other signs have no token there.

    Raises:
        ValueError: the concept is empty.
    """
    lexemes = split(concept)
    if not lexemes:
        raise ValueError(EMPTY)
    written = {tuple(lexeme.text for lexeme in lexemes): None}  # a set in order
    for signs in (WEIGHT_SIGNS, UNKNOWN_SIGNS, WEIGHT_SIGNS | UNKNOWN_SIGNS):
        remaining = tuple(lexeme.text for lexeme in lexemes if lexeme.text not in signs)
        # A concept of nothing but such signs has one spelling.
        if remaining:
            written[remaining] = None
    written |= dict.fromkeys((*_joined(lexemes), *_without_apostrophes(lexemes)))
    spellings: dict[tuple[str, ...], None] = {}
    for words in written:
        spellings |= dict.fromkeys(_in_numbers(words))
    return list(spellings)


def _joined(lexemes: Sequence[Lexeme]) -> Iterator[tuple[str, ...]]:
    """A short concept with two of its words as one: `hotdog stand`."""
    words = [lexeme.text for lexeme in lexemes]
    if len(words) > MOST_JOINED:
        return
    for i in range(len(words) - 1):
        if _may_be_one(lexemes[i], lexemes[i + 1]):
            yield (*words[:i], words[i] + words[i + 1], *words[i + 2 :])


def _without_apostrophes(lexemes: Sequence[Lexeme]) -> Iterator[tuple[str, ...]]:
    """A concept as people write it who leave out apostrophes: `McDonalds`, `OKeeffe`, `James`."""
    words: list[str] = []
    end = -1  # of a word whose apostrophe was left out
    for i, lexeme in enumerate(lexemes):
        if lexeme.text == "'" and i > 0 and lexemes[i - 1].end == lexeme.start:
            end = lexeme.end
        elif words and lexeme.is_word and lexeme.start == end:
            words[-1] += lexeme.text
        else:
            words.append(lexeme.text)
    if end >= 0 and words:
        yield tuple(words)


def _in_numbers(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A spelling in its numbers: of its last word, and of the noun that the rest follows: `women with guns`."""
    forms = _word_forms(words[-1])
    head = _head(words)
    for noun in _word_forms(words[head]) if head < len(words) - 1 else [""]:
        first = (*words[:head], noun, *words[head + 1 : -1]) if noun else words[:-1]
        for last in forms:
            yield (*first, last)


def _head(words: Sequence[str]) -> int:
    """The position of the noun that a phrase is about: before `with a gun`, before `smoking`, else the last word."""
    for i, word in enumerate(words[1:]):
        if word in PREPOSITIONS or (len(word) > GERUND_LETTERS and word.endswith("ing")):
            return i
    return len(words) - 1


def _word_forms(word: str) -> list[str]:
    """A word in its numbers; a sign has no other."""
    if not word[-1].isalnum():
        return [word]
    # A letter has no plural here: that of `a` would be `as`.
    if len(word) == 1 and not _is_hangul(word):
        return [word]
    if _is_hangul(word):
        return [word, *(word + particle for particle in PARTICLES)]
    return list(dict.fromkeys([word, *number_forms(word), *_plain_plurals(word)]))


def _is_hangul(word: str) -> bool:
    return "\uac00" <= word[-1] <= "\ud7a3"


def _plain_plurals(word: str) -> list[str]:
    """Plurals by a rule that does not hold for all words; those that do not exist stand in no prompt."""
    # Viruses, irises: such words look like plurals themselves.
    if word.endswith("s"):
        return [] if word + "es" in NOT_PLURAL else [word + "es"]
    # Names and words that English borrowed take a plain s: Kennedys, epochs, volcanos. Others take es: flamingoes.
    endings = ("s", "es") if word.endswith("o") else ("s",)
    return [word + ending for ending in endings if word + ending not in NOT_PLURAL]


def _spell(pieces: Sequence[str]) -> tuple[str, list[int]]:
    """The text that the pieces spell, and for each of its characters the piece it came from."""
    text = ""
    owner = []
    for i, piece in enumerate(pieces):
        text += piece.replace("▁", " ")
        owner += [i] * len(piece)
    return text, owner
