"""Text of users, files and servers, made fit for an error message, a summary or the log.

Two things may go wrong with text that is repeated as it came. It may be a megabyte long. And it may hold half of a
UTF-16 pair, such as "\\ud800": JSON can carry that, no encoding can write it, and a log that fails on it takes
ComfyUI's worker thread down.
"""

import re

# Code points that stand for characters only in pairs, and only in UTF-16: Unicode, section 23.6.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SHORT = 80  # characters of a word, a name or a prompt
LONG = 400  # characters of a list of words, or of another program's message


def quoted(value: object, limit: int = SHORT) -> str:
    """A value as `repr` shows it, cut, with every character that cannot be printed escaped.

    Args:
        value: mostly text.
        limit: characters that are shown; of a longer text the number of all is added.
    """
    if not isinstance(value, str):
        return escaped(repr(value), limit)
    if len(value) <= limit:
        return repr(value)
    return f"{value[:limit]!r}... ({len(value):,} characters)"


def escaped(text: str, limit: int = LONG) -> str:
    """A text without quotation marks, cut, in which nothing is left that UTF-8 cannot write."""
    # Cut first: the rest of a large text need not be looked at.
    shown = text[:limit].encode("utf-8", "backslashreplace").decode("utf-8")
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def check_text(text: str, name: str) -> None:
    """Raises ValueError when a text holds half of a surrogate pair; `name` is what the user knows it by."""
    match = LONE_SURROGATE.search(text)
    if match is not None:
        raise ValueError(
            f"{name} holds {match[0]!r}, half of a character, at position {match.start() + 1}: delete it or type it "
            "anew"
        )
