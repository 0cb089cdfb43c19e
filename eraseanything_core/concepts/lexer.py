"""Cuts a text into lexemes, so that two spellings of the same words compare equal.

Folding takes away what does not change a word: casing ("STRASSE" and "Straße"), Unicode's compatibility forms (NFKC),
invisible characters, typographic apostrophes, and the backslash with which ComfyUI's prompts escape brackets. A word
is a run of letters and digits. Scripts that are written without blanks give one lexeme a character.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

# Thai and Lao, Burmese, Khmer, Japanese kana, and Chinese characters.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
UNSPACED += "\uf900-\ufaff\U00020000-\U0003ffff"
SAME_SIGN = {ord(sign): "'" for sign in "’‘ʼ′"} | {ord("‐"): "-", ord("ı"): "i"}
BRACKETS = "()[]{}"
INVISIBLE = ("Cf", "Cc")  # categories of Unicode: format marks such as the soft hyphen, and control characters
NEEDS_FOLDING = re.compile(r"[^\x20-\x7e\s]|\\")  # what lower-casing alone does not settle


class Lexeme(NamedTuple):
    """A word, or a sign that is part of no word.

    Attributes:
        text: as it is compared.
        start, end: where it stands in the text before folding.
    """

    text: str
    start: int
    end: int

    @property
    def is_word(self) -> bool:
        return self.text[0].isalnum() or self.text[0] == "_"


def split(text: str) -> list[Lexeme]:
    """The lexemes of a text, in order. A hyphen between two words is left out, as a blank is."""
    folded, origins = _fold(text)
    lexemes = []
    for match in _pattern().finditer(folded):
        first = origins[match.start()]
        last = origins[match.end() - 1]
        lexemes.append(Lexeme(match[0], first[0], last[1]))
    return [lexeme for i, lexeme in enumerate(lexemes) if not _joins_words(lexemes, i)]


def _joins_words(lexemes: Sequence[Lexeme], i: int) -> bool:
    """Whether a lexeme is the hyphen of a compound, as in `hot-dog`."""
    if lexemes[i].text[0] != "-" or not 0 < i < len(lexemes) - 1:
        return False
    return lexemes[i - 1].is_word and lexemes[i + 1].is_word


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Hyphens; a word of a script with blanks; any other single sign."""
    # Python's \w leaves out combining marks, without which the words of Hindi or Arabic would fall apart.
    characters = (chr(code) for code in range(0x300, 0x10000))
    marks = "".join(c for c in characters if unicodedata.category(c)[0] == "M" and not re.match(f"[{UNSPACED}]", c))
    return re.compile(rf"-+|(?:[^\W{UNSPACED}]|[{marks}])+|\S")


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
    return lowered.translate(SAME_SIGN)


def _is_invisible(character: str) -> bool:
    is_variation_selector = "\ufe00" <= character <= "\ufe0f"  # asks for an emoji in colour, or without
    return is_variation_selector or unicodedata.category(character) in INVISIBLE
