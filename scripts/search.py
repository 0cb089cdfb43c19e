"""Searches the trainer's settings on TinyFlux's validation concepts: `python scripts/dev.py search [NAME ...]`.

Every setting is trained on every validation concept and read by both judges; a line of JSON a run goes to
benchmarks/search.jsonl, which the table in the README is made from.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from eraseanything_core.tinyflux.erase import train_eraser
from eraseanything_core.tinyflux.measure import compare, merged
from eraseanything_core.tinyflux.pipeline import Pipeline, flux, judge_net
from eraseanything_core.tinyflux.recipe import VALIDATION, cells, erase_config

OUT = Path(__file__).resolve().parent.parent / "benchmarks" / "search.jsonl"
SETTINGS = {
    "paper": {"targets": "paper", "neutral": "", "steps": 100, "batch": 8, "retain_batch": 8},
    "paper, anchor": {"targets": "paper", "neutral": "{thing}", "eta": 0.0, "steps": 100, "batch": 8, "retain_batch": 8},
    "text_qkv, anchor": {"targets": "text_qkv", "neutral": "{thing}", "eta": 0.0, "steps": 100, "batch": 8, "retain_batch": 8},
    "dual_qkv, anchor": {"targets": "dual_qkv", "neutral": "{thing}", "eta": 0.0, "steps": 100, "batch": 8, "retain_batch": 8},
    "all_kv, anchor": {"targets": "all_kv", "neutral": "{thing}", "eta": 0.0, "steps": 100, "batch": 8, "retain_batch": 8},
    "all_qkv, anchor": {"targets": "all_qkv", "neutral": "{thing}", "eta": 0.0, "steps": 100, "batch": 8, "retain_batch": 8},
}  # fmt: skip


def run(before: Pipeline, net, name: str, settings: dict, concept: str, count: int) -> dict:
    """Trains one eraser and measures it; one row of the table."""
    begun = time.monotonic()
    result = train_eraser(before, erase_config(concept, **settings))
    seconds = time.monotonic() - begun
    after = Pipeline(merged(before.module, result.lora), before.encoder, before.decode)
    found, _ = compare(before, after, net, cells(concept, count, seed=1))
    last = {loss: round(sum(values[-10:]) / 10, 5) for loss, values in result.losses.items()}
    row = {"name": name, "concept": concept, "seconds": round(seconds, 1), "losses": last, "settings": settings}
    return row | {judge: {c: (v["before"], v["after"]) for c, v in read.items()} for judge, read in found.items()}


def main():
    parser = argparse.ArgumentParser(prog="dev.py search", description=__doc__)
    parser.add_argument("names", nargs="*", help="settings to try; none means all")
    parser.add_argument("--images", type=int, default=50, help="pairs of pictures a cell")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before, net = Pipeline(flux()), judge_net()
    OUT.parent.mkdir(exist_ok=True)
    for name in args.names or SETTINGS:
        for concept in VALIDATION:
            row = run(before, net, name, SETTINGS[name], concept, args.images)
            print(json.dumps({k: row[k] for k in ("name", "concept", "seconds", "cnn")}), flush=True)
            with OUT.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
