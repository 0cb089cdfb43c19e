"""What a pair does: how an eraser plugs into the trainer.

`Method` is EraseAnything itself. Every other eraser is a class in `erasers/` that replaces a part of it: the graphs of
its losses, the points they are taken at, or the whole step. What a method remembers from pair to pair lies in the
optimizer, which is copied, restored and saved, so that a resumed run has it too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..protocols import ErasableModel, TrainableLora
from .config import EraseConfig
from .draws import Draw
from .objective import Losses, erase_graphs, preserve_graphs, weighted_sum
from .optimizers import optimizer_step
from .plan import Plan
from .trajectory_cache import Epoch


@dataclass(frozen=True)
class Pair:
    """What a method is given for one pair.

    Attributes:
        model: student and teacher.
        plan: the run's.
        epoch: the trajectories, and the draws of every pair on them.
        step: the pair's number.
        lora: what is trained.
        optimizers: of the lower and the upper level, with the learning rates of this pair.
        rng: the pair's own chance; that of the draws is another.
    """

    model: ErasableModel
    plan: Plan
    epoch: Epoch
    step: int
    lora: TrainableLora
    optimizers: list[torch.optim.Optimizer]
    rng: torch.Generator

    @property
    def config(self) -> EraseConfig:
        """The run's settings."""
        return self.plan.config

    def remembered(self, name: str, default: Any) -> Any:
        """What a pair before this one has left under a name."""
        return self.optimizers[0].param_groups[0].get(f"method {name}", default)

    def remember(self, name: str, value: Any) -> None:
        """Leaves a value that JSON can hold; a list is not changed afterwards, for a copy of the run holds it too."""
        self.optimizers[0].param_groups[0][f"method {name}"] = value


Graphs = Callable[[Pair, Draw], Iterator[Losses]]
Extra = Callable[["Method", Pair, Draw], Iterator[Losses]]


def setting(
    default: Any, text: str, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A field of a method's own settings, with what the node has to know of it.

    Args:
        default: also its kind.
        text: the tooltip.
        low, high: of a number.
        choices: of a text.
    """
    return field(default=default, metadata={"text": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class NoSettings:
    """Of a method that has none beside those of a run."""


class Method:
    """EraseAnything: the two levels of Algorithm 1.

    Args:
        own: the settings of the method itself, beside those of the run; None is its defaults.
        extras: further graphs of the erasing level, after its own; each is called with the method in front.

    Attributes:
        name: what `EraseConfig.method` calls it.
        label: what people call it.
        own_settings: the class of `own`, whose fields are made by `setting`.
        reads_attention: whether it has the attention loss.
        takes_divergence: whether its erasing loss can be another divergence than the squared error.
        needs_retained: whether it cannot do without prompts that must stay.
        takes_pictures: whether its points can lie on lines to pictures of the user.
        any_retained: whether it takes retained points that were not drawn before the epoch.
    """

    name = "eraseanything"
    label = "EraseAnything"
    own_settings: type = NoSettings
    reads_attention = True
    takes_divergence = True
    needs_retained = False
    takes_pictures = False
    any_retained = False

    def __init__(self, own: Any = None, extras: Sequence[Extra] = ()) -> None:
        self.own = self.own_settings() if own is None else own
        self.extras = extras

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        """Fields of an `EraseConfig` that the method sets over a preset."""
        return {}

    def begin(self, model: ErasableModel, plan: Plan, lora: TrainableLora) -> None:
        """What is done before the first pair, and again before that of a run that goes on."""

    def finish(self, model: ErasableModel, plan: Plan, lora: TrainableLora) -> bool:
        """What is done to the factors after the last pair, once; whether anything was."""
        return False

    def tensors(self, lora: TrainableLora) -> dict[str, Tensor]:
        """All that the file of the eraser holds, under its keys, float32, on the CPU."""
        return lora.tensors(torch.float32)

    def draws(self, pair: Pair) -> list[Draw]:
        """The points of the pair."""
        return pair.epoch.draws[pair.step]

    def erase(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """The graphs of the lower level, which erases."""
        return erase_graphs(pair.model, pair.plan, pair.epoch, draw)

    def preserve(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """The graphs of the upper level, which preserves."""
        return preserve_graphs(pair.model, pair.plan, pair.epoch, draw, pair.rng)

    def erasing(self, pair: Pair, draws: list[Draw], losses: Losses) -> Iterator[Tensor]:
        """The scalars of the lower level, one graph after the other; see `accumulated_losses`."""

        def graphs(pair: Pair, draw: Draw) -> Iterator[Losses]:
            yield from self.erase(pair, draw)
            for extra in self.extras:
                yield from extra(self, pair, draw)

        return accumulated_losses(graphs, pair, draws, losses)

    def preserving(self, pair: Pair, draws: list[Draw], losses: Losses) -> Iterator[Tensor]:
        """The scalars of the upper level."""
        return accumulated_losses(self.preserve, pair, draws, losses)

    def step(self, pair: Pair) -> Losses:
        """Updates the LoRA once or twice.

        Returns:
            The losses, detached, on the device.
        """
        losses: Losses = {}
        lower, upper = pair.optimizers
        draws = self.draws(pair)
        erasing = self.erasing(pair, draws, losses)
        preserving = self.preserving(pair, draws, losses)
        # Nothing has run yet: the two are generators, and the preserving graphs see what the erasing step has changed.
        if pair.config.alternate:
            optimizer_step(lower, pair.lora, erasing, pair.config)
            optimizer_step(upper, pair.lora, preserving, pair.config)
        else:
            optimizer_step(lower, pair.lora, chain(erasing, preserving), pair.config)
        return losses


def accumulated_losses(graphs: Graphs, pair: Pair, draws: list[Draw], losses: Losses) -> Iterator[Tensor]:
    """The weighted losses of all draws, one graph after the other, scaled so that their gradients average.

    Args:
        graphs: a level's graphs for a draw.
        pair: what they are given.
        draws: of the pair.
        losses: receives each loss, averaged over the draws and detached.
    """
    for draw in draws:
        for graph in graphs(pair, draw):
            for name, loss in graph.items():
                # Detached: a log entry would keep its whole graph in memory.
                share = loss.detach() / len(draws)
                losses[name] = losses[name] + share if name in losses else share
            yield weighted_sum(graph, pair.config) / len(draws)
