"""Attacks erasers of TinyFlux with searches: `python scripts/dev.py attack_benchmark`.

An eraser is trained as in the demo. A genetic search then looks for prompts in the text encoder, an inversion looks
for text states through the erased model, and a LoRA relearns the concept from ten pictures, with and without a loss
that raises the attention to it. TinyFlux's CNN reads every picture; prompts are held out and seeds are new. Writes
benchmarks/attack_benchmark.json and .md.
"""

import argparse
import json

import torch

from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.evaluation import genetic_attack, metrics, weight_attacks
from eraseanything_core.evaluation.judges import correct
from eraseanything_core.tinyflux import GUIDANCE, MU
from eraseanything_core.tinyflux.concepts import SYNONYMS, kind_of
from eraseanything_core.tinyflux.judges import CnnJudge
from lab.boards.gallery import Inverted
from lab.provenance import BENCHMARKS, command_line, commit, write_report
from lab.tinyflux.erase import train_eraser
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, TrainerText
from lab.tinyflux.pipeline import flux as tinyflux
from lab.tinyflux.recipe import TEMPLATES, cells, erase_config

STEPS = (10, 25, 50)
WAYS = {"relearned": {}, "relearned, attention awoken": weight_attacks.REFLUX}


class AttackBenchmark:
    """One concept, its eraser, and ten pictures of it that the un-erased model drew."""

    def __init__(self, before: Pipeline, concept: str, count: int):
        self.before = before
        self.concept = concept
        self.count = count
        self.judge = CnnJudge(kind_of(concept))
        self.cell = cells(concept, count, seed=2)["acc_e"]
        self.eraser = train_eraser(before, erase_config(concept)).lora
        self.after = self.drawn_by(merged(before.module, self.eraser))
        prompt = TEMPLATES[kind_of(concept)][0].format(concept)
        latents = before.latents([prompt] * 10, list(range(900_000, 900_010)), GUIDANCE)
        self.examples = weight_attacks.ConceptExamples(latents, prompt, concept)

    def drawn_by(self, module) -> Pipeline:
        """A pipeline with other weights and the same text encoder and decoder."""
        return Pipeline(module, self.before.encoder, self.before.decode)

    def shown(self, pipeline: Pipeline, prompts: list[str] | None = None) -> list[bool]:
        """Whether each picture shows the concept, by the cell's seeds."""
        pictures = pipeline.pictures(prompts or self.cell.prompts, self.cell.seeds)
        return correct(self.judge.read(pictures), [self.concept] * self.count)

    def seam(self) -> FluxModel:
        """The erased model, to attack."""
        module = frozen_view(tinyflux(dtype=torch.float32), torch.float32)
        model = FluxModel(module, "cpu", torch.float32, MU)
        model.attach_frozen_lora(self.eraser)
        return model

    def bred(self, searches: int) -> dict:
        """Success of bred prompts, of the pictures in which the un-erased model obeys them."""
        words = genetic_attack.words_of_pieces(list(self.before.tokenizer.get_vocab()))
        templates = TEMPLATES[kind_of(self.concept)]

        def encode(prompts: list[str]):
            return self.before.encode(prompts)[0]

        bred = [
            genetic_attack.genetic_search(
                encode, self.concept, templates, words, SYNONYMS[self.concept], genetic_attack.GeneticConfig(seed=s)
            )[0]
            for s in range(searches)
        ]
        prompts = [bred[i % searches] for i in range(self.count)]
        success = metrics.attack_success(self.shown(self.before, prompts), self.shown(self.after, prompts))
        return success | {"prompts": bred}

    def inverted(self) -> dict:
        """The rate of pictures drawn from the states of an inversion."""
        config = weight_attacks.InversionConfig(guidance=GUIDANCE)
        model = self.seam()
        with exact_gradients(model.module):
            text = TrainerText(self.before)
            context, pooled, _ = weight_attacks.invert(model, text, self.examples, config)
        return metrics.rate(self.shown(Inverted(self.after, context, pooled)))

    def relearned(self, way: str) -> dict[int, dict]:
        """The rate after each number of steps."""
        rates = {}
        for steps in STEPS:
            config = weight_attacks.RelearnConfig(steps=steps, guidance=GUIDANCE, **WAYS[way])
            model = self.seam()
            with exact_gradients(model.module):
                text = TrainerText(self.before)
                lora, _ = weight_attacks.relearn(model, text, self.examples, config)
            rates[steps] = metrics.rate(self.shown(self.drawn_by(merged(self.after.module, lora))))
        return rates


def run(before: Pipeline, concept: str, count: int, searches: int) -> dict:
    """Everything on one concept."""
    benchmark = AttackBenchmark(before, concept, count)
    report = {
        "concept": concept,
        "un-erased": metrics.rate(benchmark.shown(before)),
        "erased": metrics.rate(benchmark.shown(benchmark.after)),
    }
    print(json.dumps(report), flush=True)
    report |= {"bred prompts": benchmark.bred(searches), "inverted": benchmark.inverted()}
    report |= {way: benchmark.relearned(way) for way in WAYS}
    report["half back"] = {way: half_back(report, way) for way in WAYS}
    print(json.dumps(report), flush=True)
    return report


def half_back(report: dict, way: str) -> int | None:
    """The first number of steps after which the concept is half back."""
    rates = [rate["value"] for rate in report[way].values()]
    ends = (report["un-erased"], report["erased"])
    place = weight_attacks.recovered(rates, *(rate["value"] for rate in ends))
    return None if place is None else list(report[way])[place]


def _share(rate: dict) -> str:
    return "none" if rate["value"] is None else f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def markdown(report: dict) -> str:
    """A table a concept: how often the concept is seen."""
    lines = [
        "| concept | model | pictures that show the concept (95 % interval) | pictures |",
        "| --- | --- | ---: | ---: |",
    ]
    for part in report["concepts"]:
        rows = [(name, part[name]) for name in ("un-erased", "erased", "inverted")]
        rows += [(f"{way}, {steps} steps", rate) for way in WAYS for steps, rate in part[way].items()]
        rows.append(("bred prompts, of those that the un-erased model obeys", part["bred prompts"]))
        lines += [f"| {part['concept']} | {name} | {_share(rate)} | {rate['n']} |" for name, rate in rows]
    for part in report["concepts"]:
        steps = "; ".join(f"{way}: {n or f'not in {STEPS[-1]}'}" for way, n in part["half back"].items())
        lines += ["", f"Steps after which {part['concept']} is half back: {steps}."]
    source = f"`{report['command']}` at {report['commit']}; judge {report['judge']}."
    return "\n".join([*lines, "", source, ""])


def main():
    """Attacks an eraser of each concept and writes the report."""
    parser = argparse.ArgumentParser(prog="dev.py attack_benchmark", description=__doc__)
    parser.add_argument("concepts", nargs="*", default=["fish"], help="of TinyFlux's world")
    parser.add_argument("--images", type=int, default=60, help="pictures a row")
    parser.add_argument("--searches", type=int, default=5, help="prompts that are bred")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = Pipeline(tinyflux())
    parts = [run(before, concept, args.images, args.searches) for concept in args.concepts]
    options = ("--images", args.images, "--searches", args.searches)
    command = command_line("attack_benchmark", *args.concepts, *options)
    report = {"command": command, "commit": commit(), "judge": "TinyFlux CNN", "concepts": parts}
    write_report(BENCHMARKS / "attack_benchmark", report, markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
