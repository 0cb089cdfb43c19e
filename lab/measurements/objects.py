"""Whether a picture of an erased style still shows its object, by eta: `python scripts/dev.py objects`.

The preset `balanced`, with the word alone typed, erases the validation styles. Eta pushes past the neutral sentence and
so erases sooner. A picture in which nothing can be seen counts as erased too, so the object that each prompt names
is read as well. Writes benchmarks/objects.json and .md.
"""

import argparse

from eraseanything_core.tinyflux.concepts import CONCEPTS, kind_of
from lab.provenance import BENCHMARKS, command_line, commit, write_report
from lab.tinyflux.erase import train_eraser
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, flux, judge_net, readers
from lab.tinyflux.recipe import VALIDATION, Cell, cells, preset_config

ETAS = (0.0, 1.0, 2.0, 3.0)
STYLES = tuple(concept for concept in VALIDATION if kind_of(concept) == "style")


def named_object(prompt: str) -> str:
    """The object that a prompt of the world names."""
    words = prompt.replace(",", "").split()
    return next(word for word in words if word in CONCEPTS["entity"])


def counts(pipeline: Pipeline, net, concept: str, cell: Cell) -> dict[str, int]:
    """Pictures that show the style, and pictures that show the object."""
    pictures = pipeline.pictures(cell.prompts, cell.seeds)
    read = readers(net)["cnn"]
    objects = [reading.entity for reading in read(pictures, "entity")]
    styles = [reading.style for reading in read(pictures, "style")]
    right = [seen == named_object(prompt) for seen, prompt in zip(objects, cell.prompts, strict=True)]
    return {"style": styles.count(concept), "object": sum(right)}


def measure(count: int, seeds: int) -> dict[str, dict[str, int]]:
    """The counts before erasing and for each eta, over all styles and seeds."""
    pipeline = Pipeline(flux())
    net = judge_net()
    totals: dict[str, dict[str, int]] = {}
    for concept in STYLES:
        for seed in range(seeds):
            cell = cells(concept, count, seed)["acc_e"]
            found = {"before": counts(pipeline, net, concept, cell)}
            for eta in ETAS:
                lora = train_eraser(pipeline, preset_config(concept, "balanced", seed=seed, eta=eta)).lora
                erased = Pipeline(merged(pipeline.module, lora), pipeline.encoder, pipeline.decode)
                found[f"{eta:g}"] = counts(erased, net, concept, cell)
            print(concept, seed, found, flush=True)
            for name, shown in found.items():
                total = totals.setdefault(name, {"style": 0, "object": 0, "n": 0})
                total["style"] += shown["style"]
                total["object"] += shown["object"]
                total["n"] += count
    return totals


def markdown(report: dict) -> str:
    """The report as a table."""
    lines = ["# The object of a picture whose style is erased", ""]
    lines += [
        f"`{report['command']}` at {report['commit']}. Preset `balanced`, {', '.join(STYLES)}, read by the CNN.",
        "",
    ]
    lines += ["| eta | the style is seen | the object is right | n |", "| --- | ---: | ---: | ---: |"]
    for eta, total in report["eta"].items():
        lines.append(f"| {eta} | {total['style']} | {total['object']} | {total['n']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=24, help="pictures a training")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    command = command_line("objects", "--count", args.count, "--seeds", args.seeds)
    report = {"command": command, "commit": commit(), "eta": measure(args.count, args.seeds)}
    write_report(BENCHMARKS / "objects", report, markdown(report))


if __name__ == "__main__":
    main()
