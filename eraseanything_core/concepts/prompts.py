"""The sentences that an eraser is trained on: templates filled, words shuffled, the concept substituted.

A template holds the concept's place as `{}`. Words are shuffled in the template, before it is filled, so a concept
of several words stays together and a substitution never has to search for it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..quoting import escaped, quoted
from . import articles, matching

DEFAULT_TEMPLATES = (
    "a photo of {}",
    "an image of {}",
    "a picture with {} in it",
    "{} on a plain background",
    "a painting of {}",
    "{}",
)
# Training never draws those that `monitor_prompts` takes.
MONITOR_TEMPLATES = (
    "a drawing of {} in the distance",
    "a postcard that shows {}",
    "{} seen through a window",
    "an old film about {}",
    "a poster of {} on a wall",
    "a toy that looks like {}",
)
# The same for a look that no prompt names.
MONITOR_SCENES = ("a man who waits at a bus stop", "a cup of coffee on a table", "a woman with a bicycle")
MONITOR_DRAWINGS = ("a pencil drawing of a horse", "a stained glass window", "a clay model of a ship")
SHORT_PROMPT = 8  # words of a prompt that may still stand inside another sentence
COMMON_THINGS = ("a street", "a mountain lake", "a bowl of fruit", "a woman with a book")  # where nothing else is known


class PromptSettings(Protocol):
    """What the sentences of a run depend on; `training.config.EraseConfig` has it."""

    @property
    def concept(self) -> str: ...
    @property
    def synonyms(self) -> tuple[str, ...]: ...
    @property
    def irrelevant(self) -> tuple[str, ...]: ...
    @property
    def tiers(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def templates(self) -> tuple[str, ...]: ...
    @property
    def neutral(self) -> str: ...
    @property
    def other_neutrals(self) -> tuple[str, ...]: ...
    @property
    def retain(self) -> tuple[str, ...]: ...
    @property
    def watched(self) -> tuple[str, ...]: ...
    @property
    def retain_prompt_share(self) -> float: ...
    @property
    def shuffle_rate(self) -> float: ...
    @property
    def synonym_rate(self) -> float: ...
    @property
    def k_irrelevant(self) -> int: ...
    @property
    def held_out(self) -> tuple[str, ...]: ...
    @property
    def look_pictures(self) -> int: ...
    @property
    def seed(self) -> int: ...


class UnaskedSettings(PromptSettings, Protocol):
    """What the sentences depend on of a run against a look that no prompt names."""

    @property
    def unasked(self) -> str: ...
    @property
    def wanted(self) -> str: ...


@dataclass(frozen=True)
class Prompt:
    """A prompt and the word of it whose tokens matter ("" when none does)."""

    text: str
    word: str = ""


@dataclass(frozen=True)
class Sentence:
    """One shuffled sentence with everything that Algorithm 1 puts in the concept's place.

    Attributes:
        concept: what the student is trained on.
        neutral: what the teacher shall show instead.
        synonym: None where the concept has no other word.
        irrelevant: words that must survive, in the concept's place.
        other_neutrals: what it may show instead where the model draws the concept for `neutral` too.
        unwanted: for a look that no prompt names, the prompt with that look; the teacher is asked for it where it is
            otherwise asked for the concept.
    """

    concept: Prompt
    neutral: Prompt
    synonym: Prompt | None = None
    irrelevant: tuple[Prompt, ...] = ()
    unwanted: Prompt | None = None
    other_neutrals: tuple[Prompt, ...] = ()

    def teacher_concept(self) -> Prompt:
        """What the teacher is asked for as the concept."""
        return self.unwanted or self.concept

    def prompts(self) -> list[Prompt]:
        """Every prompt of the sentence, the concept's first."""
        others = [prompt for prompt in (self.synonym, self.unwanted) if prompt]
        return [self.concept, self.neutral, *others, *self.irrelevant, *self.other_neutrals]


def as_template(prompt: str, concept: str) -> str:
    """A template from what the user typed: one with `{}` as it is, else the prompt with `{}` for the concept.

    Raises:
        ValueError: the prompt has no `{}` and does not hold the concept.
    """
    if "{}" in prompt:
        return prompt
    # A template needs a place for the concept.
    if not matching.occurs(prompt, concept):
        words = escaped(", ".join(prompt.split()))
        raise ValueError(f"the prompt has neither {{}} nor the concept {quoted(concept)}; its words are: {words}")
    return matching.replace(prompt, concept, "{}")


def shuffle(template: str, rng: random.Random) -> str:
    """The template with its words in another order; `{}` moves as one word."""
    words = template.split()
    rng.shuffle(words)
    return " ".join(words)


def fill(template: str, words: str) -> str:
    """The template with `words` in its place; an article before the place agrees with them.

    Without words the blank that is left behind closes up, and an article that has no noun any more falls away.
    """
    return " ".join(articles.agree(template, words).replace("{}", words).split())


def neutral_prompt(template: str, neutral_text: str, rng: random.Random) -> str:
    """What the erased sentence should look like to the teacher.

    Args:
        template: the shuffled sentence, with `{}` for the concept.
        neutral_text: "" is the null prompt; plain text is one fixed prompt; `{}` is the same sentence without the
            concept; `{person}` the same sentence with `person` in its place; `{dog|cat}` draws one of them.
        rng: draws among several words.
    """
    braces = re.fullmatch(r"\{(.*)\}", neutral_text.strip())
    if braces is None:
        return neutral_text
    choices = braces[1].split("|")
    return fill(template, rng.choice(choices).strip())


def draw_sentence(config: PromptSettings, rng: random.Random) -> Sentence:
    """Draws a sentence: a template, its words shuffled, the word to erase, and the substitutes.

    Args:
        config: the run's settings.
        rng: the only source of chance. Equal seeds give equal runs, so the order of the draws is part of the result.
    """
    template = _draw_template(config, rng)
    word = config.concept
    if config.synonyms and rng.random() < config.synonym_rate:
        word = rng.choice(config.synonyms)
    partner = _draw_partner(config, word, rng)
    irrelevant = _draw_irrelevant(config, rng)
    return Sentence(
        concept=Prompt(fill(template, word), word),
        neutral=Prompt(neutral_prompt(template, config.neutral, rng)),
        synonym=Prompt(fill(template, partner), partner) if partner else None,
        irrelevant=tuple(Prompt(fill(template, other), other) for other in irrelevant),
        other_neutrals=_other_neutrals(config, template),
    )


def _other_neutrals(config: PromptSettings, template: str) -> tuple[Prompt, ...]:
    """The sentence with each of the configured words; they leave no choice, so nothing is drawn."""
    return tuple(Prompt(fill(template, text.strip("{}"))) for text in config.other_neutrals)


def draw_unasked(config: UnaskedSettings, rng: random.Random) -> Sentence:
    """Draws an ordinary prompt, which is not shuffled: what nobody asks for is seen in ordinary pictures.

    Args:
        config: the run's settings; its templates are ordinary prompts.
        rng: the only source of chance.
    """
    return unasked_sentence(config, rng.choice(config.templates))


def unasked_sentence(config: UnaskedSettings, prompt: str) -> Sentence:
    """An ordinary prompt, with the look that is wanted and the one that nobody asked for."""
    return Sentence(
        concept=Prompt(prompt),
        neutral=Prompt(config.wanted.replace("{}", prompt)),
        unwanted=Prompt(config.unasked.replace("{}", prompt)),
    )


def _draw_template(config: PromptSettings, rng: random.Random) -> str:
    template = rng.choice(config.templates)
    return shuffle(template, rng) if rng.random() < config.shuffle_rate else template


def _draw_partner(config: PromptSettings, word: str, rng: random.Random) -> str:
    """The word whose attention the erased one is pushed away from in Eq. 5; "" when the concept has no other word."""
    if word == config.concept and config.synonyms:
        return rng.choice(config.synonyms)
    # A synonym may be listed twice or equal the concept, but nothing is its own partner.
    others = [other for other in (*config.synonyms, config.concept) if other != word]
    # Where there is nothing to choose, one is drawn all the same: runs of one seed keep their order of draws.
    return rng.choice(others or [""])


def _draw_irrelevant(config: PromptSettings, rng: random.Random) -> list[str]:
    """One word of each tier, or `k_irrelevant` of the words without tiers."""
    if config.tiers:
        return [rng.choice(tier) for tier in config.tiers]
    return rng.sample(config.irrelevant, min(config.k_irrelevant, len(config.irrelevant)))


def draw_retained(config: PromptSettings, rng: random.Random) -> Prompt:
    """Draws a prompt that has to stay as it is: of the user's own list, or a template with an irrelevant word."""
    # The share is drawn for only where there are both. Without irrelevant words the user's list is all there is.
    if config.retain and (not config.irrelevant or rng.random() < config.retain_prompt_share):
        return Prompt(rng.choice(config.retain))
    template = _draw_template(config, rng)
    return Prompt(fill(template, rng.choice(config.irrelevant or [""])))


def preserved_words(config: PromptSettings) -> list[str]:
    """What must stay, the nearest first: the nearest tier, short prompts to retain, irrelevant words, common things."""
    nearest = config.tiers[-1] if config.tiers else ()
    short = [line for line in config.retain if len(line.split()) <= SHORT_PROMPT]
    erased = (config.concept, *config.synonyms)
    generic = [thing for thing in COMMON_THINGS if matching.first_occurring(thing, erased) is None]
    return list(dict.fromkeys((*nearest, *short, *config.irrelevant, *generic)))


def monitor_prompts(config: PromptSettings) -> tuple[list[Sentence], list[Sentence]]:
    """What a run is measured on and never trained on, in sentences of their own.

    Returns:
        `look_pictures` sentences of the concept, and half as many of words that must stay.

    Raises:
        ValueError: training has all of the held-out sentences.
    """
    near = preserved_words(config) or [""]  # a concept such as `a` leaves none
    trained = set(map(_bag_of_words, (*config.templates, *config.retain)))
    held_out = [template for template in config.held_out if not trained & _fillings(template, near)]
    if not held_out:
        raise ValueError("every sentence to watch is among the templates: take one away, or set monitor_every to 0")
    rng = random.Random(config.seed)
    sentences = []
    for i in range(config.look_pictures):
        template = held_out[i % len(held_out)]
        concept = Prompt(fill(template, config.concept), config.concept)
        neutral = Prompt(neutral_prompt(template, config.neutral, rng))
        sentences.append(Sentence(concept, neutral, other_neutrals=_other_neutrals(config, template)))
    watched = [prompt for prompt in config.watched if prompt not in config.retain]
    retained = []
    for i in range(-(-config.look_pictures // 2)):  # rounded up
        template = held_out[i % len(held_out)]
        if watched:
            retained.append(_held_out(Prompt(watched[i % len(watched)]), ""))
        else:
            retained.append(_held_out(Prompt(fill(template, near[i % len(near)])), fill(template, "")))
    return sentences, retained


def _held_out(concept: Prompt, neutral: str) -> Sentence:
    return Sentence(concept, Prompt(neutral))


def monitor_unasked(config: UnaskedSettings) -> tuple[list[Sentence], list[Sentence]]:
    """`monitor_prompts` for a look that no prompt names: ordinary prompts, and prompts that must stay.

    Without prompts of its own a run is looked at in some of the pack's, which can show most looks, and in pictures
    that are no photographs.

    Raises:
        ValueError: training has all of the held-out prompts.
    """
    # The default sentences have a place for a concept, which an ordinary prompt has not.
    ordinary = [text for text in config.held_out if "{}" not in text] or MONITOR_SCENES
    scenes = [scene for scene in ordinary if scene not in config.templates]
    if not scenes:
        raise ValueError("every prompt to watch is among the templates: take one away, or set monitor_every to 0")
    sentences = [unasked_sentence(config, scenes[i % len(scenes)]) for i in range(config.look_pictures)]
    watched = [prompt for prompt in config.watched if prompt not in config.retain] or MONITOR_DRAWINGS
    kept = []
    for i in range(-(-config.look_pictures // 2)):  # rounded up
        kept.append(_held_out(Prompt(watched[i % len(watched)]), ""))
    return sentences, kept


def _fillings(template: str, words: Sequence[str]) -> set[tuple[str, ...]]:
    """A template and its fillings, each as a bag of words."""
    bags = {_bag_of_words(template)}
    for word in words:
        bags.add(_bag_of_words(fill(template, word)))
    return bags


def _bag_of_words(text: str) -> tuple[str, ...]:
    """The words in any order, for training shuffles them."""
    return tuple(sorted(text.casefold().split()))


def words_of(text: str) -> tuple[str, ...]:
    """A typed list, one entry a line or separated by commas, without blanks and repeats."""
    parts = map(str.strip, re.split(r"[,\n]", text))
    return tuple(dict.fromkeys(filter(None, parts)))


def lines_of(text: str) -> tuple[str, ...]:
    """A typed list of prompts, one a line."""
    lines = map(str.strip, text.splitlines())
    return tuple(dict.fromkeys(filter(None, lines)))
