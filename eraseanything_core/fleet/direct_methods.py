"""Erasing methods that a plan may name and that are not trained in pairs.

UCE and double projection solve linears that read the text alone. MACE does so too, and trains a small LoRA besides.
`published` is the training of EraseAnything's published code. Each is made of a concept set, so that one plan can ask
for all of them.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..concepts.concept_set import ConceptSet
from ..concepts.prompts import fill
from ..erasers import mace
from ..erasers.erase_now import ClosedFormConfig, TextReader, erase_now
from ..erasers.mace_attention import AttentionConfig
from ..erasers.published_code import PublishedConfig, train_published
from ..lora.fusion import FusionConfig
from ..lora.key_styles import eraser_tensors
from ..protocols import ErasableModel, ModelHost, TextEncoder
from ..quoting import quoted

Config = Any  # a dataclass with a field `concept`


class DirectEraser(NamedTuple):
    """What a method has made.

    Attributes:
        lora: tensors under their file keys, float32.
        steps: of training; 0 where none was trained.
        seconds: without encoding the prompts.
        notes: what to know about it, one line each.
    """

    lora: dict[str, Tensor]
    steps: int
    seconds: float
    notes: list[str]


@dataclass(frozen=True)
class DirectMethod:
    """A method.

    Attributes:
        settings: names of those that a plan may set.
        make: a concept set, those settings and a seed to a configuration.
        erase: makes the eraser.
    """

    settings: frozenset[str]
    make: Callable[[ConceptSet, dict[str, Any], int], Config]
    erase: Callable[[ModelHost, TextReader, Config], DirectEraser]


def config_of(name: str, words: ConceptSet, settings: Mapping[str, Any], seed: int) -> Config:
    """The configuration of a method.

    Raises:
        ValueError: the method cannot erase this concept.
    """
    return DIRECT[name].make(words, dict(settings), seed)


def check_direct_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that a method does not have."""
    for setting in settings:
        if setting not in DIRECT[name].settings:
            known = ", ".join(sorted(DIRECT[name].settings))
            raise ValueError(f"{name} has no setting {quoted(setting)}; it has {known}")


def shared_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a plan's settings for all methods that this one has: a size or a number of steps."""
    return {setting: value for setting, value in settings.items() if setting in DIRECT[name].settings}


def _uce(words: ConceptSet, settings: dict[str, Any], seed: int) -> ClosedFormConfig:
    rank = settings.pop("rank", 0)
    return dataclasses.replace(ClosedFormConfig.of(words, "UCE", rank, seed), **settings)


def _double_projection(words: ConceptSet, settings: dict[str, Any], seed: int) -> ClosedFormConfig:
    rank = settings.pop("rank", 0)
    return dataclasses.replace(ClosedFormConfig.of(words, "double projection", rank, seed), **settings)


def _closed_form(host: ModelHost, reader: TextReader, config: ClosedFormConfig) -> DirectEraser:
    with torch.no_grad():
        made = erase_now(config, reader, lambda done: None)
    return DirectEraser(eraser_tensors(made.eraser, torch.float32), 0, made.seconds, made.text().splitlines())


def _mace(words: ConceptSet, settings: dict[str, Any], seed: int) -> mace.MaceConfig:
    """The super-category is the neutral word of the set."""
    chosen = {name: settings.pop(name) for name in ("sentences", "kept") if name in settings}
    texts = dataclasses.replace(ClosedFormConfig.of(words, "UCE", 0, seed), **chosen)
    pairs = texts.pairs()
    erased = tuple((pair.prompt, pair.word) for pair in pairs)
    lam = settings.pop("lam", mace.MaceConfig.lam)
    attention = AttentionConfig(erased, whole=words.category == "style", seed=seed, **settings)
    fusion = FusionConfig(width=attention.width, height=attention.height, guidance=attention.guidance, seed=seed)
    return mace.MaceConfig(
        concept=words.concept,
        erased=erased,
        guides=tuple((pair.guide, "") for pair in pairs),
        kept=tuple((prompt, "") for prompt in texts.kept_prompts()),
        lam=lam,
        attention=attention,
        fusion=fusion,
    )


def _by_mace(host: ModelHost, reader: TextReader, config: mace.MaceConfig) -> DirectEraser:
    if mace.LAYER not in reader.keys:
        raise ValueError("MACE is for FLUX.1 alone: choose UCE for this model")
    text = host.text_encoder()
    for prompt, _ in (*config.erased, *config.guides, *config.kept):
        text.encode(prompt)  # before the model is lent
    weight = reader.weight(mace.LAYER)
    attention = config.attention
    made = lent(
        host,
        text,
        (attention.width, attention.height, attention.batch),
        lambda model: mace.erase(model, weight, text, config),
    )
    return DirectEraser(made.lora, attention.steps, sum(made.seconds), [])


def _published(words: ConceptSet, settings: dict[str, Any], seed: int) -> PublishedConfig:
    """The hand-written choices of the published code, from the set: its first sentence, and a word of each tier."""
    by_tier = {name: [word.word for word in entries] for name, entries in words.irrelevant.items()}
    chosen = [by_tier.get(tier, [""])[0] for tier in ("far", "mid", "no_relation")]
    if not all(chosen):
        raise ValueError(
            f"the published code needs far, mid and unrelated words, and {quoted(words.concept)} has none of one kind: "
            "choose another method"
        )
    texts = ClosedFormConfig.of(words, "UCE", 0, seed)
    anchor = words.neutral.strip("{}").split("|")[0]
    return PublishedConfig(
        concept=words.concept,
        prompt=fill(texts.templates[0], words.concept),
        anchor=anchor,
        lemmas=(words.concept, *words.synonyms),
        words=(chosen[0], chosen[1], chosen[2]),
        seed=seed,
        **settings,
    )


def _by_published_code(host: ModelHost, reader: TextReader, config: PublishedConfig) -> DirectEraser:
    text = host.text_encoder()
    size = (config.width, config.height, 1)
    begun = time.monotonic()
    made = lent(host, text, size, lambda model: train_published(model, text, config))
    return DirectEraser(made.lora, config.steps, time.monotonic() - begun, [])


def lent(host: ModelHost, text: TextEncoder, size: tuple[int, int, int], work: Callable[[ErasableModel], Any]) -> Any:
    """What work(model) returns, with the memory that a graph takes.

    Args:
        host: lends the model.
        text: its text encoder.
        size: width and height of a picture in pixels, and the sequences of the largest graph.
        work: is called once.
    """
    width, height, batch = size
    tokens = text.encode("").context.shape[1]
    estimate = host.estimate(tokens, width, height, batch, 0, None)
    memory = max(estimate.forward, estimate.activations)
    with host.session(None, estimate.gradient_checkpointing, memory) as model:
        return work(model)


CLOSED_FORM = frozenset({"rank", "sentences", "kept", "neutral"})
PICTURES = {"steps", "rank", "width", "height", "sampling_steps"}
MACE = frozenset(PICTURES | {"lam", "lr", "batch", "pictures", "guidance", "single", "sentences", "kept"})
PUBLISHED = frozenset(PICTURES | {"images", "lr", "eta", "tau", "targets"})
DIRECT: dict[str, DirectMethod] = {
    "uce": DirectMethod(CLOSED_FORM, _uce, _closed_form),
    "double projection": DirectMethod(CLOSED_FORM, _double_projection, _closed_form),
    "mace": DirectMethod(MACE, _mace, _by_mace),
    "published": DirectMethod(PUBLISHED, _published, _by_published_code),
}
