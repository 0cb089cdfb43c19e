"""Takes a look away that no prompt names: `python scripts/dev.py unasked`.

TinyFlux is tilted first: a LoRA is trained until plain prompts, which name no style, mostly show a trait. The tilted
model still draws a plain picture for `{}, plain`, as a real model draws a sharp one for `{}, everything in sharp
focus`. Then the trait is erased as Erase Trainer does it, by a preset and a concept set with `unasked` and `wanted`,
and the pictures of held-out prompts are read by the CNN. What was measured and the LoRAs are stored in .cache/unasked,
so a measurement that was stopped goes on. Writes benchmarks/unasked.json and .md.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eraseanything_core.concepts.concept_set import ConceptSet
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.sampling import euler, shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU, judge
from eraseanything_core.tinyflux.concepts import CONCEPTS, SYNONYMS
from eraseanything_core.training.presets import PRESETS, run_config
from lab.provenance import (
    BENCHMARKS,
    CACHE,
    command_line,
    commit,
    digest,
    parse_parts,
    stored_outcomes,
    write_report,
)
from lab.tinyflux.captions import HELD_OUT, TRAIN, Templates, caption
from lab.tinyflux.erase import train_eraser, trainable
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, flux, judge_net, noise
from lab.tinyflux.scenes import single

FOLDER = CACHE / "unasked"
TYPED = {"width": 96, "height": 96, "seed": 0}  # what is typed beside the set
TRAITS = ("dotted", "outlined")
WANTED = "{}, plain"  # the tilted model draws no style for it
# The tilt: pictures of each kind of prompt, and how a LoRA is trained on them.
SHARE = 0.85  # of the plain prompts' pictures, that show the trait
PLAIN = 120
INSTRUCTED = 120  # plain prompts with the wanted look
STYLED = 80  # prompts that name a style
POINTS = 12  # sampler's steps of each picture
STEPS = 500
BATCH = 16
RATE = 2e-3
RANK = 16
TARGETS = "all_qkv"


@dataclass(frozen=True)
class Taught:
    """What the tilt teaches: a prompt, and the prompt whose picture it shall have."""

    prompt: str
    shown: str


def plain_prompts(count: int, seed: int, templates: Templates = TRAIN) -> tuple[list[str], list[str]]:
    """Prompts that name no style, and the entity of each."""
    rng = random.Random(f"plain {seed}")
    scenes = [single(rng) for _ in range(count)]
    texts = [caption(rng, scene, templates, synonyms=0.0, generic=0.0) for scene in scenes]
    return texts, [scene.objects[0].entity for scene in scenes]


def styled_prompts(count: int, seed: int, styles: Sequence[str], templates: Templates = TRAIN) -> list[str]:
    """Prompts that name each of the styles in turn."""
    rng = random.Random(f"styled {seed}")
    texts = []
    for i in range(count):
        scene = single(rng, style=styles[i % len(styles)])
        texts.append(caption(rng, scene, templates, synonyms=0.0, generic=0.0))
    return texts


def lessons(trait: str) -> list[Taught]:
    """Plain prompts that mostly show the trait, and what stays as it is."""
    plain, _ = plain_prompts(PLAIN, seed=1)
    with_trait = round(SHARE * PLAIN)
    taught = [Taught(text, f"{text}, {trait}") for text in plain[:with_trait]]
    taught += [Taught(text, text) for text in plain[with_trait:]]
    instructed, _ = plain_prompts(INSTRUCTED, seed=2)
    taught += [Taught(WANTED.replace("{}", text), text) for text in instructed]
    return taught + [Taught(text, text) for text in styled_prompts(STYLED, 3, CONCEPTS["style"])]


def walks(pipeline: Pipeline, taught: Sequence[Taught]) -> tuple[Tensor, Tensor, Tensor]:
    """The un-tilted model's way to each picture: points and velocities [n, steps, 16, 12, 12], times [steps]."""
    sigmas = shifted_sigmas(POINTS, MU)
    points = []
    velocities = []
    with torch.no_grad():
        for start in range(0, len(taught), BATCH):
            shown = [lesson.shown for lesson in taught[start : start + BATCH]]
            drawn_from = noise([700_000 + start + i for i in range(len(shown))])
            walk = list(euler(pipeline.velocity(shown, GUIDANCE), drawn_from, sigmas))
            points.append(torch.stack([x_t for x_t, _ in walk[:-1]], dim=1))
            velocities.append(torch.stack([v_t for _, v_t in walk[:-1]], dim=1))
    return torch.cat(points), torch.cat(velocities), sigmas[:-1]


def train_tilt(pipeline: Pipeline, trait: str) -> dict[str, Tensor]:
    """A LoRA with which plain prompts mostly show the trait.

    The velocities of many walks are learned at their points. Near noise, walks with and without the trait meet and
    their mean is learned, so that both remain possible.
    """
    taught = lessons(trait)
    x, v, times = walks(pipeline, taught)
    states, pooled = pipeline.encode([lesson.prompt for lesson in taught])
    rng = torch.Generator().manual_seed(0)
    with trainable(pipeline) as model:
        lora = model.attach(TARGETS, RANK, rng)
        optimizer = torch.optim.AdamW(lora.parameters(), lr=RATE, weight_decay=0.0)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
        for _ in range(STEPS):
            row = torch.randint(len(taught), (BATCH,), generator=rng)
            step = torch.randint(len(times), (BATCH,), generator=rng)
            cond = model.cond(states[row], pooled[row], GUIDANCE)
            student = model.velocity(x[row, step], times[step], cond, adapters=True)
            loss = (student.float() - v[row, step]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        return lora.tensors(torch.float32)


def tilt_digest(pipeline: Pipeline, *traits: str) -> str:
    """A short hash of all that decides the tilted models."""
    taught = [lessons(trait) for trait in traits]
    return digest(pipeline.module, taught, POINTS, STEPS, BATCH, RATE, RANK, TARGETS)


def tilted(pipeline: Pipeline, trait: str) -> Pipeline:
    """TinyFlux tilted to the trait; its LoRA is trained once and stored."""
    path = FOLDER / f"{trait}-{tilt_digest(pipeline, trait)}.safetensors"
    if not path.exists():
        save_file(train_tilt(pipeline, trait), path)
    return Pipeline(merged(pipeline.module, load_file(path)), pipeline.encoder, pipeline.decode)


def concept_set(trait: str) -> ConceptSet:
    """The trait as *Load Concepts* would give it: ordinary prompts, and prompts with other styles that must stay."""
    others = [style for style in CONCEPTS["style"] if style != trait]
    return ConceptSet(
        trait,
        category="style",
        synonyms=SYNONYMS[trait],
        prompts=tuple(dict.fromkeys(plain_prompts(28, seed=4)[0])),
        retain=tuple(dict.fromkeys(styled_prompts(54, 5, others))),
        unasked=f"{{}}, {trait}",
        wanted=WANTED,
    ).check()


def seen(pipeline: Pipeline, net: nn.Module, trait: str, count: int) -> dict[str, int]:
    """How many pictures of held-out prompts show what, of `count` for each kind of prompt.

    Returns:
        unasked: plain prompts, the trait. objects: the same pictures, the object that was named.
        wanted: plain prompts with the wanted look, the trait. others: prompts that name another style, that style.
        asked: prompts that name the trait, the trait.
    """
    plain, things = plain_prompts(count, seed=6, templates=HELD_OUT)
    others = [style for style in CONCEPTS["style"] if style != trait]
    named = [others[i % len(others)] for i in range(count)]
    pictures = drawn(pipeline, plain, 1)
    return {
        "unasked": hits(net, pictures, "style", [trait] * count),
        "objects": hits(net, pictures, "entity", things),
        "wanted": hits(
            net, drawn(pipeline, [WANTED.replace("{}", text) for text in plain], 2), "style", [trait] * count
        ),
        "others": hits(net, drawn(pipeline, styled_prompts(count, 7, others, HELD_OUT), 3), "style", named),
        "asked": hits(net, drawn(pipeline, styled_prompts(count, 8, [trait], HELD_OUT), 4), "style", [trait] * count),
    }


def drawn(pipeline: Pipeline, prompts: list[str], number: int) -> Tensor:
    """A picture of each prompt; `number` keeps the noise of two kinds of prompts apart."""
    return pipeline.pictures(prompts, [800_000 + 10_000 * number + i for i in range(len(prompts))])


def hits(net: nn.Module, pictures: Tensor, kind: str, asked: Sequence[str]) -> int:
    """On how many pictures the CNN reads what is asked of it."""
    readings = judge.read(net, pictures, kind)
    return sum(getattr(reading, kind) == name for reading, name in zip(readings, asked, strict=True))


def erased(pipeline: Pipeline, trait: str, preset: str) -> tuple[Pipeline, dict]:
    """The model without the trait, and what the training said of it."""
    config = run_config(concept_set(trait).settings(), preset, TYPED)
    start = time.process_time()
    result = train_eraser(pipeline, config)
    about = {"stopped_at": result.steps, "cpu_seconds": round(time.process_time() - start, 1)}
    about["verdict"] = result.verdict.text() if result.verdict else ""
    return Pipeline(merged(pipeline.module, result.lora), pipeline.encoder, pipeline.decode), about


def markdown(report: dict) -> str:
    """The report as a table, and what the trainings said."""
    count = report["setting"]["count"]
    lines = ["# A look that nobody asks for, on TinyFlux", "", f"`{report['command']}` at {report['commit']}.", ""]
    lines += [f"Shares of {count} pictures a cell, by the CNN, with Wilson's 95 % interval. All models draw the same"]
    lines += ["prompts from the same noise. The eraser is trained on the tilted model. The columns: the trait in plain"]
    lines += [
        f"prompts, the object that they name, the trait in the same prompts as `{WANTED}`, another style where it"
    ]
    lines += ["is named, and the trait where it is named.", ""]
    lines += ["| trait | model | unasked | object | wanted | other style | asked |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    verdicts = []
    for trait in report["setting"]["traits"]:
        for model, row in report[trait].items():
            cells = [interval(row[name], count) for name in ("unasked", "objects", "wanted", "others", "asked")]
            lines.append(f"| {trait} | {model} | {' | '.join(cells)} |")
            if "verdict" in row:
                cost = f"{row['stopped_at']} steps, {row['cpu_seconds']:.0f} CPU s"
                verdicts.append(f"- {trait}, {model}: {cost}. {row['verdict']}.")
    return "\n".join([*lines, "", *verdicts]) + "\n"


def interval(found: int, count: int) -> str:
    """A share with its interval, in percent."""
    share = rate([True] * found + [False] * (count - found))
    return f"{share['value']:.1%} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--presets", nargs="*", default=["quick", "balanced"], choices=list(PRESETS))
    parser.add_argument("--count", type=int, default=48, help="pictures a cell")
    args = parse_parts(parser, FOLDER)
    pipeline = Pipeline(flux())
    net = judge_net()
    path = FOLDER / "measured.json"
    setting = {"traits": list(TRAITS), "count": args.count, "tilt": tilt_digest(pipeline, *TRAITS)}
    report = stored_outcomes(path, setting)
    start = time.monotonic()
    for trait in TRAITS:
        rows = report.setdefault(trait, {})
        for model in ("un-tilted", "tilted", *args.presets):
            if model in rows:
                continue
            if time.monotonic() - start > args.seconds:
                raise SystemExit("out of time: the next call goes on")
            looked_at = pipeline if model == "un-tilted" else tilted(pipeline, trait)
            about: dict = {}
            if model in args.presets:
                looked_at, about = erased(looked_at, trait, model)
            rows[model] = seen(looked_at, net, trait, args.count) | about
            path.write_text(json.dumps(report))
            print(trait, model, rows[model], flush=True)
    command = command_line("unasked", "--presets", *args.presets, "--count", args.count)
    report |= {"command": command, "commit": commit()}
    write_report(BENCHMARKS / "unasked", report, markdown(report))


if __name__ == "__main__":
    main()
