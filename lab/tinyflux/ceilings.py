"""What the un-erased TinyFlux can do: `python -m lab.tinyflux.ceilings` writes `ceilings.json`
and `sheet.png`.

Held-out templates and seeds, both judges. A concept whose ceiling is too low is named in `below`, and nothing that
is said about erasing it means much. `--only` measures some parts anew and puts them into the file that is there.
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torchvision.utils import make_grid

from eraseanything_core.evaluation.judges import sha256
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.tinyflux import GUIDANCE, STEPS, oracle
from eraseanything_core.tinyflux.concepts import CONCEPTS, SYNONYMS, kind_of
from eraseanything_core.tinyflux.judge import read as read_cnn
from eraseanything_core.tinyflux.world import render
from lab.provenance import command_line, commit
from lab.tinyflux.measure import read_cell
from lab.tinyflux.pipeline import WEIGHTS, Pipeline, flux, judge_net
from lab.tinyflux.prompts import prompt_with, scene_with
from lab.tinyflux.recipe import Cell

FLOORS = {"entity": 0.95, "style": 0.95, "relation": 0.90, "concept": 0.85, "synonyms": 0.90, "distorted": 0.80}
ALL = tuple(c for group in CONCEPTS.values() for c in group)
DISTORTED = ("misspelt", "affixed", "repeated", "shuffled")
QUESTIONS = ("clean", "synonyms", *DISTORTED)
PARTS = (*QUESTIONS, "renders", "same_label_when_shuffled", "cost")
# of `cost`
BATCH = 16
BATCHES = 5


def question(name: str, count: int, seed: int) -> Cell:
    """`count` prompts a concept: "clean", "synonyms", or a distortion of one of the concept's names."""
    rng = random.Random(f"{name} {seed}")
    concepts = [c for c in ALL for _ in range(count)]
    prompts = []
    for i, concept in enumerate(concepts):
        word = SYNONYMS[concept][i % 3] if name == "synonyms" else None
        prompts.append(prompt_with(rng, concept, word, name if name in DISTORTED else None))
    seeds = [seed + i for i in range(len(prompts))]
    return Cell([kind_of(c) for c in concepts], concepts, prompts, seeds)


def by_concept(hits: list[bool], cell: Cell) -> dict:
    """{concept: rate}, {kind: rate} and the rate of all, of one judge's outcomes."""
    groups = defaultdict(list)
    for hit, concept, kind in zip(hits, cell.concepts, cell.kinds, strict=True):
        for group in (concept, kind, "all"):
            groups[group].append(hit)
    return {group: rate(outcomes) for group, outcomes in groups.items()}


def renders(net, count: int, seed: int) -> dict:
    """Both judges on true renders: what the judges themselves get wrong."""
    rng = random.Random(seed)
    hits_of = {"oracle": defaultdict(list), "cnn": defaultdict(list)}
    for concept in ALL:
        kind = kind_of(concept)
        pictures = torch.stack([render(scene_with(rng, concept)) for _ in range(count)])
        for judge, readings in (("oracle", oracle.read(pictures, kind)), ("cnn", read_cnn(net, pictures, kind))):
            hits_of[judge][kind] += [getattr(r, kind) == concept for r in readings]
    return {judge: {kind: rate(hits) for kind, hits in kinds.items()} for judge, kinds in hits_of.items()}


def same_under_shuffling(pipeline: Pipeline, net, count: int, seed: int) -> dict:
    """How often a prompt and its shuffled words, drawn with one seed, get the same label from a judge."""
    rng = random.Random(seed)
    concepts = [c for c in ALL for _ in range(count)]
    plain = [prompt_with(rng, c) for c in concepts]
    mixed = [" ".join(rng.sample(p.split(" "), len(p.split(" ")))) for p in plain]
    seeds = [seed + i for i in range(len(plain))]
    pictures = [pipeline.pictures(prompts, seeds) for prompts in (plain, mixed)]
    same = {"oracle": [], "cnn": []}
    for i, concept in enumerate(concepts):
        kind = kind_of(concept)
        pair = torch.stack([p[i] for p in pictures])
        for judge, (a, b) in (("oracle", oracle.read(pair, kind)), ("cnn", read_cnn(net, pair, kind))):
            same[judge].append(getattr(a, kind) == getattr(b, kind))
    return {judge: rate(hits) for judge, hits in same.items()}


def cost(pipeline: Pipeline, seed: int) -> dict:
    """Seconds a picture on one thread, text and decoding included, medians of some batches after a first one.

    Returns:
        {"seconds", "cpu_seconds", "batch", "batches", "steps", "threads"}; `seconds` is wall time, which other
        processes lengthen.
    """
    rng = random.Random(seed)
    threads = torch.get_num_threads()
    spent = []
    prompts = [prompt_with(rng, rng.choice(ALL)) for _ in range(BATCH)]
    seeds = [seed + i for i in range(BATCH)]
    torch.set_num_threads(1)
    for _ in range(BATCHES + 1):
        start = time.perf_counter(), time.process_time()
        pipeline.pictures(prompts, seeds)
        spent.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    torch.set_num_threads(threads)
    seconds, cpu = (round(median(each) / BATCH, 4) for each in zip(*spent[1:], strict=True))
    sizes = {"batch": BATCH, "batches": BATCHES, "steps": STEPS, "threads": 1}
    return {"seconds": seconds, "cpu_seconds": cpu, **sizes}


def sheet(pipeline: Pipeline, path: Path, seed: int, columns: int = 15):
    """Draws every concept three times, held-out prompts, ten concepts in two rows, and saves the picture."""
    rng = random.Random(seed)
    prompts = [prompt_with(rng, concept) for concept in ALL for _ in range(3)]
    grid = make_grid(pipeline.pictures(prompts, [seed + i for i in range(len(prompts))]), nrow=columns, pad_value=1.0)
    Image.fromarray((grid * 255).byte().permute(1, 2, 0).numpy()).save(path)


def below(clean: dict) -> list[str]:
    """Concepts under the floor by either judge, with their rate."""
    low = {c: min(clean[judge][c]["value"] for judge in clean) for c in ALL}
    return [f"{c} {value:.2f}" for c, value in low.items() if value < FLOORS["concept"]]


def asked(pipeline: Pipeline, net, name: str, count: int, seed: int) -> dict:
    """The rates of one of `QUESTIONS`, `count` pictures a concept, by each judge."""
    cell = question(name, count, seed + 10_000 * QUESTIONS.index(name))
    hits, _ = read_cell(pipeline, net, cell)
    rates_of = {judge: by_concept(outcomes, cell) for judge, outcomes in hits.items()}
    print(name, {judge: rates["all"]["value"] for judge, rates in rates_of.items()}, flush=True)
    return rates_of


def measure(parts: tuple[str, ...], clean: int, other: int, pairs: int, seed: int) -> dict:
    """Some of `PARTS`; `clean`, `other` and `pairs` are pictures, or pairs of them, a concept."""
    pipeline = Pipeline(flux())
    net = judge_net()
    others = {
        "renders": lambda: renders(net, 10, seed),
        "same_label_when_shuffled": lambda: same_under_shuffling(pipeline, net, pairs, seed + 90_000),
        "cost": lambda: cost(pipeline, seed),
    }
    counts = dict.fromkeys(QUESTIONS, other) | {"clean": clean}
    return {
        name: asked(pipeline, net, name, counts[name], seed) if name in counts else others[name]()
        for name in PARTS
        if name in parts
    }


def stored(path: Path, weights: dict) -> dict:
    """The report in the file; raises ValueError when it was measured on other weights."""
    report = json.loads(path.read_text(encoding="utf-8"))
    if report.get("weights", weights) != weights:
        raise ValueError(f"{path} was measured on other weights: measure all parts")
    return report


def main():
    """Measures all parts, or those of --only, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=70, help="images a concept with clean prompts")
    parser.add_argument("--other", type=int, default=20, help="images a concept with synonyms and with each distortion")
    parser.add_argument("--pairs", type=int, default=10, help="pairs a concept, one with its words shuffled")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these anew, and leave the rest of the file")
    parser.add_argument("--seed", type=int, default=7_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "ceilings.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = {"command": command_line("ceilings", *sys.argv[1:]), "commit": commit()}
    weights = {path.name: sha256(path) for path in sorted(WEIGHTS.glob("*.safetensors"))}
    if args.only:
        report = stored(args.out, weights)
        report["anew"] = report.get("anew", {}) | dict.fromkeys(args.only, source)  # the command of these parts
    else:
        sheet(Pipeline(flux()), args.out.with_name("sheet.png"), args.seed)
        report = source | {"guidance": GUIDANCE, "steps": STEPS, "seed": args.seed, "floors": FLOORS}
    report |= {"weights": weights} | measure(tuple(args.only or PARTS), args.clean, args.other, args.pairs, args.seed)
    report["below"] = below(report["clean"])
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
