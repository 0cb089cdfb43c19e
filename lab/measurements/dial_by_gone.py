"""Holds the dial that needs no judge against a judge: `python scripts/dev.py strength --gone`.

An eraser of each of the boards' concepts is trained as the node does it, by a preset and with the word alone. Then its
pictures are read at five scales of the LoRA, by the gone score and by TinyFlux's CNN. The dial is measured as the node
measures it, and what it promises is held against the CNN on other pictures. The outcomes become a part of
benchmarks/strength.json and strength.md; every concept is stored in .cache/strength, so a stopped measurement goes on.
"""

import json
import time
from collections.abc import Sequence

import torch

from eraseanything_core.concepts import prompts
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.files import write_atomic
from eraseanything_core.lora.files import header_strings
from eraseanything_core.lora.headers import training_header
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.lora.strength import StrengthConfig, StrengthCurve, measure_curve
from eraseanything_core.sampling import shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU
from eraseanything_core.training.gone import HeldOut
from eraseanything_core.training.gone_dial import DIAL_STEPS, GoneDial, dial_config, dial_forwards
from eraseanything_core.training.presets import run_config
from lab.boards.benchmark_prompts import CONCEPTS
from lab.measurements.gone import sentences, shows
from lab.provenance import CACHE, command_line, commit
from lab.tinyflux.erase import train_eraser, trainable
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, flux, judge_net, noise, readers
from lab.tinyflux.recipe import cells

EVERY = tuple(concept for two in CONCEPTS.values() for concept in two)
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the LoRA, at which both read the same pictures
ASKED = (0.25, 0.5, 0.75)  # of the dial
PICTURES = 16  # of each
PRESET = "balanced"
PATH = CACHE / "strength" / "gone.json"


def looked_at(pipeline: Pipeline, named: Sequence[str], without: Sequence[str]) -> HeldOut:
    """Sentences with the concept and without it, as a look takes them."""

    def conds_of(texts: Sequence[str]):
        def conds(model, rows):
            states, pooled = pipeline.encode([texts[i] for i in rows])
            return model.cond(states, pooled, GUIDANCE)

        return conds

    asked = conds_of(named)
    drawn_from = noise(list(range(900_000, 900_000 + len(named))))
    return HeldOut(asked, asked, conds_of(without), drawn_from, shifted_sigmas(DIAL_STEPS, MU))


def dial_sentences(header: dict[str, str], images: int) -> tuple[list[str], list[str]]:
    """The sentences that the node looks at, with the concept and without it."""
    watched, _ = prompts.monitor_prompts(dial_config(header, "", False, images))
    return [each.concept.text for each in watched], [each.neutral.text for each in watched]


def compare(pipeline: Pipeline, cnn, model, eraser, concept: str, neutral: str) -> dict:
    """What the gone score and the CNN see in the same pictures, at each scale."""
    named, without = sentences(concept, neutral)
    dial = GoneDial(model, looked_at(pipeline, named[:PICTURES], without[:PICTURES]), eraser)
    outcomes: dict = {"readable": dial.pictures.readable.tolist(), "gone": [], "cnn": []}
    for scale in SCALES:
        drawn = dial.sample(torch.full((PICTURES,), scale))
        outcomes["gone"].append((~dial.lost(drawn)).tolist())
        outcomes["cnn"].append(shows(pipeline, cnn, drawn, concept))
    return outcomes


def measure(pipeline: Pipeline, net, concept: str) -> dict:
    """One eraser: the readings at fixed scales, its dial, and what the CNN sees at three places of the dial."""
    words = sample_offline(ConceptRequest(concept)).settings()
    trained = train_eraser(pipeline, run_config(words, PRESET, {"width": 96, "height": 96}))
    eraser = read_eraser(trained.lora, {}, concept)
    header = header_strings(training_header(trained.config, ""))
    images = StrengthConfig.images
    with trainable(pipeline) as model, torch.no_grad():
        outcomes = compare(pipeline, readers(net)["cnn"], model, eraser, concept, words["neutral"])
        dial = GoneDial(model, looked_at(pipeline, *dial_sentences(header, images)), eraser)
        curve = measure_curve(dial.sample, dial, images, StrengthConfig.halvings)
    outcomes |= {"pairs": trained.steps, "curve": json.loads(curve.to_json()), "dial": {}}
    for asked in ASKED:
        outcomes["dial"][str(asked)] = by_cnn(pipeline, net, concept, trained.lora, curve, asked)
    return outcomes


def by_cnn(pipeline: Pipeline, net, concept: str, lora: dict, curve: StrengthCurve, asked: float) -> list[bool]:
    """Whether pictures of other prompts and seeds still show the concept at a place of the dial."""
    erased = Pipeline(merged(pipeline.module, lora, curve.scale_at(asked)), pipeline.encoder, pipeline.decode)
    cell = cells(concept, PICTURES)["acc_e"]
    drawn = erased.latents(cell.prompts, cell.seeds, GUIDANCE, DIAL_STEPS)
    return shows(pipeline, readers(net)["cnn"], drawn, concept)


def summary(concepts: dict) -> dict:
    """Shares at each scale, and how far the two readings and the dial are off."""
    rows = {}
    for concept, row in concepts.items():
        readable = row["readable"]
        shares = {}
        for name in ("gone", "cnn"):
            shares[name] = [round(_share(hits, readable), 4) for hits in row[name]]
        dial = {asked: rate(hits) for asked, hits in row["dial"].items()}
        off = max(abs(share["value"] - (1 - float(asked))) for asked, share in dial.items())
        rows[concept] = shares | {"readable": sum(readable), "dial": dial, "dial_off": round(off, 4)}
        rows[concept] |= {"pairs": row["pairs"], "curve": row["curve"]}
    pairs = [(gone, cnn) for row in rows.values() for gone, cnn in zip(row["gone"], row["cnn"])]
    differences = [abs(gone - cnn) for gone, cnn in pairs]
    looks = {"n": len(pairs), "pictures": PICTURES}
    looks |= {"mean_difference": round(sum(differences) / len(pairs), 4), "largest_difference": max(differences)}
    offs = [row["dial_off"] for row in rows.values()]
    looks |= {"dial_off_mean": round(sum(offs) / len(offs), 4), "dial_off_largest": max(offs)}
    return looks | {"forwards": dial_forwards(StrengthConfig.images, StrengthConfig.halvings), "concepts": rows}


def _share(hits: list[bool], readable: list[bool]) -> float:
    counted = [hit for hit, readable_one in zip(hits, readable, strict=True) if readable_one]
    return sum(counted) / len(counted)


def markdown(part: dict) -> str:
    """The part of the report for people."""
    lines = ["## The gone score against the CNN", ""]
    lines += [
        f"Share of {part['pictures']} pictures that show the concept, by the gone score / by the CNN, at scales of the "
        f"LoRA. Mean difference of {part['n']} shares: {part['mean_difference']:.3f}; largest: "
        f"{part['largest_difference']:.3f}. The dial takes {part['forwards']:,} forwards; right of it, what the CNN "
        f"sees at three places of the dial, in {part['pictures']} pictures of other prompts. A straight dial has 0.75, "
        f"0.5 and 0.25. `{part['command']}` at {part['commit']}.",
        "",
        "| concept | " + " | ".join(f"{scale:g}" for scale in SCALES) + " | dial 0.25 | 0.5 | 0.75 | off the line |",
        "| --- |" + " ---: |" * (len(SCALES) + len(ASKED) + 1),
    ]
    for concept, row in part["concepts"].items():
        columns = [f"{gone:.2f} / {cnn:.2f}" for gone, cnn in zip(row["gone"], row["cnn"])]
        for share in row["dial"].values():
            columns.append(f"{share['value']:.2f} ({share['low']:.2f} to {share['high']:.2f})")
        lines.append(f"| {concept} | " + " | ".join(columns) + f" | {row['dial_off']:.3f} |")
    lines.append("")
    return "\n".join(lines)


def run(concepts: Sequence[str], seconds: float) -> dict | None:
    """Measures concepts that are not stored yet; returns the part of the report, None when the time is up."""
    stored = json.loads(PATH.read_text()) if PATH.exists() else {}
    pipeline = Pipeline(flux())
    net = judge_net()
    begun = time.monotonic()
    for concept in concepts:
        if concept in stored:
            continue
        if time.monotonic() - begun > seconds:
            return None
        stored[concept] = measure(pipeline, net, concept)
        write_atomic(PATH, json.dumps(stored).encode())
        print(concept, summary({concept: stored[concept]}), flush=True)
    part = summary({concept: stored[concept] for concept in concepts})
    return {"command": command_line("strength", "--gone", "--concepts", *concepts), "commit": commit()} | part
