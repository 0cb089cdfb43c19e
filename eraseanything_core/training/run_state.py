"""How far a run is: its losses and scores, the copy of its last whole pair, and when it is saved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..protocols import TrainableLora
from . import run_files
from .config import EraseConfig
from .monitor import Scores
from .objective import Losses, record_losses, weighted_sum
from .trajectory_cache import Epoch, TrajectoryCache

READ_EVERY = 10  # pairs between two reads of the losses; each read waits for the device


class RunState:
    """A run in progress, resumed from its folder if a state lies there.

    Args:
        config: the run's settings.
        lora: its factors; a stored state is loaded into them.
        optimizers: of the lower and the upper level, likewise.
        folder: of this run alone; None saves nothing.
        read_every: pairs between two reads of the losses.
        base: names the weights of the model.

    Attributes:
        steps_done: pairs of which both steps are in the LoRA.
        losses: one list a loss, and `loss` for the weighted sum; behind `steps_done` by what is pending.
        scores: `pair` and one list a score.
        pending: pairs and their losses that are still on the device.
    """

    def __init__(
        self,
        config: EraseConfig,
        lora: TrainableLora,
        optimizers: list[torch.optim.Optimizer],
        folder: Path | None,
        read_every: int = READ_EVERY,
        base: str = "",
    ) -> None:
        self.config = config
        self.lora = lora
        self.optimizers = optimizers
        self.folder = folder
        self.base = base
        self.read_every = read_every
        self.is_new = folder is not None and not folder.exists()
        self.losses: dict[str, list[float]] = {}
        self.scores: Scores = {}
        # Before the copy below: what an interrupt restores has to be the resumed state, not the fresh factors.
        if folder is not None:
            self.losses, self.scores = run_files.load_state(folder, lora, optimizers, config, base)
        self.steps_done = len(self.losses.get("loss", []))  # a state is saved with all of its losses read
        self.pending: list[tuple[int, Losses]] = []
        self.last_pair: tuple[list[Tensor], list[dict[str, Any]]] | None = None
        self.copy_pair()

    @property
    def weights(self) -> dict[str, Any]:
        """Weights of losses that the run has found, by setting; they go over those that were set."""
        # In the optimizer, whose groups are saved: the gradients they follow from cannot be measured again.
        weights: dict[str, Any] = self.optimizers[0].param_groups[0].setdefault("loss_weights", {})
        return weights

    def copy_pair(self) -> None:
        """Copies the factors and the optimizers, on their own device, so nothing waits for it."""
        self.last_pair = None  # the older copy goes first, else there are two at once
        factors = [parameter.detach().clone() for parameter in self.lora.parameters()]
        states = []
        for optimizer in self.optimizers:
            states.append(tree_map_only(Tensor, Tensor.clone, optimizer.state_dict()))
        self.last_pair = (factors, states)

    def restore_pair(self) -> None:
        """Undoes a pair that was interrupted: factors and optimizers are those of the last whole pair again.

        Where there is no copy, the memory ran out while a whole pair was being copied: nothing is to be undone.
        """
        if self.last_pair is None:
            return
        factors, states = self.last_pair
        # In place: the adapters in the model hold these very parameters.
        with torch.no_grad():
            for parameter, factor in zip(self.lora.parameters(), factors, strict=True):
                parameter.copy_(factor)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def epoch(self, cache: TrajectoryCache, number: int) -> Epoch:
        """The trajectories of an epoch: those of the stopped run, completed, or new ones.

        They are saved before the first pair. On-policy trajectories cannot be walked again, because the student that
        walked them has changed.
        """
        if self.folder is None:
            return cache.epoch(number)
        identity = run_files.identity(self.config, self.base)
        stored, covered = run_files.load_trajectories(self.folder, number, identity)
        epoch = cache.epoch(number, stored, covered)
        del stored  # it maps the file, and Windows replaces no file that is mapped
        last_pair = max(epoch.draws)
        # The run may have been resumed with more steps: its file then lacks the answers of the new pairs.
        if covered <= last_pair:
            run_files.save_trajectories(self.folder, number, epoch.tensors(), identity, last_pair + 1)
        return epoch

    def add_pair(self, step: int, losses: Losses) -> None:
        """Counts a whole pair."""
        self.pending.append((step, losses))
        self.steps_done = step + 1
        self.copy_pair()
        # The first pair is read at once: a run that begins with NaN ends here and not ten pairs later.
        if step == 0 or self.steps_done % self.read_every == 0:
            self.read_losses()

    def add_scores(self, scores: dict[str, float]) -> None:
        """Appends a measurement of the student after the last pair."""
        for name, value in {"pair": self.steps_done, **scores}.items():
            self.scores.setdefault(name, []).append(value)

    def read_losses(self) -> None:
        """Fetches the pending losses from the device.

        Raises:
            FloatingPointError: one of them is NaN or infinite.
        """
        for step, on_device in self.pending:
            # Summed on the CPU: they are read when the device is full, too.
            losses = {name: loss.cpu() for name, loss in on_device.items()}
            record_losses(self.losses, losses, weighted_sum(losses, replace(self.config, **self.weights)), step)
        self.pending = []

    def last_losses(self) -> dict[str, float]:
        """The losses that were read last."""
        return {name: values[-1] for name, values in self.losses.items()}

    def save(self, finished: bool = False) -> None:
        """Writes the state into the run's folder, once there is a whole pair.

        Args:
            finished: the run needs its trajectories no more.
        """
        self.read_losses()
        if self.folder is None or not self.steps_done:
            return
        run_files.save_state(
            self.folder, self.lora, self.optimizers, self.config, self.losses, self.scores, finished, self.base
        )

    def discard_if_new(self) -> None:
        """Removes the folder if this run has made it and has not saved a state in it."""
        if self.is_new and self.folder is not None:
            run_files.discard(self.folder)
