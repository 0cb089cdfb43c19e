"""Measures EraseStrength's dial on TinyFlux: acc_e against the dial, and against the LoRA's raw scale.

    python scripts/dev.py strength

For every concept the dial is calibrated as the node does it, without any judge, on prompts of training; then pictures
of held-out prompts are read by both judges. The concepts are those of the boards, on which nothing was chosen. Writes
benchmarks/strength.json, strength.md and strength.png.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from eraseanything_core.compose.adapter import Dial, applied
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.files import replace
from eraseanything_core.strength import FROM_BARE, FROM_RIVAL, RIVALS, TIMES, StrengthConfig, measure
from eraseanything_core.tinyflux.frozen import CONCEPTS
from eraseanything_core.tinyflux.measure import read_cell
from scripts.board import UNFINISHED
from scripts.demo import commit
from scripts.erasers import CACHE, order
from scripts.multi import OUT, Bench, asked, kept

DIALS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def concept_curve(bench: Bench, concept: str, images: int) -> dict:
    """Outcomes of a concept for every setting of the dial and of the raw scale, and the measured curve."""
    (eraser,), (erased,) = bench.erasers([concept])
    config = StrengthConfig.like(erased, StrengthConfig.images)
    prompts = [[bench.text.encode(s) for s in one] for one in erased.rivals(config.images)]
    curve, cell = measure(bench.model, eraser, prompts, config), asked([concept], [], images, 400_000)
    found, drawn, dial = {"curve": json.loads(curve.text())}, {}, Dial()
    with applied(bench.before.module, eraser, dial):
        for name, scale_at in (("dial", curve.scale_at), ("raw", float)):
            found[name] = []
            for setting in DIALS:
                dial.scale = scale_at(setting)
                if dial.scale not in drawn:
                    drawn[dial.scale] = read_cell(bench.before, bench.net, cell)[0]
                found[name].append(drawn[dial.scale])
    return found


def lines(found: dict, judge: str, name: str) -> dict:
    """acc_e of all concepts together along one of the dials, and how far it is from a straight line.

    The line leads from the rate at 0 to the rate at 1; `off` is the largest distance from it between them.
    """
    hits = [[c[name][i][judge] for c in found.values()] for i in range(len(DIALS))]
    rates = [rate([hit for concept in row for hit in concept]) for row in hits]
    each = {c: [round(sum(s[judge]) / len(s[judge]), 4) for s in told[name]] for c, told in found.items()}
    values = [r["value"] for r in rates]
    return {
        "acc_e": rates,
        "off": round(off_line(values), 4),
        "monotone": falling(values),
        "concepts": each,
        "off_each": {c: round(off_line(v), 4) for c, v in each.items()},
        "monotone_each": {c: falling(v) for c, v in each.items()},
    }


def off_line(values: list[float]) -> float:
    start, end = values[DIALS.index(0.0)], values[DIALS.index(1.0)]
    return max(abs(v - (start + d * (end - start))) for d, v in zip(DIALS, values) if d <= 1)


def falling(values: list[float]) -> bool:
    return all(b <= a for a, b in zip(values, values[1:]))


def markdown(report: dict) -> str:
    head = " | ".join(f"{d:g}" for d in DIALS)
    made = [f"| judge | setting | {head} | off the line | monotone |", "| --- | --- |" + " ---: |" * (len(DIALS) + 2)]
    for judge, told in report["judges"].items():
        for name, line in told.items():
            rates = " | ".join(f"{r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for r in line["acc_e"])
            made.append(f"| {judge} | {name} | {rates} | {line['off']:.3f} | {'yes' if line['monotone'] else 'no'} |")
            for concept, values in line["concepts"].items():
                cells = " | ".join(f"{v:.3f}" for v in values)
                straight = "yes" if line["monotone_each"][concept] else "no"
                made.append(f"| | {name}, {concept} | {cells} | {line['off_each'][concept]:.3f} | {straight} |")
    note = f"{report['images']} pictures a concept and setting. `{report['command']}` at {report['commit']}."
    return "\n".join([*made, "", note, ""])


def plot(report: dict, path: Path):
    """acc_e against both dials by the CNN, thin lines the concepts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 4.5))
    for (name, line), colour in zip(report["judges"]["cnn"].items(), ("C0", "C1")):
        for values in line["concepts"].values():
            panel.plot(DIALS, values, colour, alpha=0.25, linewidth=0.8)
        label = "calibrated dial" if name == "dial" else "raw LoRA scale"
        panel.plot(DIALS, [r["value"] for r in line["acc_e"]], f"{colour}o-", label=label)
    ends = [report["judges"]["cnn"]["dial"]["acc_e"][DIALS.index(d)]["value"] for d in (0.0, 1.0)]
    panel.plot((0, 1), ends, "k:", label="straight")
    panel.set(xlabel="strength", ylabel="acc_e", ylim=(-0.02, 1.02))
    panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py strength", description=__doc__)
    parser.add_argument("--concepts", nargs="*", choices=order(), default=[c for two in CONCEPTS.values() for c in two])
    parser.add_argument("--images", type=int, default=50, help="pictures a concept and setting")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these; the next call goes on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    OUT.mkdir(exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    bench, begun = Bench(), time.monotonic()
    calibration = {n: getattr(StrengthConfig, n) for n in ("images", "halvings", "steps")}
    calibration |= {"times": list(TIMES), "rivals": RIVALS, "from_rival": FROM_RIVAL, "from_bare": FROM_BARE}
    setting = bench.setting(args.images) | {"dials": list(DIALS), "calibration": calibration}
    raw = CACHE / f"strength.{args.images}.json"
    found = kept(raw, setting)
    for concept in args.concepts:
        if concept in found:
            continue
        if time.monotonic() - begun > args.seconds:
            return UNFINISHED
        found[concept] = concept_curve(bench, concept, args.images)
        replace(raw, json.dumps(found).encode())
        print(f"{concept}: {time.monotonic() - begun:.0f} s", flush=True)
    concepts = {c: found[c] for c in args.concepts}
    judges = {j: {name: lines(concepts, j, name) for name in ("dial", "raw")} for j in ("oracle", "cnn")}
    curves = {c: told["curve"] for c, told in concepts.items()}
    command = {"command": "python scripts/dev.py strength", "commit": commit()}
    report = setting | {"curves": curves} | command | {"judges": judges}
    (OUT / "strength.json").write_text(json.dumps(report, indent=1) + "\n")
    (OUT / "strength.md").write_text(markdown(report))
    plot(report, OUT / "strength.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
