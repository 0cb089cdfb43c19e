"""What the boards train, draw and read, kept on disk: a board that was stopped goes on where it was.

Everything is filed under a hash of all that decides it (configuration, weights, prompts, seeds), so a changed recipe
or a new decoder never meets an old picture. Latents are kept instead of pictures: a new decoder or judge reads them
again without a new trajectory.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eraseanything_core.attention.erase import DELETION, MapErasure, override
from eraseanything_core.concepts import matching
from eraseanything_core.erasers.prompt_filter import filtered
from eraseanything_core.evaluation.weight_attacks import (
    REFLUX,
    ConceptExamples,
    InversionConfig,
    RelearnConfig,
    invert,
    relearn,
)
from eraseanything_core.sampling import euler, shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU, STEPS, judge, oracle
from eraseanything_core.tinyflux.concepts import CONCEPTS, SYNONYMS, kind_of
from eraseanything_core.tinyflux.judges import JudgeFeatures
from lab.boards.erasers import destroyed, recipe
from lab.provenance import digest
from lab.tinyflux import precision
from lab.tinyflux.erase import trainable
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, TrainerText, noise
from lab.tinyflux.recipe import TEMPLATES, Cell

BATCH = 50  # pictures drawn between two looks at the clock
ATTACKERS = {
    "relearning": RelearnConfig(guidance=GUIDANCE),
    "awaking": RelearnConfig(guidance=GUIDANCE, **REFLUX),
    "inversion": InversionConfig(guidance=GUIDANCE),
}


class OutOfTime(Exception):
    """The board's time is up; what is done is on disk."""


def keep(path: Path, tensors: dict[str, Tensor], begun: float | None, **header: str) -> str:
    """Writes tensors whole or not at all, with the processor's seconds since `begun`, if known; returns these."""
    seconds = {} if begun is None else {"processor_seconds": f"{time.process_time() - begun:.3f}"}
    save_file(tensors, path.with_suffix(".part"), header | seconds)
    path.with_suffix(".part").replace(path)
    return seconds.get("processor_seconds", "")


def seconds_of(path: Path) -> float | None:
    """The processor seconds that `keep` wrote into a file; None where it wrote none."""
    with safe_open(path, "pt") as file:
        seconds = (file.metadata() or {}).get("processor_seconds")
    return None if seconds is None else float(seconds)


class AttentionErased(Pipeline):
    """Scales the attention columns of some words on ComfyUI's own forward; `fuzzy` finds similar words too."""

    def __init__(self, base: Pipeline, words: Sequence[str], config: MapErasure = DELETION, fuzzy: bool = False):
        super().__init__(base.module, base.encoder, base.decode)
        self.words = words
        self.config = config
        self.fuzzy = fuzzy

    def latents(self, prompts: list[str], seeds: list[int], guidance: float, steps: int = STEPS) -> Tensor:
        states, pooled = (x.to(precision.DTYPE) for x in self.encode(prompts))
        fixed = {"context": states, "y": pooled, "guidance": torch.full((len(seeds),), guidance, dtype=precision.DTYPE)}
        options = {"optimized_attention_override": override(self.columns(prompts), self.config)}

        def step(x: Tensor, t: Tensor) -> Tensor:
            x = x.to(precision.DTYPE)
            t = t.to(precision.DTYPE)
            return self.module(x, t, **fixed, transformer_options=dict(options)).float()

        with torch.no_grad():
            return list(euler(step, noise(seeds), shifted_sigmas(steps, MU)))[-1][0]

    def columns(self, prompts: list[str]) -> Tensor:
        """[n, text tokens], one at the tokens of the words."""
        text = TrainerText(self)
        select = torch.zeros(len(prompts), self.encode(prompts)[0].shape[1])
        for row, prompt in enumerate(prompts):
            pieces = text.pieces(prompt)
            for word in self.words:
                if matching.occurs(prompt, word) or self.fuzzy and matching.find_similar(pieces, word):
                    for span in matching.locate(pieces, word, self.fuzzy)[0]:
                        select[row, list(span)] = 1
        return select


class Inverted(Pipeline):
    """A pipeline that draws from the states of an inversion, whatever the prompt."""

    def __init__(self, base: Pipeline, context: Tensor, pooled: Tensor):
        super().__init__(base.module, base.encoder, base.decode)
        self.states = (context, pooled)

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        return tuple(x.expand(len(prompts), *x.shape[1:]) for x in self.states)


class Gallery:
    """Rows of boards as LoRAs, latents and readings in a folder.

    Args:
        base: the un-erased pipeline.
        net: the CNN judge.
        folder: holds what is kept.
        until: `time.monotonic()` from which `OutOfTime` is raised before the next piece of work.
        settings: go over the configuration of every trained row, for a smoke test.
    """

    def __init__(self, base: Pipeline, net: judge.JudgeNet, folder: Path, until: float = float("inf"), **settings):
        self.base = base
        self.net = net
        self.folder = folder
        self.until = until
        self.settings = settings
        self.erased: dict[tuple, Pipeline] = {}
        self.took: dict[str, dict[Path, float | None]] = {"training": {}, "drawing": {}, "reading": {}}
        self.cells: dict[tuple[str, int], Cell] = {}  # what was read, by the name of its latents and their number
        self.sources = digest(base.module, base.encoder)
        self.judges = {
            "oracle": digest(base.decode, Path(oracle.__file__).read_text()),
            "cnn": digest(base.decode, net),
        }
        for kind in ("loras", "latents", "readings"):
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def check_time(self):
        """Raises `OutOfTime` when the time is up."""
        if time.monotonic() >= self.until:
            raise OutOfTime

    def lora(self, row: str, concept: str, seed: int) -> dict[str, Tensor]:
        """The LoRA of a row that trains, trained now unless it was before."""
        plan = recipe(row, concept, seed, **self.settings)
        path = self.folder / "loras" / f"{digest(row, plan.config, self.sources)}.safetensors"
        if not path.exists():
            self.check_time()
            begun = time.process_time()
            tensors = {key: tensor.bfloat16() for key, tensor in plan.train(self.base, plan.config).items()}
            seconds = keep(path, tensors, begun, row=row, concept=concept)
            print(f"{row}, {concept}: trained in {seconds} s of the processor", flush=True)
        return self.trained(path)

    def trained(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a file, whose training time is noted."""
        self.took["training"][path] = seconds_of(path)
        return load_file(path)

    def pipeline(self, row: str, concept: str, seed: int) -> Pipeline:
        """What draws a row's pictures once its prompts are rewritten."""
        key = (row, concept, seed)
        if row in ("un-erased", "prompt filter"):
            return self.base
        if key not in self.erased:
            self.erased.clear()  # one at a time is enough, and each holds a whole model
            self.erased[key] = self._pipeline(*key)
        return self.erased[key]

    def _pipeline(self, row: str, concept: str, seed: int) -> Pipeline:
        if row == "attention map":
            return AttentionErased(self.base, known_names(concept))
        row, _, attack = row.partition(" + ")
        erased = self.drawn_by(self.module(row, concept, seed))
        return self.attacked(row, concept, seed, erased, attack) if attack else erased

    def drawn_by(self, module: nn.Module) -> Pipeline:
        """A pipeline with other weights and the same text encoder and decoder."""
        return Pipeline(module, self.base.encoder, self.base.decode)

    def module(self, row: str, concept: str, seed: int) -> nn.Module:
        """The weights of a row; "prompt filter" and "attention map" have those of the un-erased model."""
        if row in ("un-erased", "prompt filter", "attention map"):
            return self.base.module
        if row == "destroy":
            return destroyed(self.base.module, seed)
        loras = {"no-op": [("EraseAnything", concept, 0.0)]}.get(row) or parts_of(row, concept)
        module = self.base.module
        for name, erased, strength in loras:
            module = merged(module, self.lora(name, erased, seed), strength)
        return module

    def attacked(self, row: str, concept: str, seed: int, erased: Pipeline, attack: str) -> Pipeline:
        """What draws for someone who holds a row's weights and brings the concept back.

        Args:
            row, concept, seed: whose weights they are.
            erased: draws with them.
            attack: one of `ATTACKERS` and its steps.
        """
        result = self.learnt(row, concept, seed, erased, attack)
        if attack.startswith("inversion"):
            return Inverted(erased, result["context"], result["pooled"])
        return self.drawn_by(merged(erased.module, result))

    def learnt(self, row: str, concept: str, seed: int, erased: Pipeline, attack: str) -> dict[str, Tensor]:
        """The LoRA of an attack, or the states of an inversion.

        Learnt from ten pictures of the un-erased model, of the concept's first training sentence.
        """
        kind, _, steps = attack.partition(" ")
        config = replace(ATTACKERS[kind], steps=int(steps), seed=seed)
        path = self.folder / "loras" / f"{digest('attacked', erased.module, concept, config)}.safetensors"
        if not path.exists():
            self.check_time()
            prompt = TEMPLATES[kind_of(concept)][0].format(concept)
            begun = time.process_time()
            pictures = self.base.latents([prompt] * 10, list(range(10)), GUIDANCE)
            with trainable(erased) as model:
                arguments = model, TrainerText(erased), ConceptExamples(pictures, prompt, concept), config
                if kind == "inversion":
                    tensors = dict(zip(("context", "pooled"), invert(*arguments)[:2], strict=True))
                else:
                    tensors = relearn(*arguments)[0]
            keep(path, tensors, begun, row=row, concept=concept, attack=attack)
            print(f"{row}, {concept}: attacked by {attack} steps", flush=True)
        return self.trained(path)

    def latents(self, row: str, concept: str, cell: Cell, count: int, seed: int = 0) -> tuple[str, Tensor]:
        """The first pictures of a cell as a row draws them, and the name that they are filed under.

        Equal weights and prompts share it, whatever the row; a larger count goes on where a smaller one ended.

        Raises:
            OutOfTime: between two batches; those before are kept.
        """
        pipeline = self.pipeline(row, concept, seed)
        prompts = cell.prompts
        if row == "prompt filter":
            prompts = [filtered(prompt, known_names(concept)) for prompt in prompts]
        deleted = known_names(concept) if row == "attention map" and any_named(prompts, concept) else ()
        states = pipeline.states if isinstance(pipeline, Inverted) else ()
        name = digest(pipeline.module, pipeline.encoder, prompts, cell.seeds, GUIDANCE, STEPS, deleted, *states)
        path = self.folder / "latents" / f"{name}.safetensors"
        done = load_file(path)["x"] if path.exists() else torch.zeros(0, 16, 12, 12, dtype=torch.float16)
        source = pipeline if deleted or row != "attention map" else self.base
        while len(done) < count:
            self.check_time()
            before = seconds_of(path) if path.exists() else 0.0
            begun = time.process_time()
            batch = slice(len(done), min(count, len(done) + BATCH))
            x = source.latents(prompts[batch], cell.seeds[batch], GUIDANCE)
            done = torch.cat([done, x.half()])
            keep(path, {"x": done}, None if before is None else begun - before)  # with the batches of earlier calls
            print(f"{row}, {concept}: {len(done)} pictures drawn", flush=True)
        seconds = seconds_of(path)
        self.took["drawing"][path] = seconds and seconds * count / len(done)
        return name, done[:count].float()

    def readings(
        self, row: str, concept: str, cell: Cell, count: int, judge_name: str, seed: int = 0
    ) -> list[str | None]:
        """What a judge sees in each picture of a cell, of the kind that was asked; None is a rejection."""
        name, x = self.latents(row, concept, cell, count, seed)
        self.cells[name, count] = cell
        return self.labels(name, x, cell, judge_name)

    def labels(self, name: str, x: Tensor, cell: Cell, judge_name: str) -> list[str | None]:
        """What a judge sees in latents that are filed under a name."""
        path = self.folder / "readings" / f"{digest(name, len(x), self.judges[judge_name])}.json"
        clock = path.with_suffix(".processor_seconds")
        if not path.exists():
            self.check_time()
            begun = time.process_time()
            readings = self.read(self.pictures(x), cell.kinds, judge_name)
            clock.write_text(f"{time.process_time() - begun:.3f}")
            path.with_suffix(".part").write_text(json.dumps(readings))
            path.with_suffix(".part").replace(path)
        self.took["reading"][path] = float(clock.read_text()) if clock.exists() else None
        return json.loads(path.read_text())

    def spent(self) -> dict[str, int]:
        """The processor's seconds, of all threads, that the pieces asked for took, whenever that was.

        What else the machine did does not count. A piece that several rows share is counted once; `untimed` pieces
        were made before times were kept.
        """
        known = {
            work: [s for s in seconds_by_path.values() if s is not None] for work, seconds_by_path in self.took.items()
        }
        totals = {work: round(sum(seconds)) for work, seconds in known.items()}
        untimed = sum(len(seconds_by_path) - len(known[work]) for work, seconds_by_path in self.took.items())
        return totals | {"sum": sum(totals.values()), "untimed": untimed}

    def agreement(self, one: str, other: str) -> list[bool]:
        """Whether two judges say the same of each picture that was read for the board."""
        pairs = []
        for (name, count), cell in self.cells.items():
            x = load_file(self.folder / "latents" / f"{name}.safetensors")["x"][:count].float()
            pairs += zip(*(self.labels(name, x, cell, judge_name) for judge_name in (one, other)), strict=True)
        return [a == b for a, b in pairs]

    def pictures(self, x: Tensor) -> Tensor:
        """[n, 3, 96, 96] in [0, 1]."""
        with torch.no_grad(), precision.autocast():
            parts = [self.base.decode(p.contiguous(memory_format=torch.channels_last)) for p in x.split(64)]
        return torch.cat(parts).float().clamp(0, 1)

    def features(self, x: Tensor) -> Tensor:
        """The CNN's pooled features of latents' pictures, [n, 160]."""
        with torch.no_grad():
            return JudgeFeatures()(self.pictures(x))

    def read(self, pictures: Tensor, kinds: list[str], judge_name: str) -> list[str | None]:
        labels: list[str | None] = [None] * len(pictures)
        for kind in set(kinds[: len(pictures)]):
            rows = [i for i, k in enumerate(kinds[: len(pictures)]) if k == kind]
            read = (
                oracle.read(pictures[rows], kind)
                if judge_name == "oracle"
                else judge.read(self.net, pictures[rows], kind)
            )
            for i, reading in zip(rows, read, strict=True):
                labels[i] = getattr(reading, kind)
        return labels


def parts_of(row: str, concept: str) -> list[tuple[str, str, float]]:
    """The LoRAs that a row merges: (row, concept, strength); "sum of 3", "mean of 3", "scale 0.5" are of our eraser."""
    how, *rest = row.split(" ")
    if how in ("sum", "mean"):
        count = int(rest[-1])
        others = [c for kind, names in CONCEPTS.items() if kind != kind_of(concept) for c in names]
        weight = 1.0 if how == "sum" else 1.0 / count
        return [("EraseAnything", c, weight) for c in (concept, *others[: count - 1])]
    if how == "scale":
        return [("EraseAnything", concept, float(rest[0]))]
    return [(row, concept, 1.0)]


def known_names(concept: str) -> tuple[str, ...]:
    """The names that an eraser trains on: the concept's own and its two training synonyms."""
    return (concept, *SYNONYMS[concept][:2])


def any_named(prompts: list[str], concept: str) -> bool:
    """Whether a prompt names the concept."""
    return any(matching.occurs(prompt, name) for prompt in prompts for name in known_names(concept))
