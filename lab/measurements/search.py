"""Measures the trainer's settings on TinyFlux's validation concepts: `python scripts/dev.py search`.

Every setting is trained on two concepts of each kind and read by the CNN; none of them is erased on a board. What is
trained and drawn is kept in .cache/boards, so a search that was stopped goes on. With --more, rows of search.json that
were measured with the same weights, judge, pictures and recipe stay as they are. Writes benchmarks/search.json and .md.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict

import torch

from eraseanything_core.files import write_atomic
from eraseanything_core.tinyflux.concepts import kind_of
from lab.boards.board import OURS, Board, Figure, table
from lab.boards.command import UNFINISHED
from lab.boards.gallery import Gallery, OutOfTime
from lab.boards.outcomes import Outcomes, combined, gap, overall, share
from lab.boards.tinyflux import LABELS, BoardMeasurement, Size
from lab.provenance import BENCHMARKS, ROOT, commit, digest
from lab.tinyflux.pipeline import Pipeline, flux, judge_net
from lab.tinyflux.recipe import VALIDATION, cells, erase_config

RECIPE = "the recipe"
SETTINGS = {
    RECIPE: {},
    "the paper's targets": {"targets": "paper"},
    "text q, k, v": {"targets": "text_qkv"},
    "text k": {"targets": "add_k"},
    "text v": {"targets": "add_v"},
    "the teacher's trajectories only": {"on_policy_share": 0.0},
    "eta 0": {"eta": 0.0},
    "eta 1": {"eta": 1.0},
    "half the learning rates": {"lr_low": 1.5e-3, "lr_up": 1.5e-3},
    "twice the learning rates": {"lr_low": 6e-3, "lr_up": 6e-3},
    "half the pairs": {"steps": 60},
    "the empty prompt as neutral": {"neutral": ""},
    "nothing retained": {"retain_weight": 0.0},
    "all q, k, v": {"targets": "all_qkv"},
    "guidance 1": {"guidance": 1.0},
    "retained: whole captions only": {"retain_prompt_share": 1.0},
    "retained: irrelevant words only": {"retain_prompt_share": 0.0},
}


def asked(count: int) -> dict:
    """The cells of Table 3 on prompts and seeds that no board draws."""
    return {name: lambda concept, name=name: cells(concept, count, seed=1)[name] for name in LABELS}


def figures(outcomes: dict[str, Outcomes], name: str) -> dict[str, Figure]:
    """A row: all validation concepts, H_o of each kind, and the paired gap to the recipe."""
    kinds = {kind: [i for i, c in enumerate(VALIDATION) if kind_of(c) == kind] for kind in map(kind_of, VALIDATION)}
    row = {label: share(outcomes[name][cell]) for cell, label in LABELS.items()}
    row["H_o ↑"] = combined(outcomes[name], overall)
    for kind, places in kinds.items():
        part = {cell: [hits[i] for i in places] for cell, hits in outcomes[name].items()}
        row[f"{kind} H_o ↑"] = combined(part, overall)
    row["H_o minus the recipe's"] = gap(outcomes[name], outcomes[RECIPE], overall)
    return row | {f"{c} Acc_e": share([outcomes[name]["acc_e"][i]]) for i, c in enumerate(VALIDATION)}


def recipes() -> str:
    """Names the configurations that the settings go over."""
    return digest(*(erase_config(concept) for concept in VALIDATION))


def earlier(table_before: dict, about: dict, count: int) -> tuple[dict, dict]:
    """Outcomes and rejects of an earlier table's rows that this one may keep."""
    same = table_before["count"] == count and all(
        table_before["about"].get(name) == value for name, value in about.items()
    )
    kept = [n for n, setting in table_before["settings"].items() if same and setting == SETTINGS.get(n)]
    return {n: table_before["outcomes"][n] for n in kept}, {n: table_before["rejects"][n] for n in kept}


def search(
    base: Pipeline, net, names: list[str], count: int, until: float, before: dict | None = None, **smoke
) -> tuple[Board, dict]:
    """The table of the recipe and the named settings, and the outcomes that it was made from.

    Args:
        before: an earlier table, as search.json holds it, whose rows are taken where they may be.

    Raises:
        OutOfTime: what is done is kept.
    """
    gallery = Gallery(base, net, ROOT / ".cache" / "boards", until, **smoke)
    about = {"judge": f"cnn {gallery.judges['cnn']}", "generator and text encoder": gallery.sources}
    about["recipes"] = recipes()
    outcomes, rejects = earlier(before, about, count) if before else ({}, {})
    for name in dict.fromkeys(("un-erased", RECIPE, *names)):
        if name in outcomes:
            continue
        gallery = Gallery(base, net, ROOT / ".cache" / "boards", until, **SETTINGS.get(name, {}), **smoke)
        row = name if name == "un-erased" else OURS
        bench = BoardMeasurement(gallery, Size(2, count), "cnn")
        outcomes[name] = bench.outcomes(row, VALIDATION, asked(count))
        rejects[name] = bench.rejected(row, VALIDATION, asked(count))
        print(f"{name}: Acc_e {share(outcomes[name]['acc_e']).text()}", flush=True)
    rows = {name: figures(outcomes, name) for name in outcomes}
    title = "settings of the trainer on the validation concepts"
    return Board("search", title, tuple(rows[RECIPE]), rows, {}, 0.0, rejects, (), about), outcomes


def markdown(board: Board, count: int) -> str:
    """The table for people."""
    source = "; ".join(f"{name} {value}" for name, value in board.about.items())
    return (
        f"# Settings of the trainer\n\nPercent, with 95 % intervals, on TinyFlux: {', '.join(VALIDATION)}, one "
        f"training each, {count} pictures a cell. No board erases these concepts.\n\n{table(board)}\n\n{source}.\n"
    )


def main() -> int:
    """Measures the named settings and writes the table."""
    parser = argparse.ArgumentParser(prog="dev.py search", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SETTINGS)}; none means all")
    parser.add_argument("--images", type=int, default=24, help="pictures a cell")
    parser.add_argument("--more", action="store_true", help="keep the rows of search.json that still hold")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these; the next call goes on")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if unknown := set(args.names) - set(SETTINGS):
        parser.error(f"no setting is called {', '.join(sorted(unknown))}")
    try:
        until = time.monotonic() + 60 * args.minutes
        before = None
        if args.more:
            before = json.loads((BENCHMARKS / "search.json").read_text(encoding="utf-8"))
        board, outcomes = search(
            Pipeline(flux()), judge_net(), args.names or list(SETTINGS), args.images, until, before
        )
    except OutOfTime:
        print(f"not done after {args.minutes:g} minutes; run the same command again")
        return UNFINISHED
    command = " ".join(["python scripts/dev.py search", *(f'"{name}"' for name in args.names)])
    board.about.update(command=f"{command} --images {args.images}" + " --more" * args.more, commit=commit())
    report = asdict(board) | {"settings": {name: SETTINGS.get(name) for name in outcomes}, "outcomes": outcomes}
    report["count"] = args.images
    write_atomic(BENCHMARKS / "search.json", (json.dumps(report) + "\n").encode())
    write_atomic(BENCHMARKS / "search.md", markdown(board, args.images).encode())
    print(markdown(board, args.images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
