"""A run before it starts: its settings checked, its sentences drawn and encoded."""

import dataclasses
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..concepts import matching, prompts
from ..protocols import EncodedPrompt, ErasableModel, TextEncoder
from ..transfers import on_device
from .config import EraseConfig, check_settings

# Savings that change no loss, so they are no settings. Tests and the bench switch them off one by one.
SHARE_FORWARD = "share"  # one forward of the student serves both the ESD loss and the attention loss
STOP_EARLY = "stop"  # a forward for attention alone ends at the last block that is read
BATCH_WORDS = "batch"  # the teacher reads the synonym and all irrelevant words of a sentence in one batch
ENCODE_ONCE = "encode"  # every prompt is encoded once, before the model runs, so the text encoder can leave the device
DEFER_LOSSES = "defer"  # losses stay on the device until several are read together: each read waits for the device
SHORTCUTS = frozenset({SHARE_FORWARD, STOP_EARLY, BATCH_WORDS, ENCODE_ONCE, DEFER_LOSSES})
# A forward without a graph takes far less memory than one with it.
TEACHER_BATCHES = 4  # sequences of the teacher's largest forward, in multiples of the run's batch size


@dataclass(frozen=True)
class Plan:
    """A checked configuration with everything that was drawn and encoded for it.

    Attributes:
        config: the configuration, prompts turned into templates.
        sentences: those that hold the concept, in the order in which trajectories use them.
        retained: prompts to preserve, likewise.
        encode: a prompt's text to its encoding.
        select: a prompt to [tokens, 1], one at the tokens of its own word.
        monitor_sentences: of the concept, for the measurements alone and never trained on; empty without monitoring.
        monitor_retained: sentences of words to preserve, likewise.
        shortcuts: those of `SHORTCUTS` that are on.
        base: names the weights of the model. A saved state belongs to one model.
        placed: the same as `encode`, on the model's device; None until there is a model.
        pictures: of the user, latents [n, c, h, w] on the CPU, to which the points lead; None where they lie on walks.
        pieces: the text of a prompt that is trained on to its tokenizer's pieces, one a token of its encoding.
        drawn: pictures x_0 of looks that the frozen model has drawn already, by text and number of the sentence.
    """

    config: EraseConfig
    sentences: list[prompts.Sentence]
    retained: list[prompts.Prompt]
    encode: Callable[[str], EncodedPrompt]
    select: dict[prompts.Prompt, Tensor]
    monitor_sentences: list[prompts.Sentence]
    monitor_retained: list[prompts.Sentence]
    shortcuts: frozenset[str] = SHORTCUTS
    base: str = ""
    placed: Callable[[str], EncodedPrompt] | None = None
    pictures: Tensor | None = None
    pieces: dict[str, list[str]] = field(default_factory=dict)
    drawn: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def texts(self) -> set[str]:
        """The texts of all prompts that are trained on."""
        named = {prompt.text for sentence in self.sentences for prompt in sentence.prompts()}
        return named | {prompt.text for prompt in self.retained}


def prepare(config: EraseConfig, text: TextEncoder, shortcuts: frozenset[str] = SHORTCUTS) -> Plan:
    """Checks the configuration, draws the sentences and encodes every prompt that the run will need.

    Args:
        config: as the user set it. Prompts without `{}` become templates here.
        text: the text encoder. The plan keeps it only without the shortcut `ENCODE_ONCE`.
        shortcuts: those of `SHORTCUTS` that are on.

    Raises:
        ValueError: a concept that is empty, has no token or is not in the prompt, or settings that cannot work.
    """
    config = with_checked_words(config, text)
    check_settings(config)
    rng = random.Random(config.seed)
    # All sentences are drawn, so that the chance behind the retained prompts does not depend on how many are used.
    draw = prompts.draw_unasked if config.unasked else prompts.draw_sentence
    sentences = [draw(config, rng) for _ in range(config.sentences)]
    # A T5-XXL pass costs an eighth of a forward of the model: what no trajectory will use is not encoded.
    sentences = sentences[: config.cached_trajectories * config.epochs()]
    if not asks_for_other_words(config):
        sentences = [dataclasses.replace(sentence, synonym=None, irrelevant=()) for sentence in sentences]
    retained_count = min(config.sentences, config.retained_rows() * config.epochs())
    retained = [prompts.draw_retained(config, rng) for _ in range(retained_count)]
    monitor_sentences: list[prompts.Sentence] = []
    monitor_retained: list[prompts.Sentence] = []
    if config.monitor_every:
        watch = prompts.monitor_unasked if config.unasked else prompts.monitor_prompts
        monitor_sentences, monitor_retained = watch(config)

    every_prompt = {*retained}
    for sentence in (*sentences, *monitor_sentences, *monitor_retained):
        every_prompt.update(sentence.prompts())
    encode: Callable[[str], EncodedPrompt] = text.encode
    if ENCODE_ONCE in shortcuts:
        encode = _encode_all(every_prompt, text).__getitem__
    pieces = {prompt: text.pieces(prompt) for prompt in sorted({prompt.text for prompt in every_prompt})}
    select = {}
    for prompt in every_prompt:
        if prompt.word:
            select[prompt] = _word_columns(pieces[prompt.text], prompt.word)
    return Plan(
        config, sentences, retained, encode, select, monitor_sentences, monitor_retained, shortcuts, pieces=pieces
    )


def asks_for_other_words(config: EraseConfig) -> bool:
    """Whether anything reads a sentence with a synonym or an irrelevant word in the concept's place.

    The contrastive loss compares with them, and MACE keeps them.
    """
    return bool(config.rsc_weight) or config.method == "mace"


def with_checked_words(config: EraseConfig, text: TextEncoder) -> EraseConfig:
    """The configuration with its words stripped and checked, and every prompt as a template."""
    concept = matching.check_concept(config.concept, text.pieces)
    # An ordinary prompt has no place for the name of a look.
    if config.unasked:
        return dataclasses.replace(config, concept=concept)
    return dataclasses.replace(
        config,
        concept=concept,
        synonyms=tuple(matching.check_concept(word, text.pieces) for word in config.synonyms),
        irrelevant=tuple(matching.check_concept(word, text.pieces) for word in config.irrelevant),
        templates=tuple(prompts.as_template(template, concept) for template in config.templates),
        held_out=tuple(prompts.as_template(template, concept) for template in config.held_out),
    )


def _encode_all(every_prompt: Iterable[prompts.Prompt], text: TextEncoder) -> dict[str, EncodedPrompt]:
    """Every text once; raises ValueError when the encodings cannot stand in one batch."""
    texts = {prompt.text for prompt in every_prompt}
    encodings = {prompt: text.encode(prompt) for prompt in sorted(texts)}
    shapes = {context.shape for context, _ in encodings.values()}
    if len(shapes) > 1 and not getattr(text, "any_length", False):
        raise ValueError("the prompts differ in encoded length: shorten the longest one")
    return encodings


def _word_columns(pieces: list[str], word: str) -> Tensor:
    """[tokens, 1], one at the tokens of the word."""
    select = torch.zeros(len(pieces), 1)
    select[matching.positions(pieces, word)] = 1
    return select


def conds(model: ErasableModel, plan: Plan, chosen: Iterable[prompts.Prompt]) -> Any:
    """A batch of conditions for prompts, all at the run's guidance."""
    encode = plan.placed or plan.encode
    return model.conds([encode(prompt.text) for prompt in chosen], plan.config.guidance)


def select_words(model: ErasableModel, plan: Plan, chosen: Iterable[prompts.Prompt]) -> Tensor:
    """[b, tokens, 1], one at the tokens of each prompt's own word, on the model's device.

    Where a model takes prompts of unlike length, zeros stand behind the shorter ones.
    """
    selects = pad_sequence([plan.select[prompt] for prompt in chosen], batch_first=True)
    return on_device(selects, model.device)


def generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one step.

    It is made from the numbers alone. So a resumed run draws what the run that was never stopped draws.
    """
    # The factor keeps neighbouring seeds apart: step s of seed n would otherwise be step s - 1 of seed n + 1.
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
