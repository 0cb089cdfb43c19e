"""The sentences that an eraser is trained on: templates filled, words shuffled, the concept substituted.

A template holds the concept's place as `{}`. Words are shuffled in the template, before it is filled, so a concept
of several words stays together and a substitution never has to search for it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import matching

TEMPLATES = (
    "a photo of {}",
    "an image of {}",
    "a picture with {} in it",
    "{} on a plain background",
    "a painting of {}",
    "{}",
)
WATCHED = (  # held out: training never draws those that `watched` takes
    "a drawing of {} in the distance",
    "a postcard that shows {}",
    "{} seen through a window",
    "an old film about {}",
    "a poster of {} on a wall",
    "a toy that looks like {}",
)
LOOKED_AT, SHORT = 3, 8  # held-out sentences of each kind; words of a prompt that may stand in another
GENERIC = ("a street", "a mountain lake", "a bowl of fruit", "a woman with a book")  # where nothing else is known


@dataclass(frozen=True)
class Prompt:
    """A prompt and the word of it whose tokens matter ("" when none does)."""

    text: str
    word: str = ""


@dataclass(frozen=True)
class Sentence:
    """One shuffled sentence with everything that Algorithm 1 puts in the concept's place."""

    concept: Prompt
    neutral: Prompt
    synonym: Prompt | None
    irrelevant: tuple[Prompt, ...]

    def prompts(self) -> list[Prompt]:
        return [self.concept, self.neutral, *([self.synonym] if self.synonym else []), *self.irrelevant]


def as_template(prompt: str, concept: str) -> str:
    """A template from what the user typed: one with `{}` as it is, else the prompt with `{}` for the concept.

    Raises:
        ValueError: the prompt has no `{}` and does not hold the concept.
    """
    if "{}" in prompt:
        return prompt
    if not matching.occurs(prompt, concept):
        words = ", ".join(prompt.split())
        raise ValueError(f"the prompt has neither {{}} nor the concept {concept!r}; its words are: {words}")
    return matching.replace(prompt, concept, "{}")


def shuffle(template: str, rng: random.Random) -> str:
    """The template with its words in another order; `{}` moves as one word."""
    words = template.split()
    rng.shuffle(words)
    return " ".join(words)


def fill(template: str, words: str) -> str:
    """The template with `words` in its place; without words the blank that is left behind closes up."""
    return " ".join(template.replace("{}", words).split())


def neutral(template: str, neutral_text: str, rng: random.Random) -> str:
    """What the erased sentence should look like to the teacher.

    Args:
        template: the shuffled sentence, with `{}` for the concept.
        neutral_text: "" is the null prompt; plain text is one fixed prompt; `{}` is the same sentence without the
            concept; `{person}` the same sentence with `person` in its place; `{dog|cat}` draws one of them.
    """
    braces = re.fullmatch(r"\{(.*)\}", neutral_text.strip())
    return fill(template, rng.choice(braces[1].split("|")).strip()) if braces else neutral_text


def sentence(config, rng: random.Random) -> Sentence:
    """Draws a sentence: a template, its words shuffled, the word to erase, and the substitutes.

    Args:
        config: has concept, synonyms, irrelevant, tiers, templates, neutral, shuffle_rate, synonym_rate, k_irrelevant.
        rng: the only source of chance.
    """
    template = rng.choice(config.templates)
    if rng.random() < config.shuffle_rate:
        template = shuffle(template, rng)
    word = config.concept
    if config.synonyms and rng.random() < config.synonym_rate:
        word = rng.choice(config.synonyms)
    others = [s for s in (*config.synonyms, config.concept) if s != word]
    partner = rng.choice(config.synonyms if word == config.concept and config.synonyms else others or [""])
    irrelevant = [rng.choice(tier) for tier in config.tiers]
    irrelevant = irrelevant or rng.sample(config.irrelevant, min(config.k_irrelevant, len(config.irrelevant)))
    return Sentence(
        concept=Prompt(fill(template, word), word),
        neutral=Prompt(neutral(template, config.neutral, rng)),
        synonym=Prompt(fill(template, partner), partner) if partner else None,
        irrelevant=tuple(Prompt(fill(template, w), w) for w in irrelevant),
    )


def retained(config, rng: random.Random) -> Prompt:
    """Draws a prompt that has to stay as it is: half a template with an irrelevant word, half the user's own list."""
    own = config.retain and (not config.irrelevant or rng.random() < config.retain_prompt_share)
    if own:
        return Prompt(rng.choice(config.retain))
    template = rng.choice(config.templates)
    if rng.random() < config.shuffle_rate:
        template = shuffle(template, rng)
    return Prompt(fill(template, rng.choice(config.irrelevant or [""])))


def neighbours(config) -> list[str]:
    """What must stay, the nearest first: the nearest tier, short prompts to retain, irrelevant words, common things."""
    nearest = config.tiers[-1] if config.tiers else ()
    short = [line for line in config.retain if len(line.split()) <= SHORT]
    erased = (config.concept, *config.synonyms)
    generic = [thing for thing in GENERIC if not any(matching.occurs(thing, word) for word in erased)]
    return list(dict.fromkeys((*nearest, *short, *config.irrelevant, *generic)))


def watched(config) -> tuple[list[Sentence], list[Prompt]]:
    """What a run looks at and never trains on: the concept, and neighbours of it, in sentences of their own.

    Raises:
        ValueError: training has all of the held-out sentences.
    """
    near, trained = neighbours(config), {_bag(text) for text in (*config.templates, *config.retain)}
    held_out = [s for s in WATCHED if not trained & {_bag(s), *(_bag(fill(s, word)) for word in near)}][:LOOKED_AT]
    if not held_out:
        raise ValueError("every sentence to watch is among the templates: take one away, or set monitor_every to 0")
    rng = random.Random(config.seed)
    concept = [Prompt(fill(s, config.concept), config.concept) for s in held_out]
    instead = [Prompt(neutral(s, config.neutral, rng)) for s in held_out]
    kept = [Prompt(fill(s, near[i % len(near)])) for i, s in enumerate(held_out)]
    return [Sentence(c, n, synonym=None, irrelevant=()) for c, n in zip(concept, instead, strict=True)], kept


def _bag(text: str) -> tuple[str, ...]:
    """The words in any order, for training shuffles them."""
    return tuple(sorted(text.casefold().split()))


def words_of(text: str) -> tuple[str, ...]:
    """A typed list, one entry a line or separated by commas, without blanks and repeats."""
    parts: Sequence[str] = re.split(r"[,\n]", text)
    return tuple(dict.fromkeys(p.strip() for p in parts if p.strip()))


def lines_of(text: str) -> tuple[str, ...]:
    """A typed list of prompts, one a line."""
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
