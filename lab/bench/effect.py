"""What the approximations of a cheap run do to an eraser of TinyFlux, one on top of the other.

The first row has none of them: every pair walks new trajectories. All rows have the same concept, pairs, prompts and
seeds. A row that is done lies in .cache under a hash of all that decides it, so a run that is stopped goes on.
"""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

from eraseanything_core import files
from eraseanything_core.evaluation.judges import sha256
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.training.config import EraseConfig
from lab.tinyflux.erase import train_eraser
from lab.tinyflux.measure import merged, read_cell
from lab.tinyflux.pipeline import WEIGHTS, Pipeline, flux, judge_net
from lab.tinyflux.recipe import VALIDATION, cells, erase_config

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "erasers"
SHORT = {"steps": 60, "batch_size": 4, "retain_batch_size": 8, "on_policy_share": 0.0}  # a quarter of the recipe's work
POOLED = {"cached_trajectories": 16, "cached_retain_trajectories": 12, "refresh_every": 30}
FEWER_STEPS = POOLED | {"sampling_steps": 12}
FEW_POINTS = FEWER_STEPS | {"rsc_samples": 16}
CHANGES = {
    "new trajectories every pair": {"cached_trajectories": 4, "cached_retain_trajectories": 8, "refresh_every": 1},
    "a pool of 16 + 12 for 30 pairs": POOLED,
    "... of 12 steps in the place of 20": FEWER_STEPS,
    "... 16 points for the maps": FEW_POINTS,
    "... a quarter walked by the student": FEW_POINTS | {"on_policy_share": 0.25},
}


def effect(change: str, config: EraseConfig, images: int) -> dict:
    """Trains with these pools; the share of pictures that still show what was asked, by the CNN judge."""
    before = Pipeline(flux())
    net = judge_net()
    asked = cells(config.concept, images, seed=1)

    def report(step: int, losses: dict[str, float]):
        if step % 10 == 0:
            print(f"{change}: pair {step}, loss {losses['loss']:.4f}", flush=True)

    begun = time.process_time()
    result = train_eraser(before, config, progress=report)
    seconds = time.process_time() - begun
    after = Pipeline(merged(before.module, result.lora), before.encoder, before.decode)
    read = {cell: rate(read_cell(after, net, asked[cell])[0]["cnn"]) for cell in asked}
    print(f"{change}: {seconds:.0f} s,", {cell: value_of["value"] for cell, value_of in read.items()}, flush=True)
    return {"change": change, "settings": CHANGES[change], "cpu_seconds": round(seconds, 1), "cells": read}


def kept(change: str, concept: str, images: int) -> dict:
    """The row of a change, measured when it is not there yet."""
    config = erase_config(concept, **SHORT | CHANGES[change])
    decided = [change, dataclasses.asdict(config), images, sha256(*sorted(WEIGHTS.glob("*.safetensors")))]
    path = CACHE / f"effect-{hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:12]}.json"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, json.dumps(effect(change, config, images)).encode())
    return json.loads(path.read_text(encoding="utf-8"))


def effects(concept: str = VALIDATION[0], images: int = 40) -> dict:
    """A row for every approximation."""
    rows = [kept(change, concept, images) for change in CHANGES]
    return {"effects": {"concept": concept, "settings": SHORT, "judge": "cnn", "rows": rows}}
