"""What combining and scaling erasers needs of the loaded model: states of its linears, and its response to a scale."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..lora import fusion
from ..lora.factors import Eraser
from ..lora.files import save_lora
from ..lora.headers import ErasedConcept, kept_by_all
from ..lora.strength import LatentReader, LatentSampler, StrengthConfig, StrengthCurve, measure_curve
from .host import ComfyHost
from .training_session import fingerprint, training_session


class StatePrompts(NamedTuple):
    """What states are read for: prompts, and about how many states of each linear."""

    sentences: list[str]
    rows: int


def closed_form(
    patcher: ModelPatcher,
    clip: Any,
    erasers: list[Eraser],
    weights: list[float],
    erased: list[ErasedConcept],
    extra: tuple[str, ...],
    config: fusion.FusionConfig,
    cache: Path,
) -> Eraser:
    """Closed-form fusion on a loaded Flux; see `lora.fusion`.

    Args:
        patcher: MODEL of a loader node.
        clip: its text encoder.
        erasers: the LoRAs to fuse.
        weights: of each.
        erased: what each erases.
        extra: prompts that must stay besides those that the erasers were trained to keep.
        config: where the states are read.
        cache: folder where states are kept, a file a concept; nothing is ever deleted there.

    Returns:
        One LoRA.
    """
    modules = fusion.modules_of(erasers)
    model_name = fingerprint(patcher)
    state_prompts = []
    for concept in erased:
        state_prompts.append(StatePrompts(concept.sentences(config.prompts, config.seed), config.rows))
    # The empty prompt is the neutral one. What must stay is wider than one concept, so it gets more states.
    kept_sentences = ["", *extra, *kept_by_all(erased, config.kept_prompts, config.seed)]
    state_prompts.append(StatePrompts(kept_sentences, 4 * config.rows))
    paths = [_cache_path(cache, model_name, modules, entry, config) for entry in state_prompts]
    missing = {path: entry for path, entry in zip(paths, state_prompts, strict=True) if not path.exists()}
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        _read_states(patcher, clip, modules, missing, config)
    concept_states = [StatesFile(path) for path in paths[:-1]]
    kept_states = StatesFile(paths[-1])
    return fusion.fused(erasers, weights, concept_states, kept_states, config)


def _read_states(
    patcher: ModelPatcher,
    clip: Any,
    modules: list[str],
    state_prompts: dict[Path, StatePrompts],
    config: fusion.FusionConfig,
) -> None:
    """Reads states on the loaded model and writes those of each entry to its file."""
    text = ComfyHost(patcher, clip).text_encoder()
    # All prompts first: while the model is lent, the text encoder may have to leave the device.
    for entry in state_prompts.values():
        for sentence in entry.sentences:
            text.encode(sentence)
    with training_session(patcher) as model:
        for path, entry in state_prompts.items():
            # By now these come from the text encoder's memory, not from the CLIP.
            contexts = [text.encode(sentence) for sentence in entry.sentences]
            states = fusion.read_states(model, contexts, modules, entry.rows, config)
            save_lora(states, path, {})


def _cache_path(
    cache: Path, model_name: str, modules: list[str], entry: StatePrompts, config: fusion.FusionConfig
) -> Path:
    """A file named by everything that its states depend on."""
    # Weights and ridge are not among it: they balance the sum, and another balance reads the same states.
    trajectory = (config.steps, config.width, config.height, config.guidance, config.seed)
    key = repr((model_name, modules, entry.sentences, entry.rows, trajectory))
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


class StatesFile:
    """States in a file, read a linear at a time: those of a hundred concepts of Flux.1 are 6 GB."""

    def __init__(self, path: Path):
        self.path = path

    def __getitem__(self, module: str) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                return file.get_tensor(module)
        except SafetensorError as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it, its states are read again") from error


def calibrate(
    patcher: ModelPatcher,
    clip: Any,
    eraser: Eraser,
    prompts: Sequence[str],
    config: StrengthConfig,
    reader: LatentReader,
    progress: Callable[[int], None] | None = None,
) -> StrengthCurve:
    """Measures an eraser's strength curve on a loaded Flux; see `lora.strength.measure_curve`.

    Args:
        patcher: MODEL of a loader node.
        clip: its text encoder.
        eraser: the LoRA.
        prompts: sampled in turn.
        config: how the response is measured.
        reader: says which pictures have lost the concept.
        progress: called with the forwards so far, of `config.forwards`.
    """
    text = ComfyHost(patcher, clip).text_encoder()
    sampler = LatentSampler([text.encode(prompt) for prompt in prompts], config, progress)

    def sample(scales: Tensor) -> Tensor:
        # Lent anew for every scale: a judge's VAE may take the model's place in memory between two of them.
        with training_session(patcher) as model:
            return sampler.sample(model, eraser, scales)

    return measure_curve(sample, reader, config.images, config.halvings)
