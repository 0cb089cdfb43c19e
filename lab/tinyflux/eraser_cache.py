"""TinyFlux's thirty erasers, trained once and kept in .cache, for what combines or scales them."""

import hashlib
import json
import random
import time
from pathlib import Path

from eraseanything_core.lora.files import header_strings, load_lora, save_lora
from eraseanything_core.lora.headers import training_header
from eraseanything_core.tinyflux.concepts import CONCEPTS, kind_of
from eraseanything_core.training.config import EraseConfig
from lab.tinyflux.erase import train_eraser
from lab.tinyflux.pipeline import Pipeline
from lab.tinyflux.recipe import erase_config

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "erasers"
QUICK = {
    "steps": 60,
    "batch_size": 4,
    "retain_batch_size": 8,
    "cached_trajectories": 16,
    "refresh_every": 60,
}  # a quarter of the recipe's time
SHORT = {  # what erased the concepts it was tried on, with queries beside keys and values; a style needs twice as long
    "entity": QUICK,
    "style": QUICK | {"steps": 120, "refresh_every": 30},
    "relation": QUICK,
}


def order(seed: int = 0) -> list[str]:
    """All concepts, kinds in turn, so that the first N are a fair choice."""
    rng = random.Random(seed)
    kinds = [rng.sample(concepts, len(concepts)) for concepts in CONCEPTS.values()]
    return [concept for row in zip(*kinds) for concept in row]


def config(concept: str) -> EraseConfig:
    """The recipe of a concept, shortened."""
    return erase_config(concept, **SHORT[kind_of(concept)])


def eraser(pipeline: Pipeline, concept: str, base_model: str) -> tuple[dict, dict]:
    """The tensors and header of a concept's eraser, trained when it is not there yet.

    Args:
        base_model: names the generator's weights; an eraser of others is not taken.
    """
    info = header_strings(training_header(config(concept), base_model))
    name = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()[:12]
    path = CACHE / f"{concept}-{name}.safetensors"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        result = train_eraser(pipeline, config(concept))
        save_lora({k: t.bfloat16() for k, t in result.lora.items()}, path, info)
        print(f"{concept} erased in {time.monotonic() - begun:.0f} s", flush=True)
    return load_lora(path)
