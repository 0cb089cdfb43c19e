"""Measures erasers against each other on TinyFlux: `python scripts/dev.py board A --size smoke`.

A, C, E and F: erasers; B: the losses of ours; D: many at once. Trained erasers, latents and readings are kept in
.cache/boards, so a board that was stopped goes on, and a larger size starts from a smaller one. Writes
benchmarks/boards/<letter>.<size>.json and .md when all of it is measured, with the processor's seconds that its
pieces took, in whichever call that was.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from eraseanything_core.evaluation.metrics import rate
from lab.boards import benchmark_prompts
from lab.boards.board import table, write
from lab.boards.gallery import Gallery, OutOfTime
from lab.boards.tinyflux import BOARDS, SIZES, BoardMeasurement, seeds_of
from lab.provenance import ROOT, commit
from lab.tinyflux.pipeline import Pipeline, flux, judge_net

BOTH = "both"
UNFINISHED = 75  # exit code: run the same command again


def measure(letter: str, size: str, judge: str, minutes: float, cache: Path, out: Path, command: str) -> int:
    """Measures as much of a board as the time allows, and writes it once it is whole; returns an exit code.

    Raises:
        ValueError: the frozen prompts are others than those whose hashes are kept, or the board would mislead.
    """
    hashes = benchmark_prompts.hashes()
    if hashes != json.loads(benchmark_prompts.PATH.read_text(encoding="utf-8")):
        raise ValueError("the boards' prompts are not those of benchmark_prompts.json: figures would not compare")
    until = time.monotonic() + 60 * minutes
    gallery = Gallery(Pipeline(flux()), judge_net(), cache, until, **SIZES[size].settings)
    bench = BoardMeasurement(gallery, SIZES[size], "cnn" if judge == BOTH else judge)
    try:
        board = BOARDS[letter](bench)
        agreed = rate(gallery.agreement("cnn", "oracle")) if judge == BOTH else None
    except OutOfTime:
        print(f"board {letter}: not done after {minutes:g} minutes; run the same command again")
        return UNFINISHED
    about = {
        "command": command,
        "commit": commit(),
        "judge": f"{bench.judge} {gallery.judges[bench.judge]}",
        "hashes": {"prompts": hashes, "generator and text encoder": gallery.sources},
        "processor seconds": gallery.spent() | {"threads": torch.get_num_threads()},
        "seeds": {c: seeds_of(c, bench.size.count) for c in bench.concepts()} | {"trainings": bench.size.seeds},
    }
    if agreed:
        about["pictures on which cnn and oracle agree"] = agreed
    name = f"{letter}.{size}" + (f".{bench.judge}" if bench.judge != "cnn" else "")
    path = write(replace(board, about=about), out, name)
    print(f"{table(board)}\n\n{path} is written")
    return 0


def main() -> int:
    """Parses the command line and measures one board."""
    parser = argparse.ArgumentParser(prog="dev.py board", description=__doc__)
    parser.add_argument("letter", choices=list(BOARDS))
    parser.add_argument("--size", choices=list(SIZES), default="smoke")
    agree = f"{BOTH}: the CNN's figures, and how often the oracle agrees"
    parser.add_argument("--judge", choices=("cnn", "oracle", BOTH), default="cnn", help=agree)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these; the next call goes on")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "boards")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    command = f"python scripts/dev.py board {args.letter} --size {args.size}"
    command += f" --judge {args.judge}" * (args.judge != "cnn")
    cache = ROOT / ".cache" / "boards"
    return measure(args.letter, args.size, args.judge, args.minutes, cache, args.out, command)


if __name__ == "__main__":
    sys.exit(main())
