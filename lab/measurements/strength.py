"""Measures EraseStrength's dial on TinyFlux: acc_e against the dial, and against the LoRA's raw scale.

    python scripts/dev.py strength             all dials, on the boards' erasers: hours
    python scripts/dev.py strength --gone      the dial without a judge alone, see dial_by_gone.py: minutes

For every concept the dial is calibrated as the node does it: by the gone score, by the CNN as judge on prompts of
training, and by the CNN on prompts like those that are asked afterwards, as a user gives their own. Then pictures of
held-out prompts and other seeds are read by the CNN, and some of them by the oracle.
The concepts are those of the boards, on which nothing was chosen, and so are the erasers. Writes
benchmarks/strength.json, strength.md and strength.png.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from eraseanything_core import files
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.lora.apply import LoraScale, lora_applied
from eraseanything_core.lora.files import header_strings
from eraseanything_core.lora.headers import ErasedConcept, training_header
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.lora.strength import (
    JudgeReader,
    LatentSampler,
    StrengthConfig,
    StrengthCurve,
    measure_curve,
)
from eraseanything_core.tinyflux import judge, oracle
from eraseanything_core.tinyflux.concepts import kind_of
from eraseanything_core.training.gone_dial import GoneDial
from lab.boards.benchmark_prompts import CONCEPTS
from lab.boards.board import OURS
from lab.boards.command import UNFINISHED
from lab.boards.erasers import GUIDES
from lab.boards.gallery import Gallery
from lab.measurements import dial_by_gone
from lab.measurements.multi import CombinationBenchmark, asked
from lab.provenance import BENCHMARKS, ROOT, commit, digest, parse_parts, stored_outcomes, write_report
from lab.tinyflux.recipe import Cell, erase_config

DIALS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
BELOW = (0.0, -0.5, -1.0, -2.0)  # of prompts that do not name the concept
DIALLED = ("by the gone score", "by the CNN", "by the CNN, own prompts")
RAW = "raw scale"
# that a dial is measured with
SEEDS = 128
HALVINGS = 6
OWN_SEEDS = 256
BY_ORACLE = 12  # pictures of each that the oracle reads too: it takes a third of a second for one
CACHE = ROOT / ".cache" / "strength"


class Dialled:
    """A concept's eraser, its dials, and what its pictures show.

    Args:
        bench: TinyFlux and the CNN.
        gallery: where the boards' erasers are kept.
        measured: what was measured of the concept before; what is measured goes into it.
        keep: called with `measured` after every piece of work.
    """

    def __init__(self, bench: CombinationBenchmark, gallery: Gallery, concept: str, measured: dict, keep):
        self.bench = bench
        self.gallery = gallery
        self.concept = concept
        self.kind = kind_of(concept)
        self.measured = measured
        self.keep = keep
        self.eraser = read_eraser(gallery.lora(OURS, concept, 0), {}, concept)

    def curves(self) -> list[StrengthCurve]:
        """The dials: by the gone score, by the CNN, and by it on prompts like those that are asked afterwards."""
        header = header_strings(training_header(erase_config(self.concept), self.bench.base_model))
        erased = ErasedConcept.from_header(header, self.concept)
        own = asked([self.concept], [], OWN_SEEDS, 800_000).prompts
        sees = JudgeReader("the CNN", self.shows)
        known = self.measured.setdefault("curves", {})
        by_gone, *by_cnn = DIALLED
        if by_gone not in known:
            known[by_gone] = asdict(self.gone_curve(header))
            self.keep(self.measured)
        plans = ((erased.concept_prompts(), SEEDS), (own, OWN_SEEDS))
        for name, (prompts, seeds) in zip(by_cnn, plans, strict=True):
            if name not in known:
                config = replace(StrengthConfig.for_header(header, seeds), batch_size=32, halvings=HALVINGS)
                sampler = LatentSampler([self.bench.text.encode(prompt) for prompt in prompts], config)
                sample = lambda scales, sampler=sampler: sampler.sample(self.bench.model, self.eraser, scales)  # noqa: E731
                known[name] = asdict(measure_curve(sample, sees, seeds, config.halvings))
                self.keep(self.measured)
        return [StrengthCurve(**known[name]) for name in DIALLED]

    def gone_curve(self, header: dict[str, str]) -> StrengthCurve:
        """The dial by the gone score, on held-out sentences as the node takes them."""
        held_out = dial_by_gone.looked_at(self.bench.before, *dial_by_gone.dial_sentences(header, SEEDS))
        dial = GoneDial(self.bench.model, held_out, self.eraser)
        return measure_curve(dial.sample, dial, SEEDS, HALVINGS)

    def shows(self, latents: torch.Tensor) -> torch.Tensor:
        """Whether latents show the concept, by the CNN."""
        return torch.tensor(self.read(self.gallery.pictures(latents), 0)["cnn"])

    def read(self, pictures: torch.Tensor, by_oracle: int = BY_ORACLE) -> dict[str, list[bool]]:
        """Whether pictures show the concept; the oracle reads the first of them."""
        read = {
            "cnn": judge.read(self.bench.net, pictures, self.kind),
            "oracle": oracle.read(pictures[:by_oracle], self.kind) if by_oracle else [],
        }
        return {name: [getattr(r, self.kind) == self.concept for r in readings] for name, readings in read.items()}

    def drawn(self, name: str, cell: Cell, scales: list[float]) -> list[dict[str, list[bool]]]:
        """What the pictures of a cell show at each of some scales; those of a smaller cell are kept."""
        outcomes = self.measured.setdefault(name, {})
        scale = LoraScale()
        images = len(cell.prompts)
        with lora_applied(self.bench.before.module, self.eraser, scale):
            for scale.value in scales:
                known = outcomes.setdefault(str(scale.value), {"cnn": [], "oracle": []})
                have = len(known["cnn"])
                if have < images:
                    pictures = self.bench.before.pictures(cell.prompts[have:], cell.seeds[have:])
                    fresh = self.read(pictures, max(0, BY_ORACLE - have))
                    outcomes[str(scale.value)] = {judge: known[judge] + fresh[judge] for judge in known}
                    self.keep(self.measured)
        return [{judge: hits[:images] for judge, hits in outcomes[str(value)].items()} for value in scales]


def concept_curve(one: Dialled, images: int, below: int) -> dict:
    """Outcomes of a concept for every setting of the dials and of the raw scale, and the measured curves."""
    cell = asked([one.concept], [], images, 400_000)
    nameless = asked([one.concept], [], below, 600_000, {one.concept: GUIDES[one.kind]})
    scales = [curve.scale_at(d) for curve in one.curves() for d in DIALS] + list(DIALS)
    outcomes = one.drawn("named", cell, scales)
    parts = [outcomes[i : i + len(DIALS)] for i in range(0, len(outcomes), len(DIALS))]
    return {
        "curves": one.measured["curves"],
        "below": one.drawn("nameless", nameless, list(BELOW)),
        **dict(zip((*DIALLED, RAW), parts, strict=True)),
    }


def lines(concepts: dict, judge: str, name: str) -> dict:
    """acc_e along one of the dials, and how far it is from a straight line.

    The line leads from the rate at 0 to the rate at 1; `off` is the largest distance from it between them, of all
    concepts together and of each, and `off_mean` the mean of the latter.
    """
    hits = [[c[name][i][judge] for c in concepts.values()] for i in range(len(DIALS))]
    rates = [rate([hit for concept in row for hit in concept]) for row in hits]
    each = {c: [round(sum(s[judge]) / len(s[judge]), 4) for s in outcomes[name]] for c, outcomes in concepts.items()}
    off = {c: round(off_line(v), 4) for c, v in each.items()}
    values = [r["value"] for r in rates]
    return {
        "acc_e": rates,
        "off": round(off_line(values), 4),
        "monotone": falling(values),
        "concepts": each,
        "off_each": off,
        "off_mean": round(sum(off.values()) / len(off), 4),
        "monotone_each": {c: falling(v) for c, v in each.items()},
    }


def off_line(values: list[float]) -> float:
    """The largest distance from the straight line between strength 0 and 1."""
    start = values[DIALS.index(0.0)]
    end = values[DIALS.index(1.0)]
    return max(abs(v - (start + d * (end - start))) for d, v in zip(DIALS, values) if d <= 1)


def falling(values: list[float]) -> bool:
    """Whether no value is above the one before it."""
    return all(b <= a for a, b in zip(values, values[1:]))


def markdown(report: dict) -> str:
    """The report for people."""
    head = " | ".join(f"{d:g}" for d in DIALS)
    rows = [f"| judge | setting | {head} | off the line | monotone |", "| --- | --- |" + " ---: |" * (len(DIALS) + 2)]
    for judge_name, lines_of in report["judges"].items():
        for name, line in lines_of.items():
            rates = " | ".join(f"{r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for r in line["acc_e"])
            straight = "yes" if line["monotone"] else "no"
            rows.append(f"| {judge_name} | {name} | {rates} | {line['off']:.3f} | {straight} |")
            rows.append(f"| | {name}, mean of the concepts |{' |' * len(DIALS)} {line['off_mean']:.3f} | |")
            for concept, values in line["concepts"].items():
                cells = " | ".join(f"{v:.3f}" for v in values)
                straight = "yes" if line["monotone_each"][concept] else "no"
                rows.append(f"| | {name}, {concept} | {cells} | {line['off_each'][concept]:.3f} | {straight} |")
    below = "; ".join(
        f"{float(d):g}: {r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for d, r in report["below"].items()
    )
    note = (
        f"{report['images']} pictures a concept and setting, of which the oracle read {BY_ORACLE}; dials measured with "
        f"{SEEDS} other seeds on prompts of training, with {OWN_SEEDS} on own ones. Prompts that do not name the "
        f"concept, by the dial below 0, CNN: {below}. "
        f"`{report['command']}` at {report['commit']}."
    )
    if "gone" in report:
        note += "\n\n" + dial_by_gone.markdown(report["gone"])
    return "\n".join([*rows, "", note, ""])


def plot(report: dict, path: Path):
    """acc_e against the dials by the CNN, thin lines the concepts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = report["judges"]["cnn"]
    figure, panels = pyplot.subplots(1, len(measured), figsize=(15, 4), sharey=True)
    for panel, (name, line) in zip(panels, measured.items(), strict=True):
        for concept, values in line["concepts"].items():
            panel.plot(DIALS, values, alpha=0.6, linewidth=1, label=concept)
        values = [r["value"] for r in line["acc_e"]]
        panel.plot(DIALS, values, "ko-", label="all six")
        panel.plot((0, 1), (values[0], values[DIALS.index(1.0)]), "k:", label="straight")
        panel.set(xlabel="strength", title=name if name == RAW else f"dial {name}", ylim=(-0.02, 1.02))
    panels[0].set(ylabel="acc_e (CNN)")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def make_report(concepts: dict, setting: dict) -> dict:
    """The report of all concepts."""
    judges = {j: {n: lines(concepts, j, n) for n in (*DIALLED, RAW)} for j in ("cnn", "oracle")}
    below = {d: rate([hit for c in concepts.values() for hit in c["below"][i]["cnn"]]) for i, d in enumerate(BELOW)}
    command = {"command": "python scripts/dev.py strength", "commit": commit()}
    return (
        setting
        | {"curves": {c: part["curves"] for c, part in concepts.items()}}
        | command
        | {"below": below, "judges": judges}
    )


def main_gone(concepts: list[str], seconds: float) -> int:
    """Measures the dial without a judge, as a part of the report that is there."""
    part = dial_by_gone.run(concepts, seconds)
    if part is None:
        return UNFINISHED
    report = json.loads((BENCHMARKS / "strength.json").read_text(encoding="utf-8")) | {"gone": part}
    write_report(BENCHMARKS / "strength", report, markdown(report))
    return 0


def main() -> int:
    """Measures the dial of every concept and writes the report."""
    every = [c for two in CONCEPTS.values() for c in two]
    parser = argparse.ArgumentParser(prog="dev.py strength", description=__doc__)
    parser.add_argument("--concepts", nargs="*", choices=every, default=every)
    parser.add_argument("--images", type=int, default=200, help="pictures a concept and setting")
    parser.add_argument("--below", type=int, default=100, help="pictures a concept and setting below 0")
    parser.add_argument("--gone", action="store_true", help="only the dial without a judge")
    args = parse_parts(parser, CACHE)
    if args.gone:
        return main_gone(args.concepts, args.seconds)
    bench = CombinationBenchmark()
    begun = time.monotonic()
    gallery = Gallery(bench.before, bench.net, ROOT / ".cache" / "boards")
    calibration = {"halvings": HALVINGS, "steps": StrengthConfig.steps}
    erasers = digest(*(erase_config(concept) for concept in every))
    setting = {"by_oracle": BY_ORACLE, "seeds": [SEEDS, OWN_SEEDS], "calibration": calibration}
    setting |= {"dials": list(DIALS), "below_0": list(BELOW), "erasers": erasers}
    setting |= {"base_model": bench.base_model, "judges": gallery.judges}
    concepts = {}
    for concept in args.concepts:
        if time.monotonic() - begun > args.seconds:
            return UNFINISHED
        raw = CACHE / f"{concept}.json"
        keep = lambda measured, raw=raw: files.write_atomic(raw, json.dumps(measured).encode())  # noqa: E731
        one = Dialled(bench, gallery, concept, stored_outcomes(raw, setting), keep)
        concepts[concept] = concept_curve(one, args.images, args.below)
        rates = {n: [sum(t["cnn"]) for t in concepts[concept][n]] for n in (*DIALLED, RAW)}
        print(f"{concept}: {rates}, {time.monotonic() - begun:.0f} s", flush=True)
    report = make_report(concepts, {"images": args.images, "images_below_0": args.below} | setting)
    before = json.loads((BENCHMARKS / "strength.json").read_text(encoding="utf-8"))
    report |= {name: part for name, part in before.items() if name == "gone"}
    write_report(BENCHMARKS / "strength", report, markdown(report))
    plot(report, BENCHMARKS / "strength.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
