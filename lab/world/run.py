"""A training that can stop at any time: weights, their moving average and the number of steps are kept together."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lab.world.files import CACHE, Log, load, newest, save


@dataclass(frozen=True)
class Pace:
    """How long and how fast a training goes.

    Attributes:
        steps: in all, over every session.
        lr: of the plateau.
        warmup: steps after each start, since the optimiser's moments start anew.
        ema: decay of the moving average of the weights.
        checkpoint: seconds between two.
        report: steps between two lines of the log.
        average_every: steps between two updates of the moving average.
        falls: share of the steps, the last ones, over which the learning rate falls to zero.
    """

    steps: int
    lr: float
    warmup: int = 100
    ema: float = 0.998
    checkpoint: float = 90.0
    report: int = 50
    average_every: int = 4
    falls: float = 0.2

    def at(self, step: int, since_start: int) -> float:
        """The learning rate of a step, `since_start` steps after this session began."""
        rise = min(1.0, (since_start + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / (self.falls * self.steps))
        return self.lr * rise * max(0.01, fall)


class Run:
    """A module, its optimisers and its checkpoint.

    Args:
        name: of the checkpoint and the log.
        module: starts from the checkpoint, where there is one.
        optimizers: over the module's parameters; their state is not kept.
    """

    def __init__(self, name: str, module: nn.Module, optimizers: list[torch.optim.Optimizer], pace: Pace) -> None:
        self.name = name
        self.module = module
        self.optimizers = optimizers
        self.pace = pace
        self.log = Log(name)
        self.step = 0
        self.kept: dict[str, Tensor] = {}  # what else the checkpoint holds
        path = newest(name)
        if path is not None:
            self._resume(load(path))
        self.began = self.step
        self.ema = {key: value.detach().clone() for key, value in self._floats().items()}
        if path is not None:
            self._resume_average(load(path))

    def _floats(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.module.state_dict().items() if value.is_floating_point()}

    def _resume(self, saved: dict[str, Tensor]) -> None:
        self.step = int(saved["step"])
        self.kept = {key: value for key, value in saved.items() if key != "step" and key[:4] not in ("now.", "ema.")}
        weights = {key.removeprefix("now."): value for key, value in saved.items() if key.startswith("now.")}
        if not weights:
            # Committed checkpoints hold the average alone.
            weights = {key.removeprefix("ema."): value for key, value in saved.items() if key.startswith("ema.")}
        self.module.load_state_dict(weights, strict=False)

    def _resume_average(self, saved: dict[str, Tensor]) -> None:
        for key in self.ema:
            if f"ema.{key}" in saved:
                self.ema[key].copy_(saved[f"ema.{key}"])

    def save(self) -> None:
        """Writes the checkpoint."""
        now = {f"now.{key}": value for key, value in self._floats().items()}
        average = {f"ema.{key}": value for key, value in self.ema.items()}
        step = {"step": torch.tensor(self.step)}
        save(now | average | self.kept | step, CACHE / f"{self.name}.safetensors")

    def update(self, loss: Tensor) -> None:
        """One step of the optimisers, and of the average."""
        rate = self.pace.at(self.step, self.step - self.began)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                # A group's own `scale` makes its rate a multiple of the pace's.
                group["lr"] = rate * group.get("scale", 1.0)
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        if self.step % self.pace.average_every == 0:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        # A short memory at first: the fresh weights would stay in a long average for thousands of steps.
        decay = min(self.pace.ema, (1 + self.step) / (10 + self.step)) ** self.pace.average_every
        torch._foreach_lerp_(list(self.ema.values()), list(self._floats().values()), 1 - decay)

    def go(self, losses: Callable[[], dict[str, Tensor]], minutes: float) -> None:
        """Steps until the pace's steps or the minutes of this session are used.

        Args:
            losses: of a new batch; their sum is what is minimised.
        """
        torch.manual_seed(1000 + self.step)  # another seed after a stop: the same would draw the same batches again
        self.module.train()
        until = time.monotonic() + 60 * minutes
        saved = time.monotonic()
        last = (time.monotonic(), time.process_time())
        sums: dict[str, float] = {}
        since = 0  # steps since the last report
        while self.step < self.pace.steps and time.monotonic() < until:
            parts = losses()
            self.update(torch.stack(list(parts.values())).sum())
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value.item()
            since += 1
            if self.step % self.pace.report == 0:
                now = (time.monotonic(), time.process_time())
                spent = {name: b - a for name, a, b in zip(("seconds_a_step", "of_cpu"), last, now)}
                self.log(self.step, {name: value / since for name, value in (sums | spent).items()})
                sums = {}
                since = 0
                last = now
            if time.monotonic() - saved > self.pace.checkpoint:
                self.save()
                saved = time.monotonic()
        self.save()
