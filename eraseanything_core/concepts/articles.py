"""English articles, without WordNet: training fills templates on machines that lack NLTK."""

import re

from .number_forms import is_plural

# Words for what is not counted, though WordNet files them with things that are.
MASS = frozenset(
    """
    advice air alcohol ammunition anger anime art artwork bacon baseball basketball beef beer blood bokeh boredom
    bread butter cannabis cash champagne chaos cheese chess clothing cocaine coffee commerce corn cotton courage
    cruelty danger darkness dignity dirt dust envy equipment evidence fear fire flesh fog food football footwear
    freedom fur furniture gasoline gold golf gore graffiti grass hair hashish health heroin hockey honesty honey
    hope ice importance information jewellery jewelry joy juice justice ketchup lava leather light lightning
    lingerie lipstick loyalty luggage machinery makeup marble marijuana meat metal milk mist moonlight moss mud
    music nudity opium paint paper pasta patience plastic pleasure poker pollen popcorn pork porn pornography
    pottery poverty precision pride rain research rice rugby rust sadness safety sand science seaweed semen sex
    shame silence silk silver skin slime smog smoke snow soap soccer soda soil spaghetti steam steel straw strength
    success sugar sunlight sweat tea tennis text thunder tobacco traffic training trash underwear urine violence
    virtue vodka vomit water weather wheat whiskey wine wisdom wood wool worship writing
    """.split()
)
MASS_ENDINGS = ("ness", "ism", "nudity")
DETERMINERS = frozenset(
    "a an the this that these those his her its their my your our some no two three four five everything".split()
)
PREPOSITIONS = frozenset(
    "about above at behind beside by for from in inside into near of on outside over through to under with".split()
)
FOLLOWERS = PREPOSITIONS | {"and", "or", "that", "who", "outdoors", "smiling", "walking", "seen"}
VOWELS = tuple("aeiou")
SOUNDS_LIKE_CONSONANT = ("uni", "use", "usu", "euro", "one", "once", "ufo", "ukulele", "utensil")
SOUNDS_LIKE_VOWEL = ("hour", "honest", "heir", "nsfw", "x-ray", "mri")
NEGATED = ("unin", "unim", "unid", "unil")  # un-identified, which begins with a vowel
PLACE = re.compile(r"\b(an?|the) \{\}(?=(\W*)(\w*))", re.IGNORECASE)


def article(following: str) -> str:
    """`a` or `an`, by how the next word is spoken."""
    word = following.casefold()
    if word.startswith(SOUNDS_LIKE_VOWEL):
        return "an"
    if word.startswith(SOUNDS_LIKE_CONSONANT) and not word.startswith(NEGATED):
        return "a"
    return "an" if word.startswith(VOWELS) else "a"


def head(words: str) -> str:
    """The word that a phrase is about: `tower` in `Eiffel tower at night`; "" of none."""
    last = ""
    for word in words.split():
        if last and word.casefold() in PREPOSITIONS:
            break
        last = word
    return last


def is_mass(noun: str) -> bool:
    """Whether a word names what is not counted."""
    return noun.casefold() in MASS or noun.casefold().endswith(MASS_ENDINGS)


def takes_article(words: str) -> bool:
    """Whether `a` can stand before a noun phrase."""
    first = words.split()[0].casefold()
    noun = head(words)
    return first not in DETERMINERS and not is_plural(noun) and not is_mass(noun)


def with_article(words: str) -> str:
    """A noun phrase with its indefinite article, where it takes one."""
    return f"{article(words)} {words}" if takes_article(words) else words


def agree(template: str, words: str) -> str:
    """The template, in which an article before `{}` fits the words that will stand there."""
    return PLACE.sub(lambda place: _agreeing(place, words), template)


def _agreeing(place: re.Match[str], words: str) -> str:
    """The place `{}` with the article that fits `words`."""
    typed = place[1]
    stands_alone = not place[3] or "," in place[2] or place[3].casefold() in FOLLOWERS
    if not words:
        return "" if stands_alone else _spelled(typed, article(place[3]))
    if words.split()[0].casefold() in DETERMINERS:
        return "{}"
    if typed.casefold() == "the":
        return f"{typed} {{}}"
    if stands_alone and not takes_article(words):
        return "{}"
    return f"{_spelled(typed, article(words))} {{}}"


def _spelled(typed: str, wanted: str) -> str:
    """The wanted article in the casing of the typed one; `the` stays."""
    if typed.casefold() == "the":
        return typed
    return wanted.capitalize() if typed[0].isupper() else wanted
