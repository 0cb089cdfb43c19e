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
    "recipe": {},
    "the paper's targets": {"targets": "paper"},
    "text k, v": {"targets": "text_kv"},
    "all q, k, v": {"targets": "all_qkv", "lr_low": 1e-3, "lr_up": 1e-3},
    "the teacher's trajectories only": {"on_policy": 0.0},
    "eta 0": {"eta": 0.0},
    "eta 1": {"eta": 1.0},
    "60 steps": {"steps": 60},
    "summed loss": {"alternate": False, "retain_weight": 3.0},
    "null prompt as neutral": {"neutral": ""},
    "guidance 1": {"guidance": 1.0},
    "without attention and rsc": {"attn": 0.0, "rsc": 0.0},
}


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
