"""Measures by which blocks a concept's word reaches the picture: `python scripts/dev.py stream_ablation`.

Of the un-erased TinyFlux, on the validation concepts. Two prompts differ in the concept's word only, which is the guide
in the plain one (`erasers.GUIDES`). The image stream after the dual blocks comes from one of them and the text stream
that the single blocks read from the other. The pooled vector is the plain prompt's throughout. Where the concept comes
with the text stream, what the dual blocks attend to does not decide it, and queries and keys there cannot take it away.
Writes benchmarks/stream_ablation.json and .md.
"""

import argparse
import os
import random
import sys

import torch
from torch import Tensor

from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.sampling import euler, shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU, STEPS, judge
from eraseanything_core.tinyflux.concepts import kind_of
from lab.boards.erasers import GUIDES
from lab.provenance import BENCHMARKS, commit, digest, write_report
from lab.tinyflux import functional_flux, precision
from lab.tinyflux.pipeline import Pipeline, flux, judge_net, noise
from lab.tinyflux.prompts import prompt_with
from lab.tinyflux.recipe import VALIDATION

ROWS = {  # whose image stream leaves the dual blocks, and whose text stream the single blocks read
    "both named": ("named", "named"),
    "image named, text plain": ("named", "plain"),
    "image plain, text named": ("plain", "named"),
    "both plain": ("plain", "plain"),
}
SEED = 800_000


def pairs(concept: str, count: int) -> tuple[list[str], list[str]]:
    """Held-out prompts that name the concept, and the same ones with the guide in its place."""
    guide = GUIDES[kind_of(concept)]
    named, bare = (
        [prompt_with(random.Random(f"{concept} {i}"), concept, w) for i in range(count)] for w in (None, guide)
    )
    return named, bare


def draw(pipeline: Pipeline, prompts: dict[str, list[str]], image: str, text: str, seeds: list[int]) -> Tensor:
    """Pictures [n, 3, 96, 96] whose streams come from the prompts of these two names."""
    dtype = next(pipeline.module.parameters()).dtype
    states = {name: pipeline.encode(texts) for name, texts in prompts.items()}
    fixed = {"y": states["plain"][1].to(dtype), "guidance": torch.full((len(seeds),), GUIDANCE, dtype=dtype)}
    rope = functional_flux.rope_table(pipeline.module, states["plain"][0].shape[1], 6, 6)

    def step(x: Tensor, t: Tensor) -> Tensor:
        shared = {"x": x.to(dtype), "timestep": t.to(dtype)} | fixed
        streams = {
            n: functional_flux.dual(pipeline.module, rope, context=states[n][0].to(dtype), **shared)
            for n in {image, text}
        }
        img = streams[image][0]
        vec = streams[image][2]
        return functional_flux.single(pipeline.module, rope, img, streams[text][1], vec, 6).float()

    with torch.no_grad(), precision.autocast():
        x = list(euler(step, noise(seeds), shifted_sigmas(STEPS, MU)))[-1][0]
        return pipeline.decode(x.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)


def measure(pipeline: Pipeline, net, count: int) -> dict[str, dict[str, list[bool]]]:
    """{row: {concept: whether each picture shows it}}, by the CNN."""
    hits = {name: {} for name in ROWS}
    for concept in VALIDATION:
        prompts = dict(zip(("named", "plain"), pairs(concept, count)))
        seeds = [SEED + i for i in range(count)]
        for name, (image, text) in ROWS.items():
            read = judge.read(net, draw(pipeline, prompts, image, text, seeds), kind_of(concept))
            hits[name][concept] = [getattr(r, kind_of(concept)) == concept for r in read]
    return hits


def markdown(report: dict) -> str:
    """The report for people."""
    kinds = list(dict.fromkeys(map(kind_of, VALIDATION)))
    lines = [f"| streams | {' | '.join(kinds)} | {' | '.join(VALIDATION)} |"]
    lines.append("| --- |" + " ---: |" * (len(kinds) + len(VALIDATION)))
    for name, row in report["rows"].items():
        rates = [row[kind] for kind in kinds]
        cells = [f"{100 * r['value']:.1f} ({100 * r['low']:.1f} to {100 * r['high']:.1f})" for r in rates]
        cells += [f"{100 * row[concept]['value']:.0f}" for concept in VALIDATION]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = f"{report['images']} pictures a concept. `{report['command']}` at {report['commit']}."
    title = "# By which stream a concept's word reaches the picture"
    return "\n".join([title, "", "Percent that show it, CNN, on the un-erased TinyFlux.", "", *lines, "", note, ""])


def rates(outcomes: dict[str, list[bool]]) -> dict[str, dict]:
    """Of every concept, and of every kind."""
    kinds = {
        kind: [h for c, hits in outcomes.items() if kind_of(c) == kind for h in hits] for kind in map(kind_of, outcomes)
    }
    return {name: rate(hits) for name, hits in (outcomes | kinds).items()}


def main() -> int:
    """Measures every row and writes the report."""
    parser = argparse.ArgumentParser(prog="dev.py stream_ablation", description=__doc__)
    parser.add_argument("--images", type=int, default=24, help="pictures a concept and row")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = Pipeline(flux())
    net = judge_net()
    rows = {name: rates(hits) for name, hits in measure(pipeline, net, args.images).items()}
    hashes = {"generator and text encoder": digest(pipeline.module, pipeline.encoder), "judge": digest(net)}
    source = {
        "command": "python scripts/dev.py stream_ablation",
        "commit": commit(),
        "images": args.images,
        "seed": SEED,
    }
    report = source | {"hashes": hashes, "rows": rows}
    write_report(BENCHMARKS / "stream_ablation", report, markdown(report))
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
