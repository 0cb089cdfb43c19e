"""The rows of the boards on TinyFlux: every eraser that is compared, each with the settings that it gets here.

The hyper-parameters of EraseAnything were chosen on the validation concepts. Those of the others are the published
ones, with the steps, batch and learning rate of the recipe, since a model of this size learns nothing at 1e-5.
"""

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eraseanything_core.concepts import matching
from eraseanything_core.erasers import mace, published_code, uce
from eraseanything_core.erasers.mace_attention import AttentionConfig
from eraseanything_core.erasers.registry import settings_of
from eraseanything_core.erasers.trained import TrainedEraser
from eraseanything_core.lora.fusion import FusionConfig
from eraseanything_core.tinyflux.concepts import CONCEPTS, SYNONYMS, kind_of
from eraseanything_core.training.config import EraseConfig
from lab.tinyflux.erase import train_eraser, trainable
from lab.tinyflux.pipeline import Pipeline, TrainerText
from lab.tinyflux.recipe import TEMPLATES, erase_config, preset_config

ANCHORS = {"entity": "a photo of a thing", "style": "a photo of a ball", "relation": "a photo of a ball and a box"}
GUIDES = {"entity": "thing", "style": "nice", "relation": "and"}  # UCE's words; "nice" names nothing of the world
LOSSES = ("esd", "attn", "lora", "retain", "rsc")  # lora is the paper's Eq. 4 as printed, retain the corrected one
# The paper's equations with its own null prompt, sums and signs, in our number of steps.
AS_PRINTED: dict[str, object] = {
    "targets": "paper",
    "neutral": "",
    "other_neutrals": (),
    "eta": 1.0,
    "attention_reduction": "sum",
    "attn_weight": 1.0,
    "rsc_weight": 1.0,
    "retain_weight": 1.0,
    "retain_loss": "paper",
    "paper_sign": True,
    "shuffle_rate": 1.0,
    "synonym_rate": 0.0,
    "on_policy_share": 0.0,
    "alternate": True,
    "lr_low": 1e-3,
    "lr_up": 5e-4,
}
PRESET_ROWS = ("quick", "balanced", "thorough")  # as the node runs them, when the word alone is typed
# The methods of Erase Settings, and rows that answer what a single choice buys: what each sets over ours.
CHOSEN: dict[str, dict[str, object]] = {
    "EraseAnything++": settings_of("eraseanything_pp"),
    "ESD": settings_of("esd"),
    "concept ablation": settings_of("concept_ablation"),
    "concept ablation, noise": settings_of("concept_ablation", {"target": "noise"}),
    "EAP": settings_of("eap"),
    "Meta-Unlearning": settings_of("esd") | {"meta_weight": 1.0},
    "SPM": settings_of("spm"),
    "slider": settings_of("slider"),
    "EraseFlow": settings_of("eraseflow"),
    "GEM": settings_of("gem"),
    "null prompt": {"neutral": "", "other_neutrals": ()},
    "as printed": AS_PRINTED,
    "as printed, both streams": AS_PRINTED | {"targets": "dual_qk"},
}
SAME = ", same information"  # two synonyms, shuffled sentences, 96 captions and the neutral sentence
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


def mace_config(config: EraseConfig) -> mace.MaceConfig:
    """From EraseAnything's configuration; the super-categories are UCE's guides."""
    texts = uce_config(config.concept)
    fusion = FusionConfig(width=config.width, height=config.height, guidance=config.guidance, seed=config.seed)
    attention = AttentionConfig(
        prompts=texts.erased,
        steps=config.steps,
        batch=config.batch_size,
        lr=config.lr_low,
        whole=kind_of(config.concept) != "entity",
        width=config.width,
        height=config.height,
        sampling_steps=config.sampling_steps,
        guidance=config.guidance,
        seed=config.seed,
    )
    return mace.MaceConfig(config.concept, texts.erased, texts.guides, texts.kept, texts.lam, attention, fusion)


def _mace(pipeline: Pipeline, config: mace.MaceConfig) -> dict[str, Tensor]:
    with trainable(pipeline) as model:
        return mace.erase(model, pipeline.module.txt_in.weight, TrainerText(pipeline), config).lora


def chosen(config: EraseConfig, row: str) -> EraseConfig:
    """EraseAnything's configuration with a method of `CHOSEN`, as published or told what EraseAnything is told.

    Args:
        config: EraseAnything's own.
        row: a name of `CHOSEN`, alone or followed by `SAME`.
    """
    settings = CHOSEN[row.removesuffix(SAME)]
    return dataclasses.replace(config, **told_the_same(settings, config) if row.endswith(SAME) else settings)


def told_the_same(settings: dict[str, object], config: EraseConfig) -> dict[str, object]:
    """What a row sets, with what EraseAnything is told: its neutral sentence, synonyms, shuffling, prompts to keep."""
    told = {name: getattr(config, name) for name in ("neutral", "other_neutrals", "synonym_rate", "shuffle_rate")}
    return {**settings, **told, "retain_weight": settings.get("retain_weight") or config.retain_weight}


def recipe(row: str, concept: str, seed: int = 0, **settings) -> Recipe:
    """The recipe of a row that trains; "esd+attn" and the like are EraseAnything with only these losses.

    Args:
        settings: go over the configuration, for a smoke test; only `steps` fits every row.

    Raises:
        KeyError: no such row.
    """
    ours = erase_config(concept, seed=seed, **settings)
    published = reference_config(concept, seed)
    rows = {
        "EraseAnything": lambda: Recipe(_plain, ours),
        "UCE": lambda: Recipe(_uce, uce_config(concept)),
        "MACE": lambda: Recipe(_mace, mace_config(ours)),
        "reference": lambda: Recipe(_by(published_code.train_published), dataclasses.replace(published, **settings)),
        "printed sign": lambda: Recipe(_plain, dataclasses.replace(ours, paper_sign=True)),
        "unshuffled": lambda: Recipe(_plain, dataclasses.replace(ours, shuffle_rate=0.0)),
    }
    if row.removesuffix(SAME) in CHOSEN:
        return Recipe(_plain, chosen(ours, row))
    if row in PRESET_ROWS:
        return Recipe(_plain, preset_config(concept, row, seed=seed, **settings))
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
