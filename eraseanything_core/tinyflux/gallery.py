"""What the boards train, draw and read, kept on disk: a board that was stopped goes on where it was.

Everything is filed under a hash of all that decides it (configuration, weights, prompts, seeds), so a changed recipe
or a new decoder never meets an old picture. Latents are kept instead of pictures: a new decoder or judge reads them
again without a new trajectory.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import tokens
from ..methods.attention_map import override
from ..methods.prompt_filter import filtered
from ..sampling import euler, shifted_sigmas
from . import GUIDANCE, MU, STEPS, judge, oracle
from .captions import SYNONYMS
from .erasers import destroyed, recipe
from .measure import merged
from .pipeline import Pipeline, TrainerText, noise
from .recipe import Cell

BATCH = 32  # pictures drawn between two looks at the clock
UNTRAINED = ("un-erased", "no-op", "destroy", "prompt filter", "attention map")


class OutOfTime(Exception):
    """The board's time is up; what is done is on disk."""


def digest(*parts) -> str:
    """A short hash of modules and of whatever else has a faithful repr."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, tensor in part.state_dict().items():
                found.update(
                    name.encode() + tensor.detach().contiguous().flatten().cpu().view(torch.uint8).numpy().tobytes()
                )
        else:
            found.update(repr(part).encode() + b"\0")
    return found.hexdigest()[:20]


class AttentionErased(Pipeline):
    """Deletes the attention columns of some words on ComfyUI's own forward."""

    def __init__(self, base: Pipeline, words: Sequence[str]):
        super().__init__(base.module, base.encoder, base.decode)
        self.words = words

    def latents(self, prompts: list[str], seeds: list[int], guidance: float, steps: int = STEPS) -> Tensor:
        states, pooled = (x.to(torch.bfloat16) for x in self.encode(prompts))
        fixed = {"context": states, "y": pooled, "guidance": torch.full((len(seeds),), guidance, dtype=torch.bfloat16)}
        options = {"optimized_attention_override": override(self.columns(prompts))}

        def step(x: Tensor, t: Tensor) -> Tensor:
            x, t = x.to(torch.bfloat16), t.to(torch.bfloat16)
            return self.module(x, t, **fixed, transformer_options=dict(options)).float()

        with torch.no_grad():
            return list(euler(step, noise(seeds), shifted_sigmas(steps, MU)))[-1][0]

    def columns(self, prompts: list[str]) -> Tensor:
        """[n, text tokens], one at the tokens of the words."""
        text = TrainerText(self)
        select = torch.zeros(len(prompts), self.encode(prompts)[0].shape[1])
        for row, prompt in enumerate(prompts):
            for word in self.words:
                if tokens.occurs(prompt, word):
                    select[row, tokens.positions(text.pieces(prompt), word)] = 1
        return select


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
        self.base, self.net, self.folder, self.until, self.settings = base, net, folder, until, settings
        self.erased: dict[tuple, Pipeline] = {}
        self.sources = digest(base.module, base.encoder)
        self.judges = {
            "oracle": digest(base.decode, Path(oracle.__file__).read_text()),
            "cnn": digest(base.decode, net),
        }
        for kind in ("loras", "latents", "readings"):
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def check_time(self):
        if time.monotonic() >= self.until:
            raise OutOfTime

    def lora(self, row: str, concept: str, seed: int) -> dict[str, Tensor]:
        """The LoRA of a row that trains, trained now unless it was before."""
        plan = recipe(row, concept, seed, **self.settings)
        path = self.folder / "loras" / f"{digest(row, plan.config, self.sources)}.safetensors"
        if not path.exists():
            self.check_time()
            begun = time.monotonic()
            tensors = {key: tensor.bfloat16() for key, tensor in plan.train(self.base, plan.config).items()}
            header = {"row": row, "concept": concept, "seconds": f"{time.monotonic() - begun:.1f}"}
            save_file(tensors, path.with_suffix(".part"), header)
            path.with_suffix(".part").replace(path)
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
        if row == "destroy":
            module = destroyed(self.base.module, seed)
        elif row == "no-op":
            module = merged(self.base.module, self.lora("EraseAnything", concept, seed), strength=0.0)
        else:
            module = merged(self.base.module, self.lora(row, concept, seed))
        return Pipeline(module, self.base.encoder, self.base.decode)

    def latents(self, row: str, concept: str, cell: Cell, seed: int = 0) -> tuple[str, Tensor]:
        """A cell as a row draws it, and the name that it is filed under; weights and prompts that are equal share it.

        Raises:
            OutOfTime: between two batches; those before are kept.
        """
        pipeline, prompts = self.pipeline(row, concept, seed), cell.prompts
        if row == "prompt filter":
            prompts = [filtered(prompt, known_names(concept)) for prompt in prompts]
        deleted = known_names(concept) if row == "attention map" and any_named(prompts, concept) else ()
        name = digest(pipeline.module, pipeline.encoder, prompts, cell.seeds, GUIDANCE, STEPS, deleted)
        path = self.folder / "latents" / f"{name}.safetensors"
        done = load_file(path)["x"] if path.exists() else torch.zeros(0, 16, 12, 12, dtype=torch.float16)
        source = pipeline if deleted or row != "attention map" else self.base
        for i in range(len(done), len(prompts), BATCH):
            self.check_time()
            x = source.latents(prompts[i : i + BATCH], cell.seeds[i : i + BATCH], GUIDANCE)
            done = torch.cat([done, x.half()])
            save_file({"x": done}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return name, done.float()

    def readings(self, row: str, concept: str, cell: Cell, judge_name: str, seed: int = 0) -> list[str | None]:
        """What a judge sees in each picture of a cell, of the kind that was asked; None is a rejection."""
        name, x = self.latents(row, concept, cell, seed)
        path = self.folder / "readings" / f"{digest(name, self.judges[judge_name])}.json"
        if not path.exists():
            self.check_time()
            found = self.read(self.pictures(x), cell.kinds, judge_name)
            path.with_suffix(".part").write_text(json.dumps(found))
            path.with_suffix(".part").replace(path)
        return json.loads(path.read_text())

    def pictures(self, x: Tensor) -> Tensor:
        """[n, 3, 96, 96] in [0, 1]."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = [self.base.decode(p.contiguous(memory_format=torch.channels_last)) for p in x.split(64)]
        return torch.cat(parts).float().clamp(0, 1)

    def read(self, pictures: Tensor, kinds: list[str], judge_name: str) -> list[str | None]:
        labels: list[str | None] = [None] * len(pictures)
        for kind in set(kinds):
            rows = [i for i, k in enumerate(kinds) if k == kind]
            read = (
                oracle.read(pictures[rows], kind)
                if judge_name == "oracle"
                else judge.read(self.net, pictures[rows], kind)
            )
            for i, reading in zip(rows, read, strict=True):
                labels[i] = getattr(reading, kind)
        return labels


def known_names(concept: str) -> tuple[str, ...]:
    """The names that an eraser is told: the concept's own and its two training synonyms."""
    return (concept, *SYNONYMS[concept][:2])


def any_named(prompts: list[str], concept: str) -> bool:
    return any(tokens.occurs(prompt, name) for prompt in prompts for name in known_names(concept))
