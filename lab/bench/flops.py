"""FLOPs of a whole run at true size: the trainer runs as it is, on a model that knows the price of every forward.

Each kind of forward (batch, gradient, where it stops, what it reads) is run once on Flux.1-dev's shapes under torch's
counter, backward included; the trainer's pools, draws and pairs then run for real and add the prices up by cause.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eraseanything_core.attention.columns import image_feature
from eraseanything_core.comfy_bridge.capture import Capture
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import Cond
from eraseanything_core.lora.adapter import Lora
from eraseanything_core.sampling import euler
from eraseanything_core.training import trainer
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import SHORTCUTS, prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from lab.bench.true_size import Shapes, counted, t5_flops, true_config, true_flux

COSTED = ("quick", "balanced", "thorough")
TERA = 1e12
PETA = 1e15
HEADS = 24  # of maps without contents, whose size no price depends on


class Priced:
    """The seam of a model with prices in the place of results.

    Args:
        count: whether prices are counted; 0 each for who wants an epoch's shapes alone.
        true: makes the model on shapes.

    Attributes:
        spent: FLOPs by cause.
        forwards: forwards by cause, a batch of b as b.
        calls: forwards by cause and kind, a batch as one.
        first: the calls until the first pair was done, before which gradients are measured for the losses' shares.
        asked: a forward of every kind, as the arguments of `once`.
    """

    def __init__(self, count: bool = True, true: Callable[[], Any] = true_flux):
        self.count = count
        self.make = true
        self.true = true()
        self.device = torch.device("cpu")
        self.channels = self.true.channels
        self.downscale = self.true.downscale
        self.mu = self.true.mu
        self.last_time = self.true.last_time
        self.noise_scale = self.true.noise_scale
        self.dtype = torch.bfloat16
        self.prices = {}
        self.spent = Counter()
        self.forwards = Counter()
        self.calls = Counter()
        self.first = Counter()
        self.asked = {}
        self.walking = False
        self.lora = None

    def attach(self, targets, rank: int, generator) -> Lora:
        self.true = self.make()
        parts = self.true.attach(targets, rank, torch.Generator()).parts
        self.lora = Lora(parts, rank, generator)
        return self.lora

    def cond(self, context: Tensor, pooled: Tensor, guidance: float):
        return self.true.cond(context, pooled, guidance)

    def conds(self, encodings, guidance: float):
        return self.true.conds(encodings, guidance)

    def sigmas(self, steps: int, mu: float | None = None) -> Tensor:
        return self.true.sigmas(steps, mu)

    def capture(self, select: Tensor, blocks=None) -> Capture:
        return Capture(select, blocks)

    def velocity(self, x_t, sigma, cond, adapters, capture=None):
        return self.charge(x_t, cond, adapters, capture, stop=False)

    def columns(self, x_t, sigma, cond, adapters, capture):
        self.charge(x_t, cond, adapters, capture, stop=True)
        return capture.maps

    def trajectory(self, cond, noise, sigmas, adapters=False):
        self.walking = True
        with torch.no_grad():
            yield from euler(lambda x, t: self.velocity(x, t, cond, adapters), noise, sigmas)
        self.walking = False

    def uninterrupted(self):
        return nullcontext()

    def charge(self, x_t: Tensor, cond: Any, adapters: bool, capture: Capture | None, stop: bool) -> Tensor:
        """Adds the price of a forward (and backward) and gives zeros of the right shape."""
        grad = adapters and torch.is_grad_enabled()
        read = capture and (capture.blocks or "all")
        kind = (tuple(x_t.shape), text_lengths(cond), adapters, grad, stop, read)
        if kind not in self.prices:
            empty = capture and Capture(capture.select, capture.blocks)
            self.asked[kind] = (x_t.shape, cond, adapters, grad, empty, stop)
            self.prices[kind] = counted(partial(self.once, *self.asked[kind])) if self.count else 0
        cause = self.cause(grad, stop, capture)
        self.calls[cause, kind] += 1
        self.spent[cause] += self.prices[kind]
        self.forwards[cause] += len(x_t)
        # Zero with a gradient: the shares of losses are measured by theirs.
        linked = sum((p - p.detach()).sum() for p in self.lora.parameters()) if grad else 0.0
        if capture:
            queries = x_t.shape[2] * x_t.shape[3] // 4
            capture.maps = {0: torch.zeros(len(x_t), HEADS, queries, 1) + linked}
        # Off the teacher's zeros where a loss is taken, so that L_esd has a gradient; everywhere else nothing differs.
        return (torch.ones_like(x_t) if grad else torch.zeros_like(x_t)) + linked

    def cause(self, grad: bool, stop: bool, capture: Capture | None) -> str:
        if grad:
            return "student: maps" if stop else "student: erasing" if capture else "student: preserving"
        return "teacher: trajectories" if self.walking else "teacher: maps" if stop else "teacher: targets"

    def pair_done(self, pairs: int, losses: dict[str, float]) -> None:
        """What the trainer calls after every pair."""
        if pairs == 1:
            self.first = self.calls.copy()

    def steady(self) -> Counter:
        """The student's calls in all pairs but the first, by kind."""
        calls = self.calls - self.first
        return Counter({kind: number for (cause, kind), number in calls.items() if cause.startswith("student")})

    def once(self, shape, cond: Any, adapters: bool, grad: bool, capture: Capture | None, stop: bool):
        """The forward on the true model's shapes, and its backward if there is one."""
        true = self.true
        x = torch.zeros(shape, device="meta")
        condition = on_meta(cond)
        sigma = torch.zeros(len(x), device="meta")
        read = capture and true.capture(capture.select.to("meta"), capture.blocks)
        with exact_gradients(true.module), torch.set_grad_enabled(grad):
            if stop:
                loss = image_feature(true.columns(x, sigma, condition, adapters, read)).sum()
            else:
                loss = true.velocity(x, sigma, condition, adapters, read).sum()
                loss = loss + image_feature(read.maps).sum() if read else loss
        if grad:
            loss.backward()


def text_lengths(cond: Any) -> Any:
    """Tokens of every prompt of a batch; FLUX.1's are all as long."""
    return cond.context.shape[1] if isinstance(cond, Cond) else tuple(e.context.shape[1] for e in cond.encodings)


def on_meta(cond: Any) -> Any:
    """A batch of conditions without contents; other families' take theirs to the device themselves."""
    return Cond(*(torch.zeros(part.shape, device="meta") for part in cond)) if isinstance(cond, Cond) else cond


def run_cost(
    preset: str,
    price_of_text: int,
    looks: bool = True,
    neutral_check: bool = True,
    text: Shapes | None = None,
    model: Priced | None = None,
) -> dict:
    """The whole run of a preset, split by cause; PFLOP in all, TFLOP by cause and for a pair without pools.

    Args:
        preset: its name.
        price_of_text: FLOPs of one encoding.
        looks: whether the run looks at held-out pictures. No price shows a picture, so nothing ends it early.
        neutral_check: whether it reads pictures of its neutral text before it starts; needs looks.
        text, model: of the family; FLUX.1's where they are not given.
    """
    config = true_config(preset)
    if not neutral_check:
        config = dataclasses.replace(config, other_neutrals=())
    if not looks:
        config = dataclasses.replace(config, monitor_every=0, stop_when_gone=False, adapt_rate=False)
    text = text or Shapes()
    model = model or Priced()
    plan = prepare(config, text)
    trainer.train(model, plan, model.pair_done)
    split = model.spent | Counter({"text": text.encoded * price_of_text})
    pair = sum(number * model.prices[kind] for kind, number in model.steady().items()) / (config.steps - 1)
    return {
        "preset": preset,
        "pairs": config.steps,
        "pflop": sum(split.values()) / PETA,
        "tflop_per_pair": sum(split.values()) / config.steps / TERA,
        "tflop_per_pair_steady": pair / TERA,
        "split_tflop": {cause: round(v / TERA, 2) for cause, v in sorted(split.items())},
        "forwards": dict(sorted(model.forwards.items())) | {"text": text.encoded},
    }


def pair_flops(preset: str = "quick", without: str = "") -> int:
    """One pair by the trainer itself on Flux.1-dev's shapes, nothing priced: it must agree with `run_cost`.

    There is no data, so the hot path can look at none: a look would raise here.

    Args:
        without: a saving of `plan.SHORTCUTS` that is switched off.
    """
    config = true_config(preset)
    text = Shapes()
    priced = Priced(count=False)
    plan = prepare(config, text, SHORTCUTS - {without})
    priced.attach(config.targets, config.rank, torch.Generator())
    epoch = TrajectoryCache(priced, plan).epoch(0)
    model = true_flux()
    lora = model.attach(config.targets, config.rank, torch.Generator())
    both = [lora_optimizer(lora, rate, config) for rate in (config.lr_low, config.lr_up)]
    before = text.encoded
    with exact_gradients(model.module):
        flops = counted(lambda: trainer.train_pair(model, plan, epoch, 0, lora, both))
    return flops + (text.encoded - before) * t5_flops()


def cost() -> dict:
    """The results by their keys in benchmarks/results.json, and the details."""
    from lab.bench.reference import reference_pair

    price = t5_flops()
    runs = [run_cost(preset, price) for preset in COSTED]
    plain = {preset: run_cost(preset, price, looks=False)["pflop"] for preset in COSTED}
    looked = {preset: run_cost(preset, price, neutral_check=False)["pflop"] for preset in COSTED}
    model = Priced()
    model.attach("paper", 8, torch.Generator())
    reference_pair(model, model.lora, ((1, 16, 64, 64), (1, 256, 4096), (1, 768)), 28, 3)
    return {
        "pflop_100_pairs": plain["quick"],
        "pflop_500_pairs": plain["thorough"],
        "pflop_with_looks": {run["preset"]: run["pflop"] for run in runs},
        "looks_share": {preset: 1 - plain[preset] / looked[preset] for preset in COSTED},
        "neutral_check_share": {run["preset"]: 1 - looked[run["preset"]] / run["pflop"] for run in runs},
        "tflop_per_pair_steady": pair_flops() / TERA,
        "tflop_per_pair_without": {name: pair_flops(without=name) / TERA for name in ("share", "stop", "encode")},
        "reference_tflop_per_pair": sum(model.spent.values()) / TERA,
        "cost": {"runs": runs, "reference_forwards": sum(model.forwards.values())},
    }
