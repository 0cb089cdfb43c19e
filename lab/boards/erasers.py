"""The rows of the boards on TinyFlux: every eraser that is compared, each with the settings that it gets here.

The hyper-parameters of EraseAnything were chosen on the validation concepts. Those of the others are the published
ones, with the steps, batch and learning rate of the recipe, since a model of this size learns nothing at 1e-5.
"""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from eraseanything_core.concepts import matching
from eraseanything_core.erasers import mace, published_code, uce
from eraseanything_core.erasers.concept_ablation import ABLATION_SETTINGS, Ablation
from eraseanything_core.erasers.eap import EAP_SETTINGS, AdversarialPreservation
from eraseanything_core.erasers.esd import ESD_SETTINGS
from eraseanything_core.erasers.trained import TrainedEraser, train_slices
from eraseanything_core.lora.fusion import FusionConfig
from eraseanything_core.lora.key_styles import eraser_tensors, read_eraser
from eraseanything_core.tinyflux.concepts import CONCEPTS, SYNONYMS, kind_of
from eraseanything_core.training.config import EraseConfig
from lab.tinyflux.erase import train_eraser, trainable
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, TrainerText
from lab.tinyflux.recipe import TEMPLATES, erase_config

ANCHORS = {"entity": "a photo of a thing", "style": "a photo of a ball", "relation": "a photo of a ball and a box"}
GUIDES = {"entity": "thing", "style": "nice", "relation": "and"}  # UCE's words; "nice" names nothing of the world
LOSSES = ("esd", "attn", "lora", "retain", "rsc")  # lora is the paper's Eq. 4 as printed, retain the corrected one
NOISE = 1.0  # of "destroy", in standard deviations of each weight matrix


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one row gets its LoRA.

    Attributes:
        train: the LoRA's tensors from a pipeline and `config`.
        config: everything that decides them; a changed one is another LoRA.
    """

    train: Callable[[Pipeline, object], dict[str, Tensor]]
    config: object


def _plain(pipeline: Pipeline, config: EraseConfig) -> dict[str, Tensor]:
    return train_eraser(pipeline, config).lora


def _by(train: Callable[..., TrainedEraser]) -> Callable[[Pipeline, object], dict[str, Tensor]]:
    """The row of a method that is trained by `train(model, text, config)`, and not by EraseAnything's loop."""

    def run(pipeline: Pipeline, config: object) -> dict[str, Tensor]:
        with trainable(pipeline) as model:
            return train(model, TrainerText(pipeline), config).lora

    return run


def reference_config(concept: str, seed: int) -> published_code.PublishedConfig:
    """The settings of the published code for a concept of the world."""
    kind = kind_of(concept)
    near = next(c for c in CONCEPTS[kind] if c != concept)
    far = next(concepts[0] for other, concepts in CONCEPTS.items() if other != kind)
    return published_code.PublishedConfig(
        concept=concept,
        prompt=TEMPLATES[kind][0].format(concept),
        anchor=ANCHORS[kind],
        lemmas=(concept, *SYNONYMS[concept][:2]),
        words=(far, near, "red"),
        width=96,
        height=96,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class UceConfig:
    """UCE's texts as pairs of a prompt and the word of it that counts: erased ones, their guides, and kept ones."""

    erased: tuple[tuple[str, str], ...]
    guides: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    lam: float = 0.5


def uce_config(concept: str) -> UceConfig:
    """Sentences with the concept and its training synonyms, the same with the guide, and with the rest of its kind."""
    kind = kind_of(concept)
    names = (concept, *SYNONYMS[concept][:2])
    templates = TEMPLATES[kind]
    erased = tuple((t.format(name), name) for t in templates for name in names)
    guides = tuple((t.format(GUIDES[kind]), GUIDES[kind]) for t in templates for _ in names)
    kept = tuple((t.format(c), c) for c in CONCEPTS[kind] if c != concept for t in templates)
    return UceConfig(erased, guides, kept)


def last_states(pipeline: Pipeline, pairs: tuple[tuple[str, str], ...]) -> tuple[Tensor, Tensor]:
    """The state of each word's last piece [n, 128], and the pooled vectors [n, 64]."""
    text = TrainerText(pipeline)
    encoded = [text.encode(prompt) for prompt, _ in pairs]
    places = [matching.positions(text.pieces(prompt), word)[-1] for prompt, word in pairs]
    states = [context[0, place] for (context, _), place in zip(encoded, places, strict=True)]
    return torch.stack(states), torch.cat([pooled for _, pooled in encoded])


def _uce(pipeline: Pipeline, config: UceConfig) -> dict[str, Tensor]:
    states = [last_states(pipeline, pairs) for pairs in (config.erased, config.guides, config.kept)]
    weights = pipeline.module.txt_in.weight, pipeline.module.vector_in.in_layer.weight
    layers = {}
    for i, (name, weight) in enumerate(zip(uce.LAYERS, weights, strict=True)):
        layers[name] = uce.LinearStates(weight, *(pair[i] for pair in states))
    return uce.lora(layers, config.lam)


@dataclasses.dataclass(frozen=True)
class MaceConfig:
    """MACE's three stages: the texts, the training of the attention, and the states of the fusion."""

    texts: UceConfig
    attention: EraseConfig
    fusion: FusionConfig


def mace_config(config: EraseConfig) -> MaceConfig:
    """From EraseAnything's configuration; the super-categories are UCE's guides."""
    fusion = FusionConfig(width=config.width, height=config.height, guidance=config.guidance, seed=config.seed)
    return MaceConfig(uce_config(config.concept), dataclasses.replace(config, **mace.ATTENTION_SETTINGS), fusion)


def _mace(pipeline: Pipeline, config: MaceConfig) -> dict[str, Tensor]:
    texts = config.texts
    text = TrainerText(pipeline)
    weight = pipeline.module.txt_in.weight
    first = mace.refinement(weight, text, texts.erased, texts.guides, texts.kept, texts.lam)
    refined = Pipeline(merged(pipeline.module, eraser_tensors(first, torch.float32)), pipeline.encoder, pipeline.decode)
    second = read_eraser(train_eraser(refined, config.attention).lora, {}, "stage 2")
    prompts, kept = ([prompt for prompt, _ in named] for named in (texts.erased, texts.kept))
    with trainable(refined) as model:
        third = mace.confined(model, text, second, prompts, kept, config.fusion)
    return eraser_tensors(first | third, torch.float32)


def recipe(row: str, concept: str, seed: int = 0, **settings) -> Recipe:
    """The recipe of a row that trains; "esd+attn" and the like are EraseAnything with only these losses.

    Args:
        settings: go over the configuration, for a smoke test; only `steps` fits every row.

    Raises:
        KeyError: no such row.
    """
    ours = erase_config(concept, seed=seed, **settings)
    published = reference_config(concept, seed)
    ablation = partial(train_slices, Ablation)
    eap = partial(train_slices, AdversarialPreservation)
    rows = {
        "EraseAnything": lambda: Recipe(_plain, ours),
        "ESD": lambda: Recipe(_plain, dataclasses.replace(ours, **ESD_SETTINGS)),
        "concept ablation": lambda: Recipe(_by(ablation), dataclasses.replace(ours, **ABLATION_SETTINGS)),
        "EAP": lambda: Recipe(_by(eap), dataclasses.replace(ours, **EAP_SETTINGS)),
        "UCE": lambda: Recipe(_uce, uce_config(concept)),
        "MACE": lambda: Recipe(_mace, mace_config(ours)),
        "reference": lambda: Recipe(_by(published_code.train_published), dataclasses.replace(published, **settings)),
        "printed sign": lambda: Recipe(_plain, dataclasses.replace(ours, paper_sign=True)),
        "unshuffled": lambda: Recipe(_plain, dataclasses.replace(ours, shuffle_rate=0.0)),
    }
    if set(row.split("+")) <= set(LOSSES):
        return Recipe(_plain, with_losses(ours, row.split("+")))
    return rows[row]()


def with_losses(config: EraseConfig, names: list[str]) -> EraseConfig:
    """The configuration with only these losses, at the weights that it gives them."""
    kept = "retain" in names or "lora" in names
    return dataclasses.replace(
        config,
        esd_weight=config.esd_weight if "esd" in names else 0.0,
        attn_weight=config.attn_weight if "attn" in names else 0.0,
        rsc_weight=config.rsc_weight if "rsc" in names else 0.0,
        retain_weight=config.retain_weight if kept else 0.0,
        retain_loss="paper" if "lora" in names else "teacher",
    )


def destroyed(module: nn.Module, seed: int, noise: float = NOISE) -> nn.Module:
    """A copy of a Flux whose matrices are noised until it draws nothing known."""
    module = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        if p.ndim == 2:
            p.data += noise * p.float().std().to(p.dtype) * torch.randn(p.shape, generator=generator).to(p.dtype)
    return module
