"""Erasing a concept: Algorithm 1 of the paper, with its losses as they are meant.

The trainer sees the model only as the seam that `flux.FluxModel` implements: a velocity, its attention columns, a
trajectory, and trainable slices that can be on (the student) or off (the teacher). All chance comes from the seed
and the step number, so a run that is resumed repeats the one that was never stopped.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from . import run_state
from .config import EraseConfig
from .monitor import Previews, Watch, stop_reason
from .objective import Losses, erase_graphs, preserve_graphs, weighted
from .optimizers import new_optimizer, set_rate
from .plan import Plan, conds, generator
from .trajectory_cache import Epoch, latent_shape, new_epoch, schedule

READ_EVERY = 10  # pairs between two looks at the losses with the shortcut `defer`: each look waits for the device


@dataclass
class EraseResult:
    """What a run leaves.

    Attributes:
        lora: tensors under their file keys, float32, on the CPU.
        losses: one list a loss, and `loss` for the weighted sum; one entry a step.
        steps: how many steps are in the LoRA.
        interrupted: whether the user stopped it.
        seconds: wall time of the loop.
        config: the configuration, prompts turned into templates.
        samples: latents [samples, c, h, w] of the concept before and after, when they were asked for.
        seen: the looks from outside, see watch.py: `pair` and one list a score.
        notes: what a person should know about the run, a line each.
    """

    lora: dict[str, Tensor]
    losses: dict[str, list[float]]
    steps: int
    interrupted: bool
    seconds: float
    config: EraseConfig
    samples: tuple[Tensor, Tensor] | None = None
    seen: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self, saved_as: str) -> str:
        """A few lines for people."""
        state = "interrupted after" if self.interrupted else "trained"
        ends = [f"{name} {v[0]:.4f} -> {sum(v[-10:]) / len(v[-10:]):.4f}" for name, v in self.losses.items() if v]
        return "\n".join(
            [
                f"{self.config.concept!r} erased: {state} {self.steps} of {self.config.steps} steps "
                f"in {self.seconds:.0f} s",
                f"{len(self.lora)} tensors ({self.config.targets}, rank {self.config.rank}) in {saved_as}",
                "first loss -> mean of the last ten: " + ", ".join(ends),
                *self.notes,
            ]
        )


def train(
    model,
    plan: Plan,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    run_dir: Path | None = None,
    show: Callable[[Tensor | None, "Run"], None] | None = None,
) -> EraseResult:
    """Trains the slices of `model`; Algorithm 1, one lower and one upper step a pair.

    Args:
        model: the seam, see `flux.FluxModel`.
        plan: from `prepare`.
        progress: called as progress(step, losses) after every pair, with the losses that were last looked at.
        stops: exceptions with which a user interrupts; from the first full pair on, the result then holds what
            was trained.
        run_dir: where the run's state is kept, every `save_every` pairs and when it stops, and resumed from.
        show: called as show(latents, run) every `monitor_every` pairs, with the three of `watch.Previews`, and with None
            whenever the losses were read.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    config = plan.config
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    optimizers = [optimizer(lora, rate, config) for rate in (config.lr_low, config.lr_up)]
    run = Run(config, lora, optimizers, run_dir, READ_EVERY if "defer" in plan.shortcuts else 1, plan.base)
    start = time.monotonic()
    try:
        interrupted = loop(model, plan, run, progress, stops, show)
        run.save(finished=not interrupted)
    except BaseException:
        run.withdraw()
        raise
    seconds, notes = time.monotonic() - start, [note for note in [stop_reason(config, run.seen)] if note]
    samples = compare(model, plan) if config.preview_images and not interrupted else None
    made = lora.tensors(torch.float32), run.history, run.done, interrupted, seconds, config
    return EraseResult(*made, samples, run.seen, notes)


def loop(model, plan: Plan, run: "Run", progress, stops, show) -> bool:
    """The pairs that are left, with what `train` was given; whether a user interrupted after a whole one."""
    config, first = plan.config, run.done
    try:
        eyes = Watch(model, plan) if config.monitor_every else None
        previews = Previews(model, plan) if show and eyes else None
        for step in range(first, config.steps):
            if stop_reason(config, run.seen):
                break
            if step == first or step % config.refresh_every == 0:
                epoch = None  # old pools go before new ones take their room
                epoch = run.epoch(model, plan, step // config.refresh_every)
            with model.uninterrupted():
                run.add(step, pair(model, plan, epoch, step, run.lora, run.optimizers))
            looked = eyes is not None and run.done % config.monitor_every == 0
            if looked:
                run.see(eyes.look())
            if show and (looked or not run.waiting):
                show(previews.row() if looked else None, run)
            if progress:
                progress(run.done, run.last())
            if config.save_every and run.done % config.save_every == 0:
                run.save()
    except stops:
        if not run.done:
            raise
        run.restore()
        return True
    except FloatingPointError:
        raise
    except Exception:
        run.restore()
        run.save()
        raise
    return False


def pair(model, plan: Plan, epoch: Epoch, step: int, lora, optimizers: list[torch.optim.Optimizer]) -> Losses:
    """One lower and one upper step; the losses, detached, on the device."""
    config, draws, found = plan.config, epoch.draws[step], {}
    lower, upper = optimizers
    rates = config.lr_low, config.lr_up
    for each, rate in zip(optimizers, rates, strict=True):
        set_rate(each, rate, step, config)

    def graphs(level: Callable, *more) -> Iterator[Tensor]:
        for draw in draws:
            for losses in level(model, plan, epoch, draw, *more):
                for name, loss in losses.items():
                    found[name] = found.get(name, 0) + loss.detach() / len(draws)
                yield weighted(losses, config) / len(draws)

    preserve = graphs(preserve_graphs, generator(config.seed, step + 2**40))
    if config.alternate:
        update(lower, lora, graphs(erase_graphs), config)
        update(upper, lora, preserve, config)
    else:
        update(lower, lora, chain(graphs(erase_graphs), preserve), config)
    return found


class Run:
    """How far a run is: its losses, and its state on disk.

    Attributes:
        done: pairs whose two steps are both in the LoRA.
        history: one list a loss, read from the device now and then.
        seen: the looks from outside, `pair` and one list a score.
    """

    def __init__(
        self, config: EraseConfig, lora, optimizers: list, folder: Path | None, read_every: int = READ_EVERY,
        base: str = "",
    ):  # fmt: skip
        self.config, self.lora, self.optimizers, self.folder, self.base = config, lora, optimizers, folder, base
        self.read_every, self.new = read_every, bool(folder) and not folder.exists()
        self.history, self.seen = run_state.resume(folder, lora, optimizers, config, base) if folder else ({}, {})
        self.done, self.waiting = len(self.history.get("loss", [])), []
        self.keep()

    def keep(self):
        """Copies what a pair changes; where it lies, so nothing waits for the device."""
        self.kept = None  # the copy before goes first
        states = tree_map_only(Tensor, Tensor.clone, [each.state_dict() for each in self.optimizers])
        self.kept = [p.detach().clone() for p in self.lora.parameters()], states

    def restore(self):
        """Puts a pair that was broken off back to the last whole one."""
        masters, states = self.kept
        with torch.no_grad():
            for parameter, master in zip(self.lora.parameters(), masters, strict=True):
                parameter.copy_(master)
        for each, state in zip(self.optimizers, states, strict=True):
            each.load_state_dict(state)

    def epoch(self, model, plan: Plan, number: int) -> Epoch:
        """The pools of an epoch: those that a stopped run has left, with what they lack, or new ones."""
        if not self.folder:
            return new_epoch(model, plan, number)
        of = run_state.identity(self.config, self.base)
        stored, covered = run_state.load_pools(self.folder, number, of)
        epoch = new_epoch(model, plan, number, stored, covered)
        del stored  # the map of a file that is to be replaced
        if covered <= max(epoch.draws):
            run_state.save_pools(self.folder, number, epoch.tensors(), of, max(epoch.draws) + 1)
        return epoch

    def add(self, step: int, found: Losses):
        self.waiting.append((step, found))
        self.done = step + 1
        self.keep()
        if step == 0 or self.done % self.read_every == 0:
            self.read()

    def see(self, scores: dict[str, float]):
        for name, value in {"pair": self.done, **scores}.items():
            self.seen.setdefault(name, []).append(value)

    def read(self):
        """Fetches the losses; raises FloatingPointError if one is NaN or infinite."""
        for step, found in self.waiting:
            record(self.history, found, weighted(found, self.config), step)
        self.waiting = []

    def last(self) -> dict[str, float]:
        return {name: values[-1] for name, values in self.history.items()}

    def save(self, finished: bool = False):
        """Keeps the state, once there is a whole pair."""
        self.read()
        if self.folder and self.done:
            told = self.history, self.seen
            run_state.save(self.folder, self.lora, self.optimizers, self.config, told, finished, self.base)

    def withdraw(self):
        """Removes the folder that this run has made, unless a state lies in it to go on from."""
        if self.new:
            run_state.discard(self.folder)


def compare(model, plan: Plan) -> tuple[Tensor, Tensor]:
    """Latents of the plain concept by the teacher and by the student, from the same noise."""
    config = plan.config
    sigmas, shape = schedule(model, config), (config.preview_images, *latent_shape(model, config))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
    cond = conds(model, plan, [plan.sentences[0].concept] * config.preview_images)
    before, after = (list(model.trajectory(cond, noise, sigmas, adapters))[-1][0] for adapters in (False, True))
    return before.cpu(), after.cpu()


def optimizer(lora, lr: float, config: EraseConfig) -> torch.optim.Optimizer:
    return new_optimizer(config.optimizer, lora.parameters(), lr, config.weight_decay)


def update(optimizer: torch.optim.Optimizer, lora, loss: Tensor | Iterable[Tensor], config: EraseConfig):
    """One clipped step on a loss, or on the sum of losses whose graphs are alive one after the other."""
    optimizer.zero_grad()
    for part in [loss] if torch.is_tensor(loss) else loss:
        part.backward()
    torch.nn.utils.clip_grad_norm_(lora.parameters(), config.max_grad_norm)
    optimizer.step()


def record(history: dict[str, list[float]], found: Losses, total: Tensor, step: int):
    """Appends a pair's losses.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    for name, loss in {**found, "loss": total}.items():
        value = float(torch.as_tensor(loss).detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} loss became {value} at step {step + 1}: lower the learning rates or take fp32"
            )
        history.setdefault(name, []).append(value)
