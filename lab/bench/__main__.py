"""What training costs: FLOPs and memory at Flux.1-dev's size; on TinyFlux CPU time as a ratio, and what cheap pools do.

    python scripts/dev.py bench                              all of it
    python scripts/dev.py bench cost memory seconds effect   parts
    python scripts/dev.py bench families [NAME ...]          other families at true size, into benchmarks/families.json

Writes its keys into benchmarks/results.json and the table benchmarks/results.md. No GPU is used and no weights are
needed: the sizes are real, the tensors are not.
"""

import argparse
import json

import torch

from lab.provenance import BENCHMARKS, commit

PARTS = ("cost", "memory", "seconds", "effect")
PEAK_BOUNDS = {
    "fp8_512_ckpt": 12.2, "fp8_1024_ckpt": 13.8, "fp8_512": 18.0, "bf16_512_ckpt": 23.2, "bf16_512": 29.0,
    "q4_512_ckpt": 7.3,
}  # fmt: skip
BOUNDS = {
    "pflop_100_pairs": 13.5,
    "pflop_500_pairs": 52.0,
    "tflop_per_pair_steady": 97.0,
    "reference_tflop_per_pair": None,
}
LOOKS_BOUND = 0.2  # share of a run's compute that all of its looks take at most
RATIO_BOUND = 15.0
OTHERWISE = {
    "share": "a forward of its own for the attention loss",
    "stop": "whole forwards for maps",
    "encode": "each prompt encoded when a forward needs it",
}


def measure(part: str) -> dict:
    """The keys of a part."""
    if part == "cost":
        from lab.bench.flops import cost

        return cost()
    if part == "memory":
        from lab.bench.memory import peaks

        return {"peak_gib": peaks()}
    if part == "seconds":
        from lab.bench.seconds import pair_seconds

        return pair_seconds()
    from lab.bench.effect import effects

    return effects()


def markdown(results: dict) -> str:
    """The table for people."""
    rows = [(key, results.get(key), bound) for key, bound in BOUNDS.items()]
    rows += [(f"peak_gib {key}", results.get("peak_gib", {}).get(key), bound) for key, bound in PEAK_BOUNDS.items()]
    lines = ["# At the size of Flux.1-dev, counted on shapes", "", "512 x 512 and 256 text tokens unless named, K = 3,"]
    lines += ["rank 8. A pair of the reference is its 145 forwards and three backwards.", ""]
    lines += ["| what | counted | goal |", "| --- | ---: | ---: |"]
    for key, value, bound in rows:
        goal = "" if bound is None else f"at most {bound:g}"
        lines.append(f"| {key} | {'' if value is None else f'{value:.2f}'} | {goal} |")
    for preset, pflop in results.get("pflop_with_looks", {}).items():
        lines.append(f"| pflop `{preset}`, looks included | {pflop:.2f} |  |")
        share = results["looks_share"][preset]
        lines.append(f"| looks' share of `{preset}` | {share:.1%} | at most {LOOKS_BOUND:.0%} |")
    lines += without_table(results["tflop_per_pair_without"]) if "tflop_per_pair_without" in results else []
    for run in results.get("cost", {}).get("runs", []):
        lines += ["", f"`{run['preset']}`, {run['pairs']} pairs, by cause:", "", "| cause | TFLOP |", "| --- | ---: |"]
        lines += [f"| {cause} | {value:.0f} |" for cause, value in run["split_tflop"].items()]
    lines += ["", "# On TinyFlux", ""]
    if "seconds" in results:
        ratio = results["pair_seconds_ratio"]
        timed = results["seconds"]
        lines.append(f"CPU time of a pair, pools included over 100 pairs: {ratio:.1f} times less than the schedule of")
        lines.append(f"the published code on the same model (goal: {RATIO_BOUND:g}). Medians of {timed['runs']} runs")
        lines.append(f"and of {timed['reference_pairs']} pairs of that schedule, each timed between pairs of a run.")
    lines += effect_table(results["effects"]) if "effects" in results else []
    sources = ", ".join(f"{part} at {commit}" for part, commit in results["measured_at"].items())
    return "\n".join([*lines, "", f"`python scripts/dev.py bench`: {sources}.", ""])


def without_table(without: dict[str, float]) -> list[str]:
    """What a pair costs with one saving off."""
    lines = ["", "A pair in the steady state with one saving off, none of which changes a loss:", ""]
    lines += ["| instead | TFLOP |", "| --- | ---: |"]
    return lines + [f"| {OTHERWISE[name]} | {value:.2f} |" for name, value in without.items()]


def effect_table(effects: dict) -> list[str]:
    """What each approximation did to an eraser of TinyFlux; a row with dots has those above it as well."""
    cells = list(effects["rows"][0]["cells"])
    about = f"*{effects['concept']}* erased with {effects['settings']}."
    lines = ["", about, "Pictures that show what was asked, by the CNN judge, 95 % intervals.", ""]
    lines += [f"| trajectories | CPU seconds | {' | '.join(cells)} |", "| --- | ---: |" + " ---: |" * len(cells)]
    for row in effects["rows"]:
        values = [f"{c['value']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for c in row["cells"].values()]
        lines.append(f"| {row['change']} | {row['cpu_seconds']:.0f} | {' | '.join(values)} |")
    return [*lines, "", f"n = {row['cells'][cells[0]]['n']} pictures a cell."]


def main():
    """Measures the named parts and writes the table."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; none means all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.parts[:1] == ["families"]:
        from lab.bench.families import SIZES, count

        count(args.parts[1:] or list(SIZES))
        return
    path = BENCHMARKS / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in args.parts or PARTS:
        results |= measure(part)
        results["measured_at"] = results.get("measured_at", {}) | {part: commit()}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (BENCHMARKS / "results.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
