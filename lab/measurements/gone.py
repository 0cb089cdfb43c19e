"""Holds the gone score against a judge, picture by picture: `python scripts/dev.py gone`.

An eraser is trained on each concept and looked at on its way, from untrained to erased. The gone score and TinyFlux's
CNN read the same pictures. The threshold was chosen on the validation concepts alone. Every training is stored in
.cache/gone, so a measurement that was stopped goes on. Writes benchmarks/gone.json, .md and .png.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eraseanything_core.concepts import matching, prompts
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.files import write_atomic
from eraseanything_core.sampling import shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU
from eraseanything_core.tinyflux.concepts import CONCEPTS, kind_of
from eraseanything_core.training import trainer
from eraseanything_core.training.gone import THRESHOLD, HeldOut, PictureReader
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.presets import run_config
from lab.provenance import BENCHMARKS, CACHE, command_line, commit, parse_parts
from lab.tinyflux import precision
from lab.tinyflux.erase import trainable
from lab.tinyflux.pipeline import Pipeline, TrainerText, flux, judge_net, noise, readers
from lab.tinyflux.prompts import prompt_with
from lab.tinyflux.recipe import VALIDATION

PICTURES = 24
STEPS = 8  # of the sampler, as in a training's look
LOOKS = (10, 20, 40, 80, 160)  # pairs after which the student is looked at
# The learning rates stay as they are and nothing stops the run: every concept is seen at every stage.
CHANGE = {"width": 96, "height": 96, "steps": 160, "monitor_every": 0, "stop_when_gone": False, "adapt_rate": False}


def sentences(concept: str, neutral: str) -> tuple[list[str], list[str]]:
    """Prompts of TinyFlux's world with the concept, and the same without it."""
    rng = random.Random(f"gone {concept}")
    named = [prompt_with(rng, concept, None) for _ in range(PICTURES)]
    without = []
    for text in named:
        template = matching.replace(text, concept, "{}")
        without.append(prompts.neutral_prompt(template, neutral, rng))
    return named, without


def held_out(pipeline: Pipeline, named: list[str], without: list[str]) -> HeldOut:
    """The sentences as a look takes them."""

    def conds_of(texts: list[str]) -> Callable:
        def conds(model, rows):
            states, pooled = pipeline.encode([texts[i] for i in rows])
            return model.cond(states, pooled, GUIDANCE)

        return conds

    named_conds = conds_of(named)
    return HeldOut(named_conds, named_conds, conds_of(without), noise(list(range(PICTURES))), shifted_sigmas(STEPS, MU))


def shows(pipeline: Pipeline, cnn: Callable, x_0: torch.Tensor, concept: str) -> list[bool]:
    """Whether the CNN sees the concept in each picture."""
    with torch.no_grad(), precision.autocast():
        pictures = pipeline.decode(x_0.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)
    kind = kind_of(concept)
    return [getattr(reading, kind) == concept for reading in cnn(pictures, kind)]


def measure(pipeline: Pipeline, cnn: Callable, concept: str) -> dict:
    """One training: at each look both readings and the CNN's answer for every picture."""
    words = sample_offline(ConceptRequest(concept)).settings()
    plan = prepare(run_config(words, "balanced", CHANGE), TrainerText(pipeline))
    looks = []
    with trainable(pipeline) as model:
        reader = PictureReader(model, held_out(pipeline, *sentences(concept, words["neutral"])))

        def look(pair: int, losses: dict[str, float]) -> None:
            if pair in LOOKS:
                x_s = reader.student()
                reading = reader.read(x_s)
                row = {"pair": pair, "cnn": shows(pipeline, cnn, x_s, concept)}
                row |= {"nearness": reading.nearness.tolist(), "likelihood": reading.likelihood.tolist()}
                looks.append(row | {"mean": reading.mean().tolist()})

        trainer.train(model, plan, look)
        before = shows(pipeline, cnn, reader.x_c, concept)
    return {"concept": concept, "readable": reader.readable.tolist(), "cnn_before": before, "looks": looks}


def look_rates(row: dict) -> list[dict]:
    """Each look's rates over its readable pictures: by the CNN, by each reading, and by the gone score."""
    readable = np.array(row["readable"])
    rates = []
    for look in row["looks"]:
        by = {"cnn": np.array(look["cnn"]), "score": np.array(look["mean"]) > THRESHOLD}
        by["nearness"] = np.array(look["nearness"]) > 0.5
        by["likelihood"] = np.array(look["likelihood"]) > 0.5
        each = {name: float(hits[readable].mean()) for name, hits in by.items()}
        agree = (by["score"] == by["cnn"])[readable]
        rates.append({"concept": row["concept"], "pair": look["pair"], "agree": agree.tolist(), **each})
    return rates


def summary(rows: list[dict]) -> dict:
    """Agreement picture by picture, and correlation with the CNN's rate over looks."""
    looks = [look for row in rows for look in look_rates(row)]
    cnn = [look["cnn"] for look in looks]
    figures: dict = {"concepts": len(rows), "looks": len(looks)}
    figures["agreement"] = rate([hit for look in looks for hit in look["agree"]])
    for name in ("nearness", "likelihood", "score"):
        values = [look[name] for look in looks]
        figures[name] = {
            "pearson": round(float(np.corrcoef(values, cnn)[0, 1]), 4),
            "mean_difference": round(float(np.abs(np.subtract(values, cnn)).mean()), 4),
        }
    return figures


def report(rows: list[dict], about: dict) -> dict:
    """The concepts on which the threshold was chosen, the others, and every look."""
    parts = {
        "validation": [row for row in rows if row["concept"] in VALIDATION],
        "test": [row for row in rows if row["concept"] not in VALIDATION],
    }
    table = about | {"threshold": THRESHOLD, "pictures": PICTURES}
    table |= {name: summary(part) for name, part in parts.items() if part}
    looks = []
    for row in rows:
        for look in look_rates(row):
            looks.append({name: value for name, value in look.items() if name != "agree"})
    return table | {"looks": looks}


def markdown(table: dict) -> str:
    """The report as tables."""
    lines = ["# The gone score against a judge", "", f"`{table['command']}` at {table['commit']}.", ""]
    lines += [f"{table['pictures']} pictures a look; a picture shows the concept above {table['threshold']:g}.", ""]
    lines += ["| concepts | looks | agreement by picture | Pearson: score | nearness | likelihood | mean difference |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name in ("validation", "test"):
        if name in table:
            part = table[name]
            agree = part["agreement"]
            lines.append(
                f"| {part['concepts']} {name} | {part['looks']} | {agree['value']:.1%} "
                f"({agree['low']:.1%} to {agree['high']:.1%}, n = {agree['n']}) | {part['score']['pearson']:.3f} "
                f"| {part['nearness']['pearson']:.3f} | {part['likelihood']['pearson']:.3f} "
                f"| {part['score']['mean_difference']:.3f} |"
            )
    lines += ["", "![The rate by the gone score over the rate by the CNN, a point a look](gone.png)"]
    lines += ["", "Share of pictures that show the concept, CNN / gone score, after so many pairs:", ""]
    lines += ["| concept | " + " | ".join(map(str, LOOKS)) + " |", "| --- |" + " ---: |" * len(LOOKS)]
    concepts = list(dict.fromkeys(look["concept"] for look in table["looks"]))
    for concept in concepts:
        cells = []
        for look in table["looks"]:
            if look["concept"] == concept:
                cells.append(f"{look['cnn']:.2f} / {look['score']:.2f}")
        lines.append(f"| {concept} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(table: dict, path: Path) -> None:
    """The score's rate over the CNN's, one point a look."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 5))
    for name, colour in (("test", "tab:blue"), ("validation", "tab:orange")):
        chosen = [k for k in table["looks"] if (k["concept"] in VALIDATION) == (name == "validation")]
        axes.scatter([k["cnn"] for k in chosen], [k["score"] for k in chosen], s=18, alpha=0.6, c=colour, label=name)
    axes.plot([0, 1], [0, 1], c="0.7", lw=1)
    axes.set_xlabel("pictures that show the concept, by the CNN")
    axes.set_ylabel("pictures that show it, by the gone score")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    every = [concept for concepts in CONCEPTS.values() for concept in concepts]
    parser = argparse.ArgumentParser()
    parser.add_argument("--concepts", nargs="*", default=every)
    args = parse_parts(parser, CACHE / "gone")
    path = CACHE / "gone" / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    pipeline = Pipeline(flux())
    cnn = readers(judge_net())["cnn"]
    start = time.monotonic()
    for concept in args.concepts:
        if concept in {row["concept"] for row in rows}:
            continue
        if time.monotonic() - start > args.seconds:
            raise SystemExit("out of time: the next call goes on")
        rows.append(measure(pipeline, cnn, concept))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(concept, [(look["cnn"], look["score"]) for look in look_rates(rows[-1])], flush=True)
    table = report(rows, {"command": command_line("gone"), "commit": commit()})
    write_atomic(BENCHMARKS / "gone.json", (json.dumps(table, indent=1) + "\n").encode())
    write_atomic(BENCHMARKS / "gone.md", markdown(table).encode())
    plot(table, BENCHMARKS / "gone.png")


if __name__ == "__main__":
    main()
