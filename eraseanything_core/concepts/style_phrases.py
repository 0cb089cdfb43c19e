"""Phrases that name a style, such as `in the style of Van Gogh`, and the words in them that are the style."""

import re

from . import person_names, wordnet

OF = re.compile(r"(?:.*\b)?style of (?:the )?(?P<core>.+)", re.IGNORECASE)
BEFORE = re.compile(r"(?:.*\bin )?(?P<core>.+?)[ -](?:art )?style", re.IGNORECASE)
WORK = "(?:art|artwork|painting|drawing|illustration|photo|photograph|portrait)s?"
BY = re.compile(rf"(?:{WORK} )?by (?P<core>.+)", re.IGNORECASE)
NOT_STYLES = {"life", "free", "in", "old", "new", "same", "own", "this", "that", "house", "home", "the", "a"}


def core(phrase: str) -> str | None:
    """The words that are the style: `Van Gogh` of `in the style of Van Gogh`; None when the phrase names no style.

    What WordNet knows as a whole, such as `hair style`, is no such phrase.
    """
    if wordnet.lookup(phrase):
        return None
    by = BY.fullmatch(phrase)
    # `by the sea` is a place: only names paint.
    if by and (person_names.is_name(by["core"]) or by["core"].istitle()):
        return by["core"]
    for pattern in (OF, BEFORE):
        found = pattern.fullmatch(phrase)
        if found and found["core"].casefold() not in NOT_STYLES:
            return found["core"]
    return None
