"""What the un-erased TinyFlux can do: `python -m eraseanything_core.tinyflux.ceilings` writes `ceilings.json`
and `sheet.png`.

Held-out templates and seeds, both judges. A concept whose ceiling is too low is named in `below`, and nothing that
is said about erasing it means much.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from torchvision.utils import make_grid

from ..evaluation.metrics import rate
from . import GUIDANCE, STEPS, oracle
from .captions import CONCEPTS, SYNONYMS
from .judge import read as read_cnn
from .measure import read_cell
from .pipeline import Pipeline, flux, judge_net
from .prompts import kind_of, prompt_with, scene_with
from .recipe import Cell
from .world import render

FLOORS = {"entity": 0.95, "style": 0.95, "relation": 0.90, "concept": 0.85, "synonyms": 0.90, "distorted": 0.80}
ALL = tuple(c for group in CONCEPTS.values() for c in group)
DISTORTED = ("misspelt", "affixed", "repeated", "shuffled")


def question(name: str, count: int, seed: int) -> Cell:
    """`count` prompts a concept: "clean", "synonyms", or a distortion of one of the concept's names."""
    rng, concepts = random.Random(f"{name} {seed}"), [c for c in ALL for _ in range(count)]
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
    return {group: rate(found) for group, found in groups.items()}


def renders(net, count: int, seed: int) -> dict:
    """Both judges on true renders: what the judges themselves get wrong."""
    rng, found = random.Random(seed), {"oracle": defaultdict(list), "cnn": defaultdict(list)}
    for concept in ALL:
        kind = kind_of(concept)
        pictures = torch.stack([render(scene_with(rng, concept)) for _ in range(count)])
        for judge, readings in (("oracle", oracle.read(pictures, kind)), ("cnn", read_cnn(net, pictures, kind))):
            found[judge][kind] += [getattr(r, kind) == concept for r in readings]
    return {judge: {kind: rate(hits) for kind, hits in kinds.items()} for judge, kinds in found.items()}


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


def measure(clean: int, other: int, seed: int) -> dict:
    """All ceilings; `clean` and `other` are images a concept."""
    pipeline, net = Pipeline(flux()), judge_net()
    report = {"guidance": GUIDANCE, "steps": STEPS, "seed": seed, "floors": FLOORS, "renders": renders(net, 10, seed)}
    for number, name in enumerate(("clean", "synonyms", *DISTORTED)):
        cell = question(name, clean if name == "clean" else other, seed + 10_000 * number)
        hits, _ = read_cell(pipeline, net, cell)
        report[name] = {judge: by_concept(found, cell) for judge, found in hits.items()}
        print(name, {judge: report[name][judge]["all"]["value"] for judge in hits}, flush=True)
    report["same_label_when_shuffled"] = same_under_shuffling(pipeline, net, max(2, other // 4), seed + 90_000)
    report["below"] = below(report["clean"])
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=70, help="images a concept with clean prompts")
    parser.add_argument("--other", type=int, default=20, help="images a concept with synonyms and with each distortion")
    parser.add_argument("--seed", type=int, default=7_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "ceilings.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sheet(Pipeline(flux()), args.out.with_name("sheet.png"), args.seed)
    args.out.write_text(json.dumps(measure(args.clean, args.other, args.seed), indent=1) + "\n")


if __name__ == "__main__":
    main()
