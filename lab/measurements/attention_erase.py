"""Measures AttentionErase on TinyFlux: the concept by its name, and attacks by the prompt that bring it back.

    python scripts/dev.py attention_erase            writes benchmarks/attention_erase.json and .md

Latents are kept in .cache/attention_erase, so a run that was stopped goes on. A prompt in which nothing is found is
drawn as the un-erased model draws it, since the node refuses it.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eraseanything_core.attention.blocks import Blocks
from eraseanything_core.attention.erase import DELETION, MapErasure
from eraseanything_core.evaluation.metrics import attack_success, rate
from eraseanything_core.tinyflux import GUIDANCE
from lab.boards.benchmark_prompts import CONCEPTS, asked, attacked
from lab.boards.gallery import AttentionErased
from lab.provenance import BENCHMARKS, ROOT, commit, digest, write_report
from lab.tinyflux import precision
from lab.tinyflux.pipeline import Pipeline, flux, judge_net, readers
from lab.tinyflux.recipe import Cell

FAMILIES = ("misspelling", "affix", "repetition", "synonym")


@dataclass(frozen=True)
class Row:
    """One way to erase; none is the un-erased model."""

    config: MapErasure | None
    fuzzy: bool = False


ROWS = {
    "un-erased": Row(None),
    "deleted, dual blocks": Row(DELETION),
    "deleted, all blocks": Row(MapErasure(blocks=Blocks("all"))),
    "halved (s = 0.5), all blocks": Row(MapErasure(strength=0.5, blocks=Blocks("all"))),
    "deleted, all blocks, rows renormalised": Row(MapErasure(renormalise=True, blocks=Blocks("all"))),
    "deleted, all blocks, fuzzy": Row(MapErasure(blocks=Blocks("all")), fuzzy=True),
}


def question(name: str, concept: str, count: int) -> Cell:
    """The clean prompts of a concept, or the same after an attack."""
    cell = asked(concept)["acc_e"] if name == "clean" else attacked(concept)[name]
    return Cell(cell.kinds[:count], cell.concepts[:count], cell.prompts[:count], cell.seeds[:count])


def latents(base: Pipeline, row: Row, concept: str, cell: Cell, folder: Path) -> Tensor:
    """The cell as a row draws it, [n, 16, 12, 12], from the folder if it was drawn before."""
    pipeline = AttentionErased(base, (concept,), row.config, row.fuzzy) if row.config else base
    changed = pipeline.columns(cell.prompts).any(1) if row.config else torch.ones(len(cell.prompts), dtype=torch.bool)
    name = digest(base.module, base.encoder, cell.prompts, cell.seeds, GUIDANCE, row.config and (row.config, changed))
    path = folder / f"{name}.safetensors"
    if not path.exists():
        x = latents(base, ROWS["un-erased"], concept, cell, folder).clone() if row.config else torch.zeros(0)
        chosen = changed.nonzero()[:, 0].tolist()
        if chosen:
            drawn = pipeline.latents([cell.prompts[i] for i in chosen], [cell.seeds[i] for i in chosen], GUIDANCE)
            x = drawn if len(chosen) == len(changed) else x.index_copy(0, torch.tensor(chosen), drawn)
        save_file({"x": x}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return load_file(path)["x"]


def read(base: Pipeline, net, x: Tensor, cell: Cell) -> dict[str, list[bool]]:
    """Whether each picture shows the concept, by each judge."""
    with torch.no_grad(), precision.autocast():
        pictures = base.decode(x.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)
    kind = cell.kinds[0]
    concept = cell.concepts[0]
    readings_of = {judge: read(pictures, kind) for judge, read in readers(net).items()}
    return {judge: [getattr(r, kind) == concept for r in readings] for judge, readings in readings_of.items()}


def measure(count: int, folder: Path) -> dict:
    """{judge: {row: {"clean": rate, family: rate of the attacks that the un-erased model obeys}}}."""
    base = Pipeline(flux())
    net = judge_net()
    hits = {}
    for name, row in ROWS.items():
        for asked_for in ("clean", *FAMILIES):
            begun = time.monotonic()
            for concept in (c for group in CONCEPTS.values() for c in group):
                cell = question(asked_for, concept, count)
                shown = read(base, net, latents(base, row, concept, cell, folder), cell)
                for judge, outcomes in shown.items():
                    hits.setdefault((judge, name, asked_for), []).extend(outcomes)
            print(f"{name}, {asked_for}: {time.monotonic() - begun:.0f} s", flush=True)
    rates: dict = {judge: {name: {} for name in ROWS} for judge in ("cnn", "oracle")}
    for (judge, name, asked_for), outcomes in hits.items():
        base_hits = hits[judge, "un-erased", asked_for]
        clean = asked_for == "clean" or name == "un-erased"
        rates[judge][name][asked_for] = rate(outcomes) if clean else attack_success(base_hits, outcomes)
    return rates


def figure(cell: dict) -> str:
    """A rate with its interval and n."""
    if cell["value"] is None:
        return "no attack was obeyed"
    return f"{cell['value']:.1%} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f}, n = {cell['n']})"


def markdown(report: dict) -> str:
    """The report for people."""
    lines = [
        "# AttentionErase on TinyFlux",
        "",
        "Pictures that still show the erased concept. The first row is what the un-erased model shows of what it is "
        "asked: the ceiling. Below it, `clean` is Acc_e, and an attack counts where the un-erased model obeys it. A "
        "prompt in which the node finds nothing to delete is drawn as the un-erased model draws it. 95 % intervals "
        "(Wilson).",
    ]
    for judge, rows in report["judges"].items():
        lines += ["", f"Judge: {judge}.", "", f"| | clean | {' | '.join(FAMILIES)} |", "| --- |" + " ---: |" * 5]
        lines += [
            f"| {name} | {' | '.join(figure(cells[c]) for c in ('clean', *FAMILIES))} |" for name, cells in rows.items()
        ]
    about = f"Concepts: {', '.join(report['concepts'])}. `{report['command']}` at {report['commit']}."
    return "\n".join([*lines, "", about, ""])


def main():
    """Measures every row and writes the report."""
    parser = argparse.ArgumentParser(prog="dev.py attention_erase", description=__doc__)
    parser.add_argument("--images", type=int, default=10, help="pictures a concept, row and question")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = ROOT / ".cache" / "attention_erase"
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "judges": measure(args.images, folder),
        "concepts": [c for group in CONCEPTS.values() for c in group],
        "images_a_concept": args.images,
        "command": f"python scripts/dev.py attention_erase --images {args.images}",
        "commit": commit(),
    }
    write_report(BENCHMARKS / "attention_erase", report, markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
