"""What combining and scaling erasers needs of the loaded model: states of its linears, and its response."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..lora import fusion
from ..lora.adapter import save_lora
from ..lora.headers import Erased, kept_by_all
from ..lora.keys import Eraser
from ..lora.strength import Curve, Judged, Moves, Painter, StrengthConfig, measure
from .text import TextEncoder
from .training_session import fingerprint, training_session


def closed_form(
    patcher,
    clip,
    erasers: list[Eraser],
    weights: list[float],
    erased: list[Erased],
    extra: tuple[str, ...],
    config: fusion.FusionConfig,
    cache: Path,
) -> Eraser:
    """Closed-form fusion on a loaded Flux; see `compose.fusion`.

    Args:
        patcher: MODEL of a loader node.
        clip: its text encoder.
        extra: prompts that must stay besides those that the erasers were trained to keep.
        cache: folder where states are kept, a file a concept; nothing is ever deleted there.
    """
    text, modules, model_name = TextEncoder(clip), fusion.modules_of(erasers), fingerprint(patcher)
    asked = [(e.sentences(config.prompts, config.seed), config.rows) for e in erased]
    asked.append((["", *extra, *kept_by_all(erased, config.kept_prompts, config.seed)], 4 * config.rows))
    paths = [_path(cache, model_name, modules, sentences, rows, config) for sentences, rows in asked]
    missing = [(path, *what) for path, what in zip(paths, asked, strict=True) if not path.exists()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(False):
            contexts = {p: text.encode(p) for _, sentences, _ in missing for p in sentences}
        with training_session(patcher) as model:
            for path, sentences, rows in missing:
                found = fusion.states(model, [contexts[p] for p in sentences], modules, rows, config)
                save_lora(found, path, {})
    *concepts, kept = [Stored(path) for path in paths]
    return fusion.fused(erasers, weights, concepts, kept, config)


def _path(cache: Path, model_name: str, modules: list[str], sentences: list[str], rows: int, config) -> Path:
    reading = (config.steps, config.width, config.height, config.guidance, config.seed)
    said = repr((model_name, modules, sentences, rows, reading))
    return cache / f"{hashlib.sha256(said.encode()).hexdigest()}.safetensors"


class Stored:
    """States in a file, read a linear at a time: those of a hundred concepts of Flux.1 are 6 GB."""

    def __init__(self, path: Path):
        self.path = path

    def __getitem__(self, module: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(module)


def calibrate(
    patcher, clip, eraser: Eraser, prompts: Sequence[str], config: StrengthConfig, reader: Moves | Judged
) -> Curve:
    """Measures an eraser's dial on a loaded Flux, with these prompts in turn; see `strength.measure`.

    The model is borrowed anew for every scale: a judge's VAE may take its place in memory between two of them.
    """
    text = TextEncoder(clip)
    with torch.inference_mode(False):
        painter = Painter([text.encode(prompt) for prompt in prompts], config)

    def paint(scale: Tensor) -> Tensor:
        with training_session(patcher) as model:
            return painter.paint(model, eraser, scale)

    return measure(paint, reader, config.images, config.halvings)
