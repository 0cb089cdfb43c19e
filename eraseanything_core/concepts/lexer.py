"""Cuts a text into lexemes, so that two spellings of the same words compare equal.

Folding takes away what does not change a word: casing ("STRASSE" and "Straße"), Unicode's compatibility forms (NFKC),
invisible characters, typographic apostrophes and dashes, the accents of Latin letters, and the backslash with which
ComfyUI's prompts escape brackets. A word is a run of letters and digits. Scripts that are written without blanks give
one lexeme a character. Initials are one word (`J. K.` is `JK`), and the dot of `Mr.` is left out.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

# Thai and Lao, Burmese, Khmer, Japanese kana, and Chinese characters.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
UNSPACED += "\uf900-\ufaff\U00020000-\U0003ffff"
SAME_SIGN = {ord(sign): "'" for sign in "’‘ʼ′"} | {ord(sign): "-" for sign in "‐‒–−"} | {ord("ı"): "i"}
# Latin letters with a stroke, which Unicode does not take apart as it does those with an accent.
STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d"})
JOINERS = "-_"  # what may stand between the words of a compound: `hot-dog`, and `hot_dog` in tags
TITLES = "mr|mrs|ms|dr|st|jr|sr"
BRACKETS = "()[]{}"
INVISIBLE = ("Cf", "Cc")  # categories of Unicode: format marks such as the soft hyphen, and control characters
NEEDS_FOLDING = re.compile(r"[^\x20-\x7e\s]|\\")  # what lower-casing alone does not settle


class Lexeme(NamedTuple):
    """A word, or a sign that is part of no word.

    Attributes:
        text: as it is compared.
        start, end: where it stands in the text before folding.
        is_joined: whether only a hyphen or an underscore stands between it and the word before.
    """

    text: str
    start: int
    end: int
    is_joined: bool = False

    @property
    def is_word(self) -> bool:
        return self.text[0].isalnum()


def split(text: str) -> list[Lexeme]:
    """The lexemes of a text, in order. A hyphen or an underscore between two words is left out, as a blank is."""
    folded, origins = _fold(text)
    lexemes = []
    for match in _pattern().finditer(folded):
        first = origins[match.start()]
        last = origins[match.end() - 1]
        lexemes.append(Lexeme(_word(match[0]), first[0], last[1]))
    return _without_joiners(lexemes)


def _word(match: str) -> str:
    """What is compared of a match: initials and titles without their dots, `and` for its sign in `Tom & Jerry`."""
    if match == "&":
        return "and"
    return "".join(match.replace(".", "").split()) if match[0].isalpha() else match


def _without_joiners(lexemes: Sequence[Lexeme]) -> list[Lexeme]:
    """The lexemes without the signs of compounds, such as the hyphen of `hot-dog`."""
    left: list[Lexeme] = []
    joiner: Lexeme | None = None  # the one that was left out last
    for i, lexeme in enumerate(lexemes):
        if _joins_words(lexemes, i):
            joiner = lexeme if lexemes[i - 1].end == lexeme.start else None
            continue
        if joiner is not None:
            lexeme = lexeme._replace(is_joined=joiner.end == lexeme.start)
            joiner = None
        left.append(lexeme)
    return left


def _joins_words(lexemes: Sequence[Lexeme], i: int) -> bool:
    """Whether a lexeme is the hyphen of a compound, as in `hot-dog`."""
    if lexemes[i].text[0] not in JOINERS or not 0 < i < len(lexemes) - 1:
        return False
    return lexemes[i - 1].is_word and lexemes[i + 1].is_word


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Hyphens or underscores; initials; a title; a word of a script with blanks; any other single sign."""
    # Python's \w leaves out combining marks, without which the words of Hindi or Arabic would fall apart.
    characters = (chr(code) for code in range(0x300, 0x10000))
    marks = "".join(c for c in characters if unicodedata.category(c)[0] == "M" and not re.match(f"[{UNSPACED}]", c))
    letter = rf"[^\W\d_{UNSPACED}]"
    # A blank between initials is taken only where a dot follows: of `vitamin c. a dog` the `a` is a word.
    initials = rf"(?<!\w){letter}(?:\.\s?{letter}(?=\.))*(?:\.{letter}(?![\w{marks}]))?(?:\.|(?![\w{marks}]))"
    title = rf"(?<!\w)(?:{TITLES})\."
    return re.compile(rf"-+|_+|{initials}|{title}|(?:[^\W_{UNSPACED}]|[{marks}])+|\S")


def _fold(text: str) -> tuple[str, Sequence[tuple[int, int]]]:
    """The folded text, and for each of its characters the (start, end) that it comes from."""
    if not NEEDS_FOLDING.search(text):
        return text.lower(), [(i, i + 1) for i in range(len(text))]
    folded = []
    origins: list[tuple[int, int]] = []
    for start, end in _clusters(text):
        characters = _fold_cluster(text[start:end])
        folded.append(characters)
        # One letter may become two, as ß does, or none.
        origins += [(start, end)] * len(characters)
    return "".join(folded), origins


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    """The (start, end) of each character with what belongs to it: its escape before, its marks after it."""
    start = 0
    while start < len(text):
        end = start + 1
        if text[start] == "\\" and text[end : end + 1] in tuple(BRACKETS):
            end += 1
        while end < len(text) and _extends(text[end]):
            end += 1
        yield start, end
        start = end


def _extends(character: str) -> bool:
    """Whether a character may melt into the one before it when a text is composed."""
    if character.isascii():
        return False
    is_jamo = "\u1160" <= character <= "\u11ff"  # the later letters of a Korean syllable
    is_half_width_mark = character in "\uff9e\uff9f"  # of Japanese kana
    return is_jamo or is_half_width_mark or unicodedata.category(character)[0] == "M"


@lru_cache(maxsize=4096)
def _fold_cluster(cluster: str) -> str:
    if len(cluster) > 1:
        cluster = cluster.removeprefix("\\")
    # NFKC would turn the acute accent, which some keyboards give for an apostrophe, into a blank with a mark.
    composed = unicodedata.normalize("NFKC", cluster.replace("´", "'"))
    shown = "".join(c for c in composed if c.isspace() or not _is_invisible(c))
    # Lower case may need composing again. Turkish İ would keep its dot as a mark.
    lowered = unicodedata.normalize("NFKC", shown.casefold()).replace("i\u0307", "i")
    return _without_accents(lowered.translate(SAME_SIGN))


def _without_accents(cluster: str) -> str:
    """A Latin letter without its accents, which people type or leave out: `Beyoncé`. Elsewhere marks are letters."""
    parts = unicodedata.normalize("NFD", cluster)
    if len(parts) > 1 and parts[0].isascii() and all(map(unicodedata.combining, parts[1:])):
        return parts[0]
    return cluster.translate(STROKES)


def _is_invisible(character: str) -> bool:
    is_variation_selector = "\ufe00" <= character <= "\ufe0f"  # asks for an emoji in colour, or without
    return is_variation_selector or unicodedata.category(character) in INVISIBLE
