"""A run before it starts: settings checked, sentences drawn and encoded."""

import dataclasses
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts import matching, prompts
from .config import EraseConfig, check_settings

# Savings that change no loss, and so are no settings: one forward for esd and attn, a forward for maps that ends at the
# last block that is read, all the other words of a sentence through the teacher together, every prompt encoded once and
# before the model runs, and losses that stay on the device until some are read together.
SHORTCUTS = frozenset({"share", "stop", "batch", "encode", "defer"})


@dataclass(frozen=True)
class Plan:
    """A configuration that was checked, with its sentences drawn and encoded."""

    config: EraseConfig
    sentences: list[prompts.Sentence]
    retained: list[prompts.Prompt]
    encode: Callable[[str], tuple[Tensor, Tensor]]  # prompt: context [1, tokens, features], pooled [1, features]
    select: dict[prompts.Prompt, Tensor]  # [tokens, 1], one at the word's tokens
    watched: list[prompts.Sentence]  # never trained on, see watch.py; both are empty when nobody looks
    watched_kept: list[prompts.Prompt]
    shortcuts: frozenset[str] = SHORTCUTS
    base: str = ""  # names the weights of the model that it is for, see `flux.fingerprint`; a saved state is of one


def prepare(config: EraseConfig, text, shortcuts: frozenset[str] = SHORTCUTS) -> Plan:
    """Checks the configuration, draws the sentences and encodes every prompt that the run will need.

    No more sentences are drawn than the run's pools have trajectories: a T5-XXL pass costs an eighth of a forward.

    Args:
        config: as the user set it; prompts without `{}` become templates here.
        text: has `encode(prompt)` and `pieces(prompt)`; see `flux.TextEncoder`. The plan keeps it only without the
            shortcut `encode`.
        shortcuts: of `SHORTCUTS`.

    Raises:
        ValueError: a concept that is empty, has no token or is not in the prompt, or settings that cannot work.
    """
    concept = matching.check_concept(config.concept, text.pieces)
    synonyms = tuple(matching.check_concept(word, text.pieces) for word in config.synonyms)
    irrelevant = tuple(matching.check_concept(word, text.pieces) for word in config.irrelevant)
    templates = tuple(prompts.as_template(t, concept) for t in config.templates)
    config = dataclasses.replace(config, concept=concept, synonyms=synonyms, irrelevant=irrelevant, templates=templates)
    check_settings(config)
    rng = random.Random(config.seed)
    used, kept = (
        min(config.sentences, n * config.epochs()) for n in (config.cached_trajectories, config.retained_rows())
    )
    sentences = [prompts.sentence(config, rng) for _ in range(config.sentences)][:used]
    retained = [prompts.retained(config, rng) for _ in range(kept)]
    watched, watched_kept = prompts.watched(config) if config.monitor_every else ([], [])
    every = {p for s in (*sentences, *watched) for p in s.prompts()} | {*retained, *watched_kept}
    encode = _encoded(every, text).__getitem__ if "encode" in shortcuts else text.encode
    select = {p: _select(text.pieces(p.text), p.word) for p in every if p.word}
    return Plan(config, sentences, retained, encode, select, watched, watched_kept, shortcuts)


def _encoded(every: set[prompts.Prompt], text) -> dict[str, tuple[Tensor, Tensor]]:
    contexts = {prompt: text.encode(prompt) for prompt in sorted({p.text for p in every})}
    if len({context.shape for context, _ in contexts.values()}) > 1:
        raise ValueError("the prompts differ in encoded length: shorten the longest one")
    return contexts


def _select(pieces: list[str], word: str) -> Tensor:
    select = torch.zeros(len(pieces), 1)
    select[matching.positions(pieces, word)] = 1
    return select


def conds(model, plan: Plan, chosen: Iterable[prompts.Prompt]):
    """A batch of conditions, all at the run's guidance."""
    contexts, pooled = zip(*(plan.encode(p.text) for p in chosen), strict=True)
    return model.cond(torch.cat(contexts), torch.cat(pooled), plan.config.guidance)


def selected(model, plan: Plan, chosen: Iterable[prompts.Prompt]) -> Tensor:
    """[b, tokens, 1], one at the tokens of each prompt's own word."""
    return torch.stack([plan.select[p] for p in chosen]).to(model.device)


def generator(seed: int, step: int) -> torch.Generator:
    """The chance of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
