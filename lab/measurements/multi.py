"""Measures how erasers combine on TinyFlux: every mode of MultiEraseLoRA for 1, 3, 5, 10 and 30 concepts.

    python scripts/dev.py multi                        all modes and counts; what is done already is kept
    python scripts/dev.py multi --modes sum --counts 3

- `acc_e`: pictures that still show the erased concept that they are asked for.
- `acc_g`: the same, asked by the synonym that no eraser trained on.
- `acc_e2_entity`, `acc_e2_style`: pictures of two erased concepts, an entity in a style, that still show one of them.
- `acc_ir`: pictures that show one of the concepts that were not erased.
- `kept`: right colour and background of a nameless thing. It stands for what is left when all thirty are erased.

Prompts use held-out templates, and every mode draws the same prompts and seeds. Writes benchmarks/multi.json, multi.md
and multi.png. The erasers are trained once and kept in .cache.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.evaluation.metrics import change_of, clustered_bootstrap, paired, rate, rate_of
from eraseanything_core.files import write_atomic
from eraseanything_core.lora import fusion, gate, merge
from eraseanything_core.lora.apply import LoraScale, lora_applied
from eraseanything_core.lora.factors import Eraser
from eraseanything_core.lora.headers import ErasedConcept, kept_by_all
from eraseanything_core.lora.key_styles import eraser_tensors, read_eraser
from eraseanything_core.lora.transport import transport
from eraseanything_core.tinyflux import GUIDANCE, MU, oracle
from eraseanything_core.tinyflux.concepts import SYNONYMS, kind_of
from eraseanything_core.tinyflux.world import BACKGROUNDS, COLOURS
from lab.boards.command import UNFINISHED
from lab.provenance import BENCHMARKS, commit, digest, parse_parts, stored_outcomes, write_report
from lab.tinyflux import precision, scenes
from lab.tinyflux.captions import HELD_OUT, caption
from lab.tinyflux.eraser_cache import CACHE, SHORT, config, eraser, order
from lab.tinyflux.measure import merged, read_cell
from lab.tinyflux.pipeline import WEIGHTS, Pipeline, TrainerText, flux, judge_net
from lab.tinyflux.prompts import prompt_with
from lab.tinyflux.recipe import Cell

COUNTS = (10, 30, 3, 5, 1)  # those of the goal first
RANK = 256  # these three as the node has them
ENERGY = 0.99
DENSITY = 0.5
FUSION = ("steps", "prompts", "kept_prompts", "rows", "kept_weight", "ridge", "seed")
MODES = {
    "normalised sum": {},
    "sum": {},
    "concatenate": {},
    "closed-form fusion": {name: getattr(fusion.FusionConfig, name) for name in FUSION},
    "prompt-gated": {"off": gate.OFF, "on": gate.ON},
    "facilitated transport": {},
    "truncated": {"rank": RANK, "energy": ENERGY},
    **{mode: {"rank": RANK, "density": DENSITY} for mode in merge.SPARSE_MODES},
}
BY_ORACLE = 6  # pictures of a cell that the oracle reads too: it takes half a second for one
BY_SYNONYM = ("un-erased", "single", "sum", "prompt-gated")  # whose acc_g is measured
TOGETHER = ("un-erased", "sum", "prompt-gated")  # whose acc_e2 is


class CombinationBenchmark:
    """TinyFlux, its judges, and erasers that are trained when they are asked for."""

    def __init__(self):
        self.before = Pipeline(flux())
        self.net = judge_net()
        self.text = TrainerText(self.before)
        self.base_model = hashlib.sha256((WEIGHTS / "tinyflux.safetensors").read_bytes()).hexdigest()
        self.model = FluxModel(self.before.module, "cpu", precision.DTYPE, MU)

    def setting(self, images: int) -> dict:
        """All that decides an outcome besides the mode and the concepts."""
        judges = digest(self.before.decode, self.net, Path(oracle.__file__).read_text(encoding="utf-8"))
        decides = {
            "judges": judges,
            "text_encoder": digest(self.before.encoder),
            "recipes": digest([config(concept) for concept in order()]),
            "prompts": digest(asked(order(), [], images, 0)),  # a sample, of every concept
        }
        measured = {"images": images, "by_oracle": BY_ORACLE, "base_model": self.base_model, "short_recipe": SHORT}
        return measured | decides

    def erasers(self, concepts: list[str]) -> tuple[list[Eraser], list[ErasedConcept]]:
        """The factors of every concept's eraser, and what its header says."""
        files = [eraser(self.before, concept, self.base_model) for concept in concepts]
        erasers = []
        erased = []
        for (tensors, header), concept in zip(files, concepts, strict=True):
            erasers.append(read_eraser(tensors, header, concept))
            erased.append(ErasedConcept.from_header(header, concept))
        return erasers, erased

    def with_lora(self, one: Eraser) -> Pipeline:
        """A pipeline with one LoRA merged."""
        module = merged(self.before.module, eraser_tensors(one, torch.float32))
        return Pipeline(module, self.before.encoder, self.before.decode)

    def states(self, prompts: list[str], modules: list[str], rows: int, config: fusion.FusionConfig) -> dict:
        """The states of prompts that closed-form fusion fits on."""
        return fusion.read_states(self.model, [self.text.encode(p) for p in prompts], modules, rows, config)

    def fused(self, erasers: list[Eraser], erased: list[ErasedConcept]) -> Eraser:
        """Closed-form fusion as the node does it."""
        config = fusion.FusionConfig.for_concept(erased[0], seed=0)
        modules = fusion.modules_of(erasers)
        concepts = [self.states(e.sentences(config.prompts, 0), modules, config.rows, config) for e in erased]
        prompts = ["", *kept_by_all(erased, config.kept_prompts, 0)]
        kept = self.states(prompts, modules, 4 * config.rows, config)
        return fusion.fused(erasers, [1.0] * len(erasers), concepts, kept, config)


def asked(concepts: list[str], without: list[str], count: int, seed: int, names: dict[str, str] | None = None) -> Cell:
    """`count` prompts that ask for the concepts in turn, by `names` if given, and none of `without` in them."""
    rng = random.Random(f"{concepts} {seed}")
    prompts = []
    chosen = [concepts[i % len(concepts)] for i in range(count)]
    for concept in chosen:
        name = names[concept] if names else None
        text = prompt_with(rng, concept, name)
        while set(without) & {word.strip(",") for word in text.split(" ")}:
            text = prompt_with(rng, concept, name)
        prompts.append(text)
    return Cell([kind_of(c) for c in chosen], chosen, prompts, [seed + i for i in range(count)])


def together(concepts: list[str], count: int, seed: int) -> dict[str, Cell]:
    """`count` prompts that ask for an erased entity in an erased style, to be read for either; none without both."""
    kinds = {kind: [c for c in concepts if kind_of(c) == kind] for kind in ("entity", "style")}
    if not all(kinds.values()):
        return {}
    rng = random.Random(f"{concepts} {seed}")
    pairs = [{kind: rng.choice(names) for kind, names in kinds.items()} for _ in range(count)]
    prompts = [caption(rng, scenes.single(rng, **pair), HELD_OUT, synonyms=0.0, generic=0.0) for pair in pairs]
    seeds = [seed + i for i in range(count)]
    return {f"acc_e2_{kind}": Cell([kind] * count, [p[kind] for p in pairs], prompts, seeds) for kind in kinds}


def nameless(count: int, seed: int) -> Cell:
    """Prompts for a thing of a colour on a background."""
    rng = random.Random(seed)
    pairs = [(rng.choice(list(COLOURS)), rng.choice(list(BACKGROUNDS))) for _ in range(count)]
    prompts = [f"{rng.choice(('a drawing of a', 'there is a'))} {c} thing on a {b} background" for c, b in pairs]
    return Cell(["entity"] * count, [f"{c} {b}" for c, b in pairs], prompts, [seed + i for i in range(count)])


def kept_hits(pictures: torch.Tensor, cell: Cell) -> list[bool]:
    """Whether colour and background are those of the prompt."""
    return [oracle.colour_and_ground(p) == tuple(c.split(" ")) for p, c in zip(pictures, cell.concepts, strict=True)]


def cells(mode: str, concepts: list[str], count: int) -> dict[str, Cell]:
    """What is asked of a mode when these concepts are erased."""
    rest = [c for c in order() if c not in concepts]
    by_name = {"acc_e": asked(concepts, [], count, 100_000)}
    if mode in BY_SYNONYM:
        by_name["acc_g"] = asked(concepts, [], count, 500_000, {c: names[2] for c, names in SYNONYMS.items()})
    if mode in TOGETHER:
        by_name |= together(concepts, count, 600_000)
    if mode != "single":
        by_name |= {"acc_ir": asked(rest, concepts, count, 200_000)} if rest else {"kept": nameless(count, 300_000)}
    return by_name


class CachedPictures:
    """A pipeline that draws the same prompts once, for cells that read them for different concepts."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.drawn = {}

    def pictures(self, prompts: list[str], seeds: list[int], guidance: float = GUIDANCE) -> torch.Tensor:
        asked_for = (*prompts, *seeds, guidance)
        if asked_for not in self.drawn:
            self.drawn[asked_for] = self.pipeline.pictures(prompts, seeds, guidance)
        return self.drawn[asked_for]


def hits(bench: CombinationBenchmark, pipeline, cells: dict[str, Cell]) -> dict[str, dict[str, list[bool]]]:
    """{judge: {cell: outcomes}}."""
    outcomes = {"oracle": {}, "cnn": {}}
    pipeline = CachedPictures(pipeline)
    for name, cell in cells.items():
        if name == "kept":
            right = kept_hits(pipeline.pictures(cell.prompts, cell.seeds), cell)
            read = {"oracle": right, "cnn": right}
        else:
            read, _ = read_cell(pipeline, bench.net, cell, by_oracle=BY_ORACLE)
        for judge in outcomes:
            outcomes[judge][name] = read[judge]
    return outcomes


class GatedPipeline:
    """A pipeline whose erasers have for every prompt the strength of its gate."""

    def __init__(self, bench: CombinationBenchmark, erasers: list[Eraser], erased: list[ErasedConcept]):
        self.bench = bench
        self.one = merge.concatenated(erasers, [1.0] * len(erasers))
        self.gates = self.reader(erased)
        self.ranks = [len(next(iter(e.values())).down) for e in erasers]

    def reader(self, erased: list[ErasedConcept]) -> Callable[[list[str]], torch.Tensor]:
        """Prompts to the strength of every eraser in each, [b, erasers]."""
        prompt_gate = gate.PromptGate(erased, self.bench.text)
        return lambda prompts: prompt_gate(self.bench.before.encode(prompts)[0])

    def pictures(self, prompts: list[str], seeds: list[int], guidance: float = GUIDANCE, batch: int = 64):
        drawn = []
        scale = LoraScale()
        repeats = torch.tensor(self.ranks)
        with lora_applied(self.bench.before.module, self.one, scale):
            for i in range(0, len(prompts), batch):
                scale.value = self.gates(prompts[i : i + batch]).repeat_interleave(repeats, dim=1)
                drawn.append(self.bench.before.pictures(prompts[i : i + batch], seeds[i : i + batch], guidance))
        return torch.cat(drawn)


class TransportPipeline(GatedPipeline):
    """The same with the strengths of SPM's facilitated transport."""

    def reader(self, erased: list[ErasedConcept]) -> Callable[[list[str]], torch.Tensor]:
        return lambda prompts: torch.tensor([transport(prompt, erased, self.bench.text) for prompt in prompts])


def single(
    bench: CombinationBenchmark, concepts: list[str], cells: dict[str, Cell]
) -> dict[str, dict[str, list[bool]]]:
    """Outcomes when every concept has its own eraser alone."""
    outcomes = {"oracle": {}, "cnn": {}}
    for name, cell in cells.items():
        outcomes["oracle"][name] = [False] * len(cell.prompts[:BY_ORACLE])
        outcomes["cnn"][name] = [False] * len(cell.prompts)
    for concept, one in zip(concepts, bench.erasers(concepts)[0], strict=True):
        pipeline = bench.with_lora(one)
        for name, cell in cells.items():
            rows = [i for i, c in enumerate(cell.concepts) if c == concept]
            part = Cell(*([v[i] for i in rows] for v in vars(cell).values()))
            few = sum(i < BY_ORACLE for i in rows)
            read, _ = read_cell(pipeline, bench.net, part, by_oracle=few)
            for judge in outcomes:
                for i, hit in zip(rows, read[judge]):
                    outcomes[judge][name][i] = hit
    return outcomes


def pipeline_of(bench: CombinationBenchmark, mode: str, concepts: list[str]) -> Pipeline | GatedPipeline:
    """A pipeline whose erasers are combined in a mode."""
    erasers, erased = bench.erasers(concepts)
    if mode == "prompt-gated":
        return GatedPipeline(bench, erasers, erased)
    if mode == "facilitated transport":
        return TransportPipeline(bench, erasers, erased)
    if mode == "closed-form fusion":
        return bench.with_lora(bench.fused(erasers, erased))
    return bench.with_lora(merge.combined(erasers, [1.0] * len(erasers), mode, **MODES[mode]))


def outcomes(bench: CombinationBenchmark, mode: str, concepts: list[str], cells: dict[str, Cell]) -> dict:
    """{judge: {cell: outcomes}} of a mode."""
    if mode == "un-erased":
        return hits(bench, bench.before, cells)
    return (
        single(bench, concepts, cells) if mode == "single" else hits(bench, pipeline_of(bench, mode, concepts), cells)
    )


def gap(before: list[bool], after: list[bool]) -> dict:
    """after - before in rate, with its paired interval."""
    return clustered_bootstrap(paired({"x": before}, {"x": after}), change_of(rate_of("x")))


def summary(measured: dict, count: int, mode: str) -> list[dict]:
    """Rows of the report: a judge's rates, and the gaps to single erasers and to the un-erased model."""
    rows = []
    for judge, cells_ in measured[f"{mode} {count}"].items():
        row = {"mode": mode, "concepts": count, "judge": judge, **{name: rate(h) for name, h in cells_.items()}}
        for name, hits_ in cells_.items():
            to = measured[f"{'single' if name in ('acc_e', 'acc_g') else 'un-erased'} {count}"][judge]
            if name in to:
                row[f"gap_{name.removeprefix('acc_')}"] = gap(to[name], hits_)
        rows.append(row)
    return rows


def meets(row: dict) -> bool:
    """The goal: acc_e at most 5 points above single erasers, what is left at most 3 points below the un-erased."""
    left = row["gap_ir"] if "gap_ir" in row else row["gap_kept"]
    return row["gap_e"]["value"] <= 0.05 and left["value"] >= -0.03


def markdown(report: dict) -> str:
    """The report for people."""
    lines = [
        "| judge | concepts | mode | acc_e | to single erasers | acc_ir (30: kept) | to un-erased | goal "
        "| acc_g | to single erasers | acc_e2: entity, style |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        rates = {n: f"{row[n]['value']:.3f}" if n in row else "" for n in ("acc_e", "acc_g", "acc_ir", "kept")}
        gaps = {
            n: f"{row[n]['value']:+.3f} ({row[n]['low']:+.3f} to {row[n]['high']:+.3f})" if n in row else ""
            for n in ("gap_e", "gap_g", "gap_ir", "gap_kept")
        }
        left = (rates["acc_ir"] or rates["kept"], gaps["gap_ir"] or gaps["gap_kept"])
        cells = (row["judge"], str(row["concepts"]), row["mode"], rates["acc_e"], gaps["gap_e"], *left)
        goal = "" if row["mode"] in ("single", "un-erased") else "met" if meets(row) else "missed"
        two = ", ".join(f"{row[n]['value']:.3f}" for n in ("acc_e2_entity", "acc_e2_style") if n in row)
        lines.append(f"| {' | '.join((*cells, goal, rates['acc_g'], gaps['gap_g'], two))} |")
    cells = f"{report['images']} pictures a cell, of which the oracle read {BY_ORACLE}."
    return "\n".join([*lines, "", f"{cells} `{report['command']}` at {report['commit']}.", ""])


def series(rows: list[dict], mode: str, name: str) -> tuple[list[int], list[float]]:
    """Numbers of concepts and a mode's rates by the CNN; where no concept is left, `kept` stands for acc_ir."""
    points = [(r["concepts"], r.get(name) or name == "acc_ir" and r.get("kept")) for r in rows
             if (r["mode"], r["judge"]) == (mode, "cnn")]  # fmt: skip
    return [count for count, rate_of in points if rate_of], [rate_of["value"] for _, rate_of in points if rate_of]


def plot(report: dict, path: Path):
    """acc_e, acc_g and what is left against the number of concepts, a line a mode, by the CNN."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), sharex=True)
    titles = {"acc_e": "erased", "acc_g": "erased, by a held-out synonym", "acc_ir": "not erased (30: kept)"}
    modes = {mode: f"C{i}" for i, mode in enumerate(dict.fromkeys(row["mode"] for row in report["rows"]))}
    for panel, (name, title) in zip(panels, titles.items()):
        for mode, colour in modes.items():
            style = {"un-erased": "k:", "single": "k--"}.get(mode, f"{colour}o-")
            panel.plot(*series(report["rows"], mode, name), style, label=mode, markersize=3)
        panel.set(xscale="log", ylim=(-0.02, 1.02), title=f"{name}: concepts {title}", xlabel="erasers combined")
        panel.set_xticks(sorted(COUNTS), [str(n) for n in sorted(COUNTS)])
    panels[2].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def current(measured: dict) -> dict:
    """Without the outcomes of modes whose settings are others by now."""
    old = {mode for mode, settings in MODES.items() if measured.get("modes", {}).get(mode) != settings}
    return {name: outcomes for name, outcomes in measured.items() if name.rpartition(" ")[0] not in old} | {
        "modes": MODES
    }


def main() -> int:
    """Measures what is missing, and writes the report after all of it or when the time is up."""
    parser = argparse.ArgumentParser(prog="dev.py multi", description=__doc__)
    parser.add_argument("--modes", nargs="*", choices=list(MODES), default=list(MODES))
    parser.add_argument("--counts", nargs="*", type=int, default=COUNTS)
    parser.add_argument("--images", type=int, default=60, help="pictures a cell")
    args = parse_parts(parser, CACHE)
    bench = CombinationBenchmark()
    begun = time.monotonic()
    setting = bench.setting(args.images)
    raw = CACHE / f"multi.{args.images}.json"
    measured = current(stored_outcomes(raw, setting))
    for count in args.counts:
        concepts = order()[:count]
        for mode in ("un-erased", "single", *args.modes):
            known = measured.get(f"{mode} {count}", {"oracle": {}, "cnn": {}})
            missing = {n: cell for n, cell in cells(mode, concepts, args.images).items() if n not in known["cnn"]}
            if not missing:
                continue
            if time.monotonic() - begun > args.seconds:
                write(measured, setting)
                return UNFINISHED
            fresh = outcomes(bench, mode, concepts, missing)
            measured[f"{mode} {count}"] = {judge: known[judge] | fresh[judge] for judge in known}
            write_atomic(raw, json.dumps(measured).encode())
            rates = {n: rate(h)["value"] for n, h in fresh["cnn"].items()}
            print(f"{count} {mode}: {rates}, {time.monotonic() - begun:.0f} s", flush=True)
    write(measured, setting)
    return 0


def write(measured: dict, setting: dict):
    """The report of what is measured so far."""
    names = [name.rpartition(" ") for name in measured if name not in ("setting", "modes")]
    done = [(int(count), mode) for mode, _, count in names if f"single {count}" in measured]
    rows = [row for count, mode in sorted(done, key=lambda t: t[0]) for row in summary(measured, count, mode)]
    source = {"command": "python scripts/dev.py multi", "commit": commit()}
    report = setting | {"modes": MODES, "concepts": order()} | source | {"rows": rows}
    write_report(BENCHMARKS / "multi", report, markdown(report))
    plot(report, BENCHMARKS / "multi.png")


if __name__ == "__main__":
    sys.exit(main())
