"""What L_attn and L_rsc buy at shares of the gradient: `python scripts/dev.py shares`.

The preset `balanced` on the validation concepts with the word alone typed, and one of the two losses at 1, 10 and 30 %
of the first gradients. Every training is stored in .cache/shares, so a measurement that was stopped goes on. Writes
benchmarks/shares.json and .md.
"""

import argparse
import json
import time

from eraseanything_core.files import write_atomic
from eraseanything_core.intervals import wilson
from lab.measurements.presets import CELLS, measure, stored
from lab.provenance import BENCHMARKS, CACHE, command_line, commit, parse_parts
from lab.tinyflux.pipeline import Pipeline, flux, judge_net
from lab.tinyflux.recipe import VALIDATION, preset_config

SHARES = (0.01, 0.1, 0.3)
OFF = {"attn_weight": 0.0, "rsc_weight": 0.0}
SETTINGS = {"neither": OFF}
SETTINGS |= {f"attention {share:.0%}": {"attn_weight": 1.0, "attn_share": share, "rsc_weight": 0.0} for share in SHARES}
SETTINGS |= {
    f"contrastive {share:.0%}": {"attn_weight": 0.0, "rsc_weight": 1.0, "rsc_share": share} for share in SHARES
}


def fits(concept: str, name: str) -> bool:
    """Whether Concept Sampler finds the words that the losses of a setting need; for some words it has no synonym."""
    config = preset_config(concept, "balanced")
    return "contrastive" not in name or bool(config.synonyms and config.irrelevant)


def summary(rows: list[dict]) -> dict:
    """The counts of a setting over its concepts, each with its interval."""
    n = sum(row["count"] for row in rows)
    figures = {}
    for cell in (*CELLS, "acc_ir_before"):
        count = sum(row[cell] for row in rows)
        low, high = wilson(count, n)
        figures[cell] = {"value": round(count / n, 4), "n": n, "low": round(low, 4), "high": round(high, 4)}
    return figures | {"concepts": [row["concept"] for row in rows]}


def markdown(report: dict) -> str:
    """The report as a table."""
    lines = ["# What two losses buy, by their share of the gradient", ""]
    lines += [f"`{report['command']}` at {report['commit']}. Preset `balanced`, TinyFlux, read by the CNN.", ""]
    lines += ["| loss and share | Acc_e | Acc_g | Acc_ir | before | concepts | n |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, figures in report["settings"].items():
        cells = [
            f"{figures[cell]['value']:.1%} ({figures[cell]['low']:.1%} to {figures[cell]['high']:.1%})"
            for cell in CELLS
        ]
        before = f"{figures['acc_ir_before']['value']:.1%}"
        lines.append(
            f"| {name} | {' | '.join(cells)} | {before} | {len(figures['concepts'])} | {figures['acc_e']['n']} |"
        )
    lines += ["", "The contrastive loss needs a synonym, which Concept Sampler does not find for every concept."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=24, help="pictures a cell")
    parser.add_argument("--seeds", type=int, default=1)
    args = parse_parts(parser, CACHE / "shares")
    path = CACHE / "shares" / "rows.jsonl"
    rows = stored(path)
    done = {(row["setting"], row["concept"], row["seed"]) for row in rows}
    pipeline = Pipeline(flux())
    net = judge_net()
    start = time.monotonic()
    for seed in range(args.seeds):
        for concept in VALIDATION:
            for name, change in SETTINGS.items():
                if (name, concept, seed) in done or not fits(concept, name):
                    continue
                if time.monotonic() - start > args.seconds:
                    raise SystemExit("out of time: the next call goes on")
                row = measure(pipeline, net, "balanced", concept, seed, args.count, change) | {"setting": name}
                rows.append(row)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({k: row[k] for k in ("setting", "concept", "seed", "stopped_at", *CELLS)}, flush=True)
    settings = {name: summary([row for row in rows if row["setting"] == name]) for name in SETTINGS}
    command = command_line("shares", "--count", args.count, "--seeds", args.seeds)
    report = {"command": command, "commit": commit(), "settings": settings}
    write_atomic(BENCHMARKS / "shares.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(BENCHMARKS / "shares.md", markdown(report).encode())


if __name__ == "__main__":
    main()
