"""What each method of Erase Settings erases and keeps: `python scripts/dev.py methods`.

One preset on the validation concepts with the word alone typed, each method as published and with what EraseAnything is
told (the neutral sentence, synonyms, shuffled sentences and prompts to keep). Every training is stored in
.cache/methods, so a measurement that was stopped goes on. Writes benchmarks/methods.json and .md.
"""

import argparse
import json
import time

from eraseanything_core.erasers.registry import METHODS, settings_of
from eraseanything_core.files import write_atomic
from eraseanything_core.training.presets import PRESETS
from lab.boards.erasers import SAME, told_the_same
from lab.measurements.presets import CELLS, measure, stored
from lab.measurements.shares import summary
from lab.provenance import BENCHMARKS, CACHE, command_line, commit, parse_parts
from lab.tinyflux.pipeline import Pipeline, flux, judge_net
from lab.tinyflux.recipe import VALIDATION, preset_config

META = "Meta-Unlearning"  # on top of ESD, as published


def changes(concept: str, preset: str) -> dict[str, dict]:
    """What each row sets over the preset."""
    ours = preset_config(concept, preset)
    rows = {}
    for name, method in METHODS.items():
        settings = settings_of(name)
        rows[method.label] = settings
        if name != ours.method:
            rows[f"{method.label}{SAME}"] = told_the_same(settings, ours)
    rows[META] = settings_of("esd") | {"meta_weight": 1.0}
    rows[f"{META}{SAME}"] = told_the_same(rows[META], ours)
    # L_attn and L_rsc are parts of EraseAnything; other methods are refused with them.
    return {row: {"attn_weight": 0.0, "rsc_weight": 0.0} | change for row, change in rows.items()}


def markdown(report: dict) -> str:
    """The report as a table."""
    lines = ["# Methods of Erase Settings on TinyFlux", "", f"`{report['command']}` at {report['commit']}.", ""]
    lines += ["Read by the CNN. L_attn and L_rsc are off in all rows.", ""]
    lines += ["| method | Acc_e | Acc_g | Acc_ir | before | n |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, figures in report["methods"].items():
        cells = [
            f"{figures[cell]['value']:.1%} ({figures[cell]['low']:.1%} to {figures[cell]['high']:.1%})"
            for cell in CELLS
        ]
        before = f"{figures['acc_ir_before']['value']:.1%}"
        lines.append(f"| {name} | {' | '.join(cells)} | {before} | {figures['acc_e']['n']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=24, help="pictures a cell")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--preset", choices=list(PRESETS), default="quick")
    args = parse_parts(parser, CACHE / "methods")
    path = CACHE / "methods" / "rows.jsonl"
    rows = stored(path)
    done = {(row["method"], row["preset"], row["concept"], row["seed"]) for row in rows}
    pipeline = Pipeline(flux())
    net = judge_net()
    start = time.monotonic()
    for seed in range(args.seeds):
        for concept in VALIDATION:
            for name, change in changes(concept, args.preset).items():
                if (name, args.preset, concept, seed) in done:
                    continue
                if time.monotonic() - start > args.seconds:
                    raise SystemExit("out of time: the next call goes on")
                row = measure(pipeline, net, args.preset, concept, seed, args.count, change) | {"method": name}
                rows.append(row)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({k: row[k] for k in ("method", "concept", "seed", "stopped_at", *CELLS)}, flush=True)
    chosen = [row for row in rows if row["preset"] == args.preset]
    names = dict.fromkeys(row["method"] for row in chosen)
    methods = {name: summary([row for row in chosen if row["method"] == name]) for name in names}
    command = command_line("methods", "--count", args.count, "--seeds", args.seeds, "--preset", args.preset)
    report = {"command": command, "commit": commit(), "methods": methods}
    write_atomic(BENCHMARKS / "methods.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(BENCHMARKS / "methods.md", markdown(report).encode())


if __name__ == "__main__":
    main()
