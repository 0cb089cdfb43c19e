"""Measures the trainer's presets as the node runs them: `python scripts/dev.py presets`.

Only the word is given, as a user types it; all other words are Concept Sampler's. The size of the pictures is the one
setting beside the preset, because TinyFlux draws 96 px. Every training is stored in .cache/presets, so a measurement
that was stopped goes on. Writes benchmarks/presets.json and .md.
"""

import argparse
import json
import time
from pathlib import Path

from eraseanything_core.files import write_atomic
from eraseanything_core.tinyflux.concepts import CONCEPTS, kind_of
from eraseanything_core.training.presets import PRESETS
from lab.measurements.objects import counts
from lab.provenance import BENCHMARKS, CACHE, command_line, commit, parse_parts
from lab.tinyflux.erase import train_eraser
from lab.tinyflux.measure import merged, read_cell
from lab.tinyflux.pipeline import Pipeline, flux, judge_net
from lab.tinyflux.recipe import VALIDATION, cells, preset_config

CELLS = ("acc_e", "acc_g", "acc_ir")
# Four of each kind that chose nothing: neither a preset nor the threshold of the gone score.
JUDGED = tuple(c for concepts in CONCEPTS.values() for c in [c for c in concepts if c not in VALIDATION][:4])


def measure(pipeline: Pipeline, net, preset: str, concept: str, seed: int, count: int, change: dict) -> dict:
    """One training and what its pictures show, by the CNN; each rate as a count."""
    config = preset_config(concept, preset, seed=seed, **change)
    start = time.process_time()
    result = train_eraser(pipeline, config)
    seconds = time.process_time() - start
    erased = Pipeline(merged(pipeline.module, result.lora), pipeline.encoder, pipeline.decode)
    row = {"concept": concept, "preset": preset, "seed": seed, "count": count, "stopped_at": result.steps}
    row |= {"cpu_seconds": round(seconds, 1), "verdict": result.verdict.text() if result.verdict else ""}
    row |= {"scores": result.scores, "notes": result.notes}
    for name in CELLS:
        cell = cells(concept, count, seed)[name]
        hits, _ = read_cell(erased, net, cell, by_oracle=0)
        row[name] = sum(hits["cnn"])
        if name == "acc_e" and kind_of(concept) == "style":
            # A picture in which nothing can be seen counts as erased too.
            row["object"] = counts(erased, net, concept, cell)["object"]
        if name == "acc_ir":
            before, _ = read_cell(pipeline, net, cell, by_oracle=0)
            row["acc_ir_before"] = sum(before["cnn"])
    return row


def summary(rows: list[dict]) -> dict:
    """The figures of a preset over its trainings."""
    n = sum(row["count"] for row in rows)
    by_concept: dict[str, list[float]] = {}
    for row in rows:
        by_concept.setdefault(row["concept"], []).append(row["acc_e"] / row["count"])
    styles = [row for row in rows if "object" in row]
    figures = {name: round(sum(row[name] for row in rows) / n, 4) for name in (*CELLS, "acc_ir_before")}
    if styles:
        figures["object_of_styles"] = round(sum(r["object"] for r in styles) / sum(r["count"] for r in styles), 4)
    return figures | {
        "acc_e_by_concept": {concept: round(sum(v) / len(v), 4) for concept, v in by_concept.items()},
        "n": n,
        "seeds": sorted({row["seed"] for row in rows}),
        "stopped_at": {f"{row['concept']} {row['seed']}": row["stopped_at"] for row in rows},
        "shown": {f"{row['concept']} {row['seed']}": row["acc_e"] for row in rows},
        "verdicts": {f"{row['concept']} {row['seed']}": row["verdict"] for row in rows},
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows) / len(rows), 1),
    }


def counted(preset: str) -> dict:
    """What the whole budget of a preset costs at FLUX.1-dev's size, as `dev.py bench` has counted it."""
    bench = json.loads((BENCHMARKS / "results.json").read_text(encoding="utf-8"))
    # fp8 weights and recomputed blocks: the leanest way that one consumer card has without 4 bits.
    return {"pflop": round(bench["pflop_with_looks"][preset], 2), "peak_gib": bench["peak_gib"]["fp8_512_ckpt"]}


def report(rows: list[dict], commit: str, before: dict) -> dict:
    """The presets of these rows, and those that were measured before with their own commands and commits.

    Args:
        commit: of what the rows were measured with.
        before: the stored report.
    """
    table = {}
    for preset in PRESETS:
        chosen = [row for row in rows if row["preset"] == preset]
        if chosen:
            figures = summary(chosen)
            count = chosen[0]["count"]
            command = command_line("presets", "--preset", preset, "--seeds", len(figures["seeds"]), "--count", count)
            table[preset] = {"command": command, "commit": commit} | figures | counted(preset)
        elif preset in before:
            table[preset] = before[preset]
    return table


def markdown(table: dict) -> str:
    """The report as a table."""
    lines = ["# Presets on TinyFlux, only the word given", ""]
    lines += [f"- `{entry['command']}` at {entry['commit']}" for entry in table.values()] + [""]
    lines += ["Acc_e, Acc_g and Acc_ir are read by the CNN. PFLOP: the whole budget at FLUX.1-dev's size.", ""]
    lines += ["Object: of the pictures whose style is erased, those that show the object that their prompt names.", ""]
    head = ("preset", "PFLOP", "peak GiB", "Acc_e", "worst concept", "Acc_g", "Acc_ir", "before", "object", "pairs")
    lines += [f"| {' | '.join((*head, 'seeds', 'n'))} |", f"| --- | {'---: | ' * 3}--- | {'---: | ' * 7}".rstrip()]
    for preset in PRESETS:
        if preset not in table:
            continue
        row = table[preset]
        worst = max(row["acc_e_by_concept"], key=row["acc_e_by_concept"].get)
        pairs = sum(row["stopped_at"].values()) / len(row["stopped_at"])
        costs = f"{row['pflop']:.1f} | {row['peak_gib']:.1f}"
        erased = f"{row['acc_e']:.1%} | {worst} {row['acc_e_by_concept'][worst]:.1%} | {row['acc_g']:.1%}"
        kept = f"{row['acc_ir']:.1%} | {row['acc_ir_before']:.1%}"
        kept += f" | {row['object_of_styles']:.1%}" if "object_of_styles" in row else " | -"
        lines.append(f"| `{preset}` | {costs} | {erased} | {kept} | {pairs:.0f} | {len(row['seeds'])} | {row['n']} |")
    for preset in PRESETS:
        if preset in table:
            shares = [f"{concept} {share:.1%}" for concept, share in table[preset]["acc_e_by_concept"].items()]
            lines += ["", f"Acc_e with `{preset}`: {', '.join(shares)}."]
    return "\n".join(lines) + "\n"


def stored(path: Path) -> list[dict]:
    """The rows that earlier calls have measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", nargs="*", default=["quick", "balanced", "thorough"], choices=list(PRESETS))
    parser.add_argument("--concepts", nargs="*", default=list(JUDGED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=24, help="pictures a cell")
    parser.add_argument("--change", default="{}", help="settings as JSON, for a search on validation concepts")
    parser.add_argument("--store", default="rows", help="name of the stored rows")
    parser.add_argument("--no-report", action="store_true")
    args = parse_parts(parser, CACHE / "presets")
    path = CACHE / "presets" / f"{args.store}.jsonl"
    rows = stored(path)
    done = {(row["preset"], row["concept"], row["seed"]) for row in rows}
    pipeline = Pipeline(flux())
    net = judge_net()
    start = time.monotonic()
    for seed in range(args.seeds):
        for preset in args.preset:
            for concept in args.concepts:
                if (preset, concept, seed) in done:
                    continue
                if time.monotonic() - start > args.seconds:
                    raise SystemExit("out of time: the next call goes on")
                row = measure(pipeline, net, preset, concept, seed, args.count, json.loads(args.change))
                rows.append(row)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({k: row[k] for k in ("preset", "concept", "seed", "stopped_at", *CELLS, "verdict")}, flush=True)
    if args.no_report:
        return
    path = BENCHMARKS / "presets.json"
    table = report(rows, commit(), json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
    write_atomic(path, (json.dumps(table, indent=1) + "\n").encode())
    write_atomic(BENCHMARKS / "presets.md", markdown(table).encode())


if __name__ == "__main__":
    main()
