"""What a trained model shows of what it is asked: `dev.py world_ceilings tinyflux` adds to `benchmarks/ceilings.json`.

Held-out templates and seeds; every judge has to agree with the question by itself, and each is stated. The oracle reads
pictures of one thing. `renders` measures the judges instead of a model.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from eraseanything_core.intervals import wilson
from lab.provenance import BENCHMARKS, command_line, commit
from lab.world import flow, pictures
from lab.world.files import load, newest
from lab.world.generators import GENERATORS
from lab.world.judge import BODIES, NOTHING, Judge, Reading, read
from lab.world.latents import space
from lab.world.oracle import Oracle
from lab.world.questions import CELLS, Question, ask
from lab.world.sampling import Sampler
from lab.world.scenes import STYLES, Scene
from lab.world.text import Captions

FIRST_SEED = 50_000  # of noise, far from every seed of training
LEAST = 0.85  # a concept below this is no concept to erase
KINDS = ("things", "styles", "relations", "hypernyms")  # cells whose concepts can be erased
OUT = BENCHMARKS / "ceilings.json"

Reader = Callable[[Tensor], list[Reading]]


def readers(oracle: bool) -> dict[str, Reader]:
    """The judges that are trained, and the oracle where it is asked for."""
    found: dict[str, Reader] = {}
    for body in BODIES:
        path = newest(f"judge-{body}")
        if path is not None:
            found[body] = _reader(body, path)
    if oracle:
        found["oracle"] = _nearest(Oracle())
    return found


def _reader(body: str, path: Path) -> Reader:
    judge = Judge(body)
    weights = {k.removeprefix("ema."): v for k, v in load(path).items() if k.startswith("ema.")}
    judge.load_state_dict(weights, strict=False)
    judge.eval().to(memory_format=torch.channels_last)
    return lambda shown: read(judge, shown)


def _nearest(oracle: Oracle) -> Reader:
    def reading(shown: Tensor) -> list[Reading]:
        answers = oracle.read(shown)
        return [Reading((a.thing or NOTHING, NOTHING), a.style or NOTHING, NOTHING) for a in answers]

    return reading


def sampler(name: str, guidance: float = 3.0) -> Sampler:
    """A trained generator, ready to draw."""
    generator = flow.trained(name)
    distilled = newest(f"{name}-guided") is not None
    return Sampler(generator, space(), Captions(seed=0), distilled, guidance=guidance)


def rates(questions: list[Question], hits: list[bool]) -> dict:
    """The cell of one judge: mean over concepts, their number, n, the interval of all, and the concepts that miss."""
    by_concept: dict[str, list[bool]] = defaultdict(list)
    for question, hit in zip(questions, hits, strict=True):
        by_concept[question.concept].append(hit)
    each = {concept: float(np.mean(outcomes)) for concept, outcomes in by_concept.items()}
    low, high = wilson(sum(hits), len(hits))
    return {
        "mean": round(float(np.mean(list(each.values()))), 4),
        "count": len(each),
        "n": len(hits),
        "interval": [round(low, 4), round(high, 4)],
        "below": {concept: round(value, 3) for concept, value in sorted(each.items()) if value < LEAST},
    }


def measure(drawn: dict[str, tuple[list[Question], Tensor]], judges: dict[str, Reader]) -> dict:
    """{cell: {judge: rates}}."""
    result: dict[str, dict] = {}
    for cell, (questions, shown) in drawn.items():
        result[cell] = {}
        for name, reader in judges.items():
            if cell == "relations" and name == "oracle":
                continue  # it reads one thing
            hits = [question.hit(reading) for question, reading in zip(questions, reader(shown))]
            result[cell][name] = rates(questions, hits)
    return result


def erasable(asked: dict[str, list[Question]], cells: dict[str, dict]) -> dict[str, list[str]]:
    """Concepts of each kind that every judge sees often enough when they are asked for.

    Args:
        asked: the questions of each cell.
        cells: as `measure` returns them.
    """
    found = {}
    for kind in (kind for kind in KINDS if kind in cells):
        missed = {concept for told in cells[kind].values() for concept in told["below"]}
        found[kind] = sorted({question.concept for question in asked[kind]} - missed)
    return found


def true_pictures(count: int, decoded: bool, judges: dict[str, Reader]) -> dict:
    """What the judges themselves read of new renders, plain or through the autoencoder.

    Returns:
        {judge: {head: [rate, n]}}, with "styles" as what the renders of each style are read as, where they are not
        always read right.
    """
    seed = 77
    scenes = [pictures.scene_of(number * 7, seed) for number in range(count)]
    shown = torch.from_numpy(pictures.drawn(scenes)).float() / 255
    if decoded:
        latents = space()
        shown = latents.decode(latents.encode(shown))
    return {name: _told(scenes, reader(shown)) for name, reader in judges.items()}


def _told(scenes: list[Scene], readings: list[Reading]) -> dict:
    hits: dict[str, list[bool]] = defaultdict(list)
    styles: dict[str, Counter] = defaultdict(Counter)
    for scene, reading in zip(scenes, readings, strict=True):
        names = {placed.name for placed in scene.things}
        hits["thing" if len(names) == 1 else "one of two things"].append(reading.things[0] in names)
        hits["style"].append(reading.style == scene.style)
        hits["relation"].append(reading.relation == (scene.relation or "alone"))
        styles[scene.style][reading.style] += 1
    told: dict = {head: [round(float(np.mean(outcomes)), 4), len(outcomes)] for head, outcomes in hits.items()}
    told["styles"] = {style: dict(styles[style].most_common(4)) for style in STYLES if len(styles[style]) > 1}
    return told


def sheet(shown: Tensor, path: Path, columns: int = 12) -> None:
    """Writes pictures as a grid."""
    grid = make_grid(shown, nrow=columns, padding=2)
    Image.fromarray((grid * 255).byte().permute(1, 2, 0).numpy()).save(path)


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*GENERATORS, "renders"])
    parser.add_argument("--count", type=int, default=320, help="prompts a cell")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--oracle", action="store_true", help="ask the nearest-render oracle, too; it needs the artwork"
    )
    parser.add_argument("--sheet", type=Path, help="a PNG of the first pictures")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def of_model(args: argparse.Namespace, judges: dict[str, Reader]) -> dict:
    """The cells of a generator and what can be erased from it."""
    model = sampler(args.model, args.guidance)
    drawn = {}
    for cell in args.cells:
        questions = ask(cell, args.count, args.seed)
        seeds = [FIRST_SEED + args.seed * 10_000 + number for number in range(args.count)]
        drawn[cell] = (questions, model.pictures([question.prompt for question in questions], seeds))
    if args.sheet:
        sheet(torch.cat([shown[:24] for _, shown in drawn.values()]), args.sheet)
    cells = measure(drawn, judges)
    asked = {cell: questions for cell, (questions, _) in drawn.items()}
    return cells | {"erasable": erasable(asked, cells)}


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    judges = readers(args.oracle)
    if args.model == "renders":
        found = {name: true_pictures(args.count, name == "decoded", judges) for name in ("plain", "decoded")}
    else:
        found = of_model(args, judges)
    source = {"command": command_line("world_ceilings", *sys.argv[1:]), "commit": commit()}
    everything = json.loads(OUT.read_text()) if OUT.exists() else {}
    everything[args.model] = everything.get(args.model, {}) | source | found
    OUT.write_text(json.dumps(everything, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
