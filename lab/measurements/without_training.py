"""Erasers that need no training, on TinyFlux: `python scripts/dev.py without_training`.

Rows of the same information get the same 96 captions, two synonyms, nine neighbours and neutral sentence, and all token
states. UCE as published gets the word's last state alone. `Erase Now` is the node's default with the word typed, and
`Erase at Sampling` that node's. NAG is ComfyUI's own, with the concept as its negative prompt.

What was measured is kept in .cache/without_training, so a run that was stopped goes on. Writes
benchmarks/without_training.json and .md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from comfy_extras.nodes_nag import NAGuidance
from torch import Tensor

from eraseanything_core import files
from eraseanything_core.concepts import prompts
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.erasers import double_projection, uce
from eraseanything_core.erasers.aligned_states import pooled_states, text_states
from eraseanything_core.erasers.at_sampling import Projection
from eraseanything_core.erasers.erase_now import ClosedFormConfig, Method, erase_now
from eraseanything_core.erasers.state_edit import linear_edit
from eraseanything_core.erasers.uce import TextStates
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.lora.key_styles import eraser_tensors
from eraseanything_core.sampling import euler, shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU, STEPS
from eraseanything_core.tinyflux.concepts import CONCEPTS, SYNONYMS, kind_of
from lab.boards.erasers import recipe
from lab.provenance import BENCHMARKS, CACHE, commit, parse_parts, write_report
from lab.tinyflux import precision
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, TrainerText, flux, judge_net, noise, readers
from lab.tinyflux.recipe import NEUTRAL, TEMPLATES, Cell, cells, kept_prompts

CONTEXT, POOLED = uce.LAYERS
LABELS = {"acc_e": "Acc_e ↓", "acc_g": "Acc_g ↓", "acc_ir": "Acc_ir ↑"}
SEED = 3  # of the cells' prompts and pictures
COMPARED = {"entity": ("a photo of a {}", "a photo of a thing"), "style": ("a {} ball", "a ball")}
SAMPLING = {"threshold": 0.5, "strength": 1.5, "end": 1.0}  # the node's defaults
NAG = {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}  # ComfyUI's defaults

Lora = dict[str, Tensor]


class TinyText:
    """TinyFlux's linears that read the text alone; see `erase_now.TextReader`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.keys = [CONTEXT]
        self.pooled = [POOLED]
        self.text = TrainerText(pipeline)
        module = pipeline.module
        self.weights = {CONTEXT: module.txt_in.weight.float(), POOLED: module.vector_in.in_layer.weight.float()}

    def weight(self, key: str) -> Tensor:
        return self.weights[key]

    def group(self, key: str) -> str:
        return key

    def read(self, texts: Iterable[str], progress: Callable[[int], None]) -> None:
        """Nothing is read ahead here."""

    def states(self, key: str, prompt: str) -> Tensor:
        context, pooled = self.text.encode(prompt)
        return context[0] if key == CONTEXT else pooled

    def pieces(self, key: str, prompt: str) -> list[str]:
        return self.text.pieces(prompt)


def same_information(concept: str, method: Method) -> ClosedFormConfig:
    """What every trained eraser of the boards is told."""
    kind = kind_of(concept)
    return ClosedFormConfig(
        concept,
        SYNONYMS[concept][:2],
        TEMPLATES[kind],
        tuple(c for c in CONCEPTS[kind] if c != concept),
        kept_prompts(concept, 96, seed=1),
        NEUTRAL[kind],
        method,
        sentences=1000,
        kept=1000,
    )


def closed_form(pipeline: Pipeline, config: ClosedFormConfig) -> Lora:
    """The LoRA of Erase Now's own function."""
    return eraser_tensors(erase_now(config, TinyText(pipeline), lambda done: None).eraser, torch.float32)


def by_proxies(pipeline: Pipeline, concept: str) -> Lora:
    """Double projection with its first step: the concept reads as what it shares with its neighbours."""
    config = same_information(concept, "double projection")
    reader = TinyText(pipeline)
    kind = kind_of(concept)
    near = [prompts.fill(t, c) for c in config.irrelevant for t in TEMPLATES[kind]]
    pairs, kept = config.pairs(), config.kept_prompts()
    eraser = {}
    for key in (CONTEXT, POOLED):

        def read(prompt: str, key: str = key) -> Tensor:
            return reader.states(key, prompt)

        if key == CONTEXT:
            states = text_states(pairs, kept, read, lambda prompt: reader.pieces(CONTEXT, prompt))
        else:
            states = pooled_states(pairs, kept, read)
        safe = torch.cat([read(prompt) for prompt in near])
        proxies = double_projection.proxies(states.erased, safe)
        edit = double_projection.change(TextStates(states.erased, proxies, states.kept))
        eraser[key] = linear_edit(reader.weight(key), edit).factors
    return eraser_tensors(eraser, torch.float32)


def of_board(row: str) -> Callable[[Pipeline, str], Lora]:
    """A row of the boards with its own settings."""

    def train(pipeline: Pipeline, concept: str) -> Lora:
        chosen = recipe(row, concept)
        return chosen.train(pipeline, chosen.config)

    return train


LORAS: dict[str, Callable[[Pipeline, str], Lora]] = {
    "UCE as published": of_board("UCE"),
    "UCE, same information": lambda pipeline, concept: closed_form(pipeline, same_information(concept, "UCE")),
    "double projection": lambda pipeline, concept: closed_form(
        pipeline, same_information(concept, "double projection")
    ),
    "double projection, proxies": by_proxies,
    "Erase Now": lambda pipeline, concept: closed_form(
        pipeline, ClosedFormConfig.of(sample_offline(ConceptRequest(concept)), "UCE", 0, 0)
    ),
    "MACE": of_board("MACE"),
}
STEPWISE = ("Erase at Sampling", "NAG")


class AtSampling(Pipeline):
    """A pipeline with Erase at Sampling's projection."""

    def __init__(self, base: Pipeline, concept: str, threshold: float, strength: float, end: float) -> None:
        super().__init__(base.module, base.encoder, base.decode)
        self.compared = [text.format(concept) for text in COMPARED[kind_of(concept)]]
        self.projection = Projection(threshold, strength)
        self.end = end

    def latents(self, prompts: list[str], seeds: list[int], guidance: float, steps: int = STEPS) -> Tensor:
        count = len(prompts)
        own = self.velocity(prompts, guidance)
        both = self.velocity([self.compared[0]] * count + [self.compared[1]] * count, guidance)
        times = shifted_sigmas(steps, MU)
        # ComfyUI's range of a sampling ends at the same shifted time.
        lowest = float(shifted_sigmas(1000, MU)[int(1000 * self.end)])

        def step(x: Tensor, t: Tensor) -> Tensor:
            v = own(x, t)
            if float(t.flatten()[0]) < lowest:
                return v
            concept, neutral = both(torch.cat((x, x)), torch.cat((t, t))).chunk(2)
            return self.projection(v, concept, neutral)[0]

        with torch.no_grad():
            return list(euler(step, noise(seeds), times))[-1][0]


class Nag(Pipeline):
    """A pipeline with ComfyUI's NAG, on ComfyUI's own forward, against the concept as the negative prompt."""

    def __init__(self, base: Pipeline, concept: str) -> None:
        super().__init__(base.module, base.encoder, base.decode)
        self.negative = COMPARED[kind_of(concept)][0].format(concept)
        patches: list[Any] = []
        recorder = SimpleNamespace(set_model_attn1_output_patch=patches.append, disable_model_cfg1_optimization=int)
        NAGuidance.execute(SimpleNamespace(clone=lambda: recorder), **NAG)
        self.patches = patches

    def latents(self, prompts: list[str], seeds: list[int], guidance: float, steps: int = STEPS) -> Tensor:
        count = len(prompts)
        states, pooled = (x.to(precision.DTYPE) for x in self.encode(prompts + [self.negative] * count))
        fixed = {"context": states, "y": pooled, "guidance": torch.full((2 * count,), guidance, dtype=precision.DTYPE)}

        def step(x: Tensor, t: Tensor) -> Tensor:
            options = {"patches": {"attn1_output_patch": self.patches}, "cond_or_uncond": [0, 1]}
            twice = torch.cat((x, x)).to(precision.DTYPE)
            v = self.module(twice, torch.cat((t, t)).to(precision.DTYPE), **fixed, transformer_options=options)
            return v[:count].float()

        with torch.no_grad():
            return list(euler(step, noise(seeds), shifted_sigmas(steps, MU)))[-1][0]


def drawn_by(row: str, base: Pipeline, concept: str, sampling: dict[str, float]) -> tuple[Pipeline, float]:
    """The pipeline of a row, and the processor's seconds that its eraser took."""
    begun = time.process_time()
    if row == "un-erased":
        return base, 0.0
    if row == "Erase at Sampling":
        return AtSampling(base, concept, **sampling), 0.0
    if row == "NAG":
        return Nag(base, concept), 0.0
    lora = LORAS[row](base, concept)
    return Pipeline(merged(base.module, lora), base.encoder, base.decode), time.process_time() - begun


def hits(pipeline: Pipeline, net: Any, cell: Cell) -> int:
    """How many pictures show what was asked, by the CNN."""
    pictures = pipeline.pictures(cell.prompts, cell.seeds, GUIDANCE)
    found = 0
    for kind in set(cell.kinds):
        rows = [i for i, own in enumerate(cell.kinds) if own == kind]
        for i, reading in zip(rows, readers(net)["cnn"](pictures[rows], kind), strict=True):
            found += getattr(reading, kind) == cell.concepts[i]
    return found


def main() -> None:
    """Measures what is missing, a row of a concept at a time, and writes what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", default="fish,outlined", help="erased ones; settings are chosen on others")
    parser.add_argument("--count", type=int, default=24, help="pictures a cell")
    parser.add_argument("--rows", default=",,".join(("un-erased", *LORAS, *STEPWISE)), help="separated by two commas")
    for name, value in SAMPLING.items():
        parser.add_argument(f"--{name}", type=float, default=value, help="of Erase at Sampling")
    cache = CACHE / "without_training"
    args = parse_parts(parser, cache)
    sampling = {name: getattr(args, name) for name in SAMPLING}
    begun = time.monotonic()
    base, net = Pipeline(flux()), judge_net()
    measured = {}
    for concept in args.concepts.split(","):
        for row in args.rows.split(",,"):
            name = f"{row} {sampling}" if row == "Erase at Sampling" else row
            path = cache / f"{concept} {args.count} {name}.json"
            if not path.exists() and time.monotonic() - begun < args.seconds:
                pipeline, seconds = drawn_by(row, base, concept, sampling)
                found = {"seconds": round(seconds, 2)}
                chosen = cells(concept, args.count, SEED)
                for cell_name in LABELS:
                    found[cell_name] = hits(pipeline, net, chosen[cell_name])
                files.write_atomic(path, json.dumps(found).encode())
                print(concept, row, found, flush=True)
            if path.exists():
                measured[f"{row}, {concept}"] = json.loads(path.read_text())
    report = {
        "command": f"python scripts/dev.py without_training --concepts {args.concepts} --count {args.count}",
        "commit": commit(),
        "sampling": sampling,
        "count": args.count,
        "rows": measured,
    }
    write_report(BENCHMARKS / "without_training", report, markdown(report))


def markdown(report: dict) -> str:
    """The report as a table."""
    lines = ["# Erasers without training, on TinyFlux", ""]
    lines.append(
        f"`{report['command']}` at {report['commit']}. {report['count']} pictures a cell, by the CNN; percent with "
        f"95 % intervals of pictures, not of concepts. Erase at Sampling: {report['sampling']}."
    )
    lines += ["", f"| eraser, concept | {' | '.join(LABELS.values())} | processor seconds |"]
    lines.append("| --- |" + " ---: |" * (len(LABELS) + 1))
    for name, found in report["rows"].items():
        shares = [rate([True] * found[cell] + [False] * (report["count"] - found[cell])) for cell in LABELS]
        texts = [f"{100 * s['value']:.0f} ({100 * s['low']:.0f} to {100 * s['high']:.0f})" for s in shares]
        lines.append(f"| {name} | {' | '.join(texts)} | {found['seconds']:g} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
