"""Erases in closed form, without training: sentences of a concept, the edit of their states, and the LoRA of it."""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..concepts import prompts
from ..concepts.concept_set import ConceptSet
from ..lora.factors import Eraser, Factors
from ..quoting import quoted
from . import double_projection, uce
from .aligned_states import Pair, pooled_states, text_states
from .state_edit import Effect, compressed, effect, linear_edit
from .uce import TextStates

Method = Literal["UCE", "double projection"]
METHODS: tuple[Method, ...] = ("UCE", "double projection")
RIDGE = 1e-4  # lam of UCE, as a part of the mean of M's diagonal; the published 0.5 is that on TinyFlux
UNASKED = (
    "the concept set is about a look that no prompt names, which is not in the text's states: train an eraser with "
    "Erase Trainer"
)


class TextReader(Protocol):
    """The linears of a model that read the text alone; see `comfy_bridge.text_linears.TextLinears`."""

    @property
    def keys(self) -> list[str]: ...
    @property
    def pooled(self) -> list[str]: ...
    def weight(self, key: str) -> Tensor: ...
    def group(self, key: str) -> str: ...
    def read(self, prompts: Iterable[str], progress: Callable[[int], None]) -> None: ...
    def states(self, key: str, prompt: str) -> Tensor: ...
    def pieces(self, key: str, prompt: str) -> list[str]: ...


def templates_of(words: ConceptSet) -> tuple[str, ...]:
    """The sentences of a set with `{}` for the concept; those that a training would hold out are not among them."""
    given = words.settings().get("templates", prompts.DEFAULT_TEMPLATES)
    return tuple(prompts.as_template(sentence, words.concept) for sentence in given)


@dataclass(frozen=True)
class ClosedFormConfig:
    """The settings of an erasing in closed form; they stand in the header of its file.

    Attributes:
        concept: the word or words.
        synonyms: its other words.
        templates: sentences with `{}` for the concept.
        irrelevant: words that are kept in these sentences.
        retain: whole prompts that are kept.
        neutral: what the concept shall read as; see `prompts.neutral_prompt`.
        method: of `METHODS`.
        rank: of the LoRA at most; 0 is exact.
        sentences: of the concept at most.
        kept: prompts that are kept at most.
        seed: of the choice of sentences.
    """

    concept: str
    synonyms: tuple[str, ...] = ()
    templates: tuple[str, ...] = prompts.DEFAULT_TEMPLATES
    irrelevant: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    neutral: str = ""
    method: Method = "UCE"
    rank: int = 0
    sentences: int = 24
    kept: int = 96
    seed: int = 0

    @classmethod
    def of(cls, words: ConceptSet, method: Method, rank: int, seed: int) -> "ClosedFormConfig":
        """The settings for a concept set.

        Raises:
            ValueError: the set is about a look that no prompt names.
        """
        if words.unasked:
            raise ValueError(UNASKED)
        given = words.settings()
        return cls(
            concept=words.concept,
            synonyms=given["synonyms"],
            templates=templates_of(words),
            irrelevant=given["irrelevant"],
            retain=given["retain"],
            neutral=words.neutral,
            method=method,
            rank=rank,
            seed=seed,
        )

    def pairs(self) -> list[Pair]:
        """Sentences of the concept and its other words, each with its guide; the concept's own are all among them."""
        rng = random.Random(self.seed)
        own = [self._pair(template, self.concept, rng) for template in self.templates]
        others = [self._pair(template, name, rng) for name in self.synonyms for template in self.templates]
        free = max(0, self.sentences - len(own))
        return own + rng.sample(others, min(free, len(others)))

    def kept_prompts(self) -> list[str]:
        """Prompts that must read as before: of the user's, with neighbours, and the empty one."""
        neighbours = [prompts.fill(template, word) for word in self.irrelevant for template in self.templates]
        chosen = list(dict.fromkeys((*self.retain, *neighbours)))
        rng = random.Random(self.seed)
        return ["", *rng.sample(chosen, min(self.kept, len(chosen)))]

    def _pair(self, template: str, name: str, rng: random.Random) -> Pair:
        return Pair(prompts.fill(template, name), name, prompts.neutral_prompt(template, self.neutral, rng))


class EditedLinear(NamedTuple):
    """What was done to one linear.

    Attributes:
        rank: of its LoRA.
        truncation: what the rank has cost, |W T - B A| / |W T|.
        effect: on the states.
    """

    rank: int
    truncation: float
    effect: Effect


class ClosedFormResult(NamedTuple):
    """An erasing in closed form.

    Attributes:
        eraser: the LoRA, float32.
        linears: what was done to each of its linears.
        prompts: how many were encoded.
        seconds: of the algebra, without the encoding.
    """

    eraser: Eraser
    linears: dict[str, EditedLinear]
    prompts: int
    seconds: float

    def text(self) -> str:
        """In words. What it says is of states and of no picture."""
        lines = [
            f"{len(self.linears)} linears from {self.prompts} prompts, solved in {self.seconds:.1f} s without training"
        ]
        shown: dict[str, list[str]] = {}
        for key, linear in self.linears.items():
            cost = f"loses {linear.truncation:.2%} of the change" if linear.truncation else "exact"
            shown.setdefault(f"rank {linear.rank}, {cost}; the text is {linear.effect.text()}", []).append(key)
        for line, keys in shown.items():
            names = keys[0] if len(keys) == 1 else f"{len(keys)} linears such as {keys[0]}"
            lines.append(f"{names}: {line}")
        lines.append("pictures were not looked at: Is It Gone? says whether they still show the concept")
        return "\n".join(lines)


def erase_now(config: ClosedFormConfig, reader: TextReader, progress: Callable[[int], None]) -> ClosedFormResult:
    """The LoRA of a closed form.

    Args:
        config: what is erased, and how.
        reader: the model's linears.
        progress: called with the number of prompts that were encoded.

    Raises:
        ValueError: the concept reads as its neutral words already, or see `TextReader.pieces`.
    """
    pairs = config.pairs()
    if all(pair.prompt == pair.guide for pair in pairs):
        raise ValueError(f"{quoted(config.concept)} is also its neutral text: set another `neutral` in a concept set")
    # What the concept shall read as has to stay as it is, too.
    kept = [*config.kept_prompts(), *dict.fromkeys(pair.guide for pair in pairs)]
    asked = list(dict.fromkeys([*(pair.prompt for pair in pairs), *kept]))
    reader.read(asked, progress)
    begun = time.monotonic()
    eraser: Eraser = {}
    linears = {}
    for group, keys in _groups(reader).items():
        states = _states(reader, group, pairs, kept)
        # Some linears are given nothing of the concept, such as a pooled vector of another text encoder.
        if torch.equal(states.erased, states.guides):
            continue
        edit = compressed(change(config.method, states))
        for key in keys:
            weight = reader.weight(key)
            factors, truncation = linear_edit(weight, edit, config.rank)
            eraser[key] = factors
            linears[key] = EditedLinear(len(factors.down), truncation, effect(weight, factors, states))
    if not eraser:
        raise ValueError(f"no linear is given other states for {quoted(config.concept)} than for its neutral words")
    return ClosedFormResult(eraser, linears, len(asked), time.monotonic() - begun)


def _groups(reader: TextReader) -> dict[str, list[str]]:
    """The linears that are given the same, by the first of them: one T serves them all."""
    groups: dict[str, list[str]] = {}
    for key in (*reader.keys, *reader.pooled):
        groups.setdefault(reader.group(key), []).append(key)
    return groups


def _states(reader: TextReader, key: str, pairs: list[Pair], kept: list[str]) -> TextStates:
    def read(prompt: str) -> Tensor:
        return reader.states(key, prompt)

    if key in reader.pooled:
        return pooled_states(pairs, kept, read)
    return text_states(pairs, kept, read, lambda prompt: reader.pieces(key, prompt))


def change(method: Method, states: TextStates) -> Factors:
    """T of a method, see `state_edit`."""
    if method == "double projection":
        return double_projection.change(states)
    total = states.erased.double().square().sum() + states.kept.double().square().sum()
    return uce.change(states, RIDGE * float(total) / states.erased.shape[1])
