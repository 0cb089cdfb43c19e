"""Small runs of the methods that a user can choose, on a toy in float64."""

from types import SimpleNamespace

import torch

from eraseanything_core.erasers import registry
from eraseanything_core.training import trainer
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.method import Pair
from eraseanything_core.training.objective import weighted_sum
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import conds, generator, prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from tests.unit.toy_model import ToyModel, ToyText

BASE = {
    "concept": "star",
    "irrelevant": ("dog", "tree"),
    "templates": ("a photo of {}", "{} at night"),
    "retain": ("a house", "two balls"),
    "neutral": "{thing}",
    "width": 16,
    "height": 16,
    "sampling_steps": 4,
    "cached_trajectories": 3,
    "cached_retain_trajectories": 4,
    "refresh_every": 2,
    "batch_size": 2,
    "retain_batch_size": 2,
    "rank": 2,
    "steps": 4,
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "alternate": False,
    "monitor_every": 0,
}
SMALL = {"rank": 2, "batch_size": 2, "cached_retain_trajectories": 4}  # over what a method sets


def config_of(name, own=None, **settings):
    return EraseConfig(**BASE | registry.settings_of(name, own) | SMALL | settings)


def started(name, own=None, step=0, **settings):
    """A run after its first epoch was prepared, its LoRA somewhere, and one of its pairs."""
    config = config_of(name, own, **settings)
    model = ToyModel()
    plan = prepare(config, ToyText())
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
    lora.up[0].data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    optimizers = [lora_optimizer(lora, config.lr_low, config) for _ in range(2)]
    epoch = TrajectoryCache(model, plan).epoch(0)
    model.asked.clear()

    def pair():
        """Anew each time: its chance starts from the beginning."""
        return Pair(model, plan, epoch, step, lora, optimizers, generator(config.seed, step + 2**40))

    method = registry.method_of(config)
    return SimpleNamespace(config=config, model=model, plan=plan, lora=lora, epoch=epoch, pair=pair, method=method)


def graphs(run):
    """Every graph of the pair, both levels."""
    pair = run.pair()
    for draw in run.method.draws(pair):
        yield from run.method.erase(pair, draw)
        yield from run.method.preserve(pair, draw)


def gradient(run):
    """The gradient of the weighted sum, one vector."""
    parameters = list(run.lora.parameters())
    for parameter in parameters:
        parameter.grad = None
    for graph in graphs(run):
        weighted_sum(graph, run.config).backward()
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def shift(lora, way):
    """Moves the factors along a vector."""
    for parameter, part in zip(lora.parameters(), way.split([p.numel() for p in lora.parameters()]), strict=True):
        parameter.data += part.view_as(parameter)


def differences(run, total, count=3, step=1e-5):
    """Directional derivatives of a function of the factors: directions, and central differences along them."""
    rng = torch.Generator().manual_seed(3)
    size = sum(parameter.numel() for parameter in run.lora.parameters())
    ways, slopes = torch.randn(count, size, generator=rng), []
    for way in ways:
        shift(run.lora, step * way)
        ahead = total()
        shift(run.lora, -2 * step * way)
        behind = total()
        shift(run.lora, step * way)
        slopes.append((ahead - behind) / (2 * step))
    return ways, torch.tensor(slopes)


def points(run):
    """The first draw's x_t, t, rows, and its sentences."""
    (draw,) = run.epoch.draws[0]
    row, step = draw.erase
    x_t, sigma, v = run.epoch.concept.at(row, step, "cpu")
    return SimpleNamespace(x=x_t, t=sigma, v=v, row=row, step=step, of=[run.epoch.concept.sources[i] for i in row])


def asked(run, prompts, at, adapters):
    return run.model.velocity(at.x, at.t, conds(run.model, run.plan, prompts), adapters)


def of_pair(run):
    """The sum of each loss of the pair."""
    found = {}
    for graph in graphs(run):
        for name, loss in graph.items():
            found[name] = found.get(name, 0.0) + float(loss.detach())
    return found


def nearness(model, plan):
    """Where the student's velocities lie between the neutral text's (0) and the concept's (1), as gone pictures do."""
    rng = torch.Generator().manual_seed(11)
    x, t = torch.randn(32, 2, 4, 4, generator=rng), torch.rand(32, generator=rng)
    chosen = [plan.sentences[i % len(plan.sentences)] for i in range(32)]
    student, v_c = (model.velocity(x, t, conds(model, plan, [s.concept for s in chosen]), on) for on in (True, False))
    v_n = model.velocity(x, t, conds(model, plan, [s.neutral for s in chosen]), False)
    return float(((student - v_n) * (v_c - v_n)).sum() / (v_c - v_n).square().sum())


def trained(config, **rest):
    return trainer.train(ToyModel(), prepare(config, ToyText()), method=registry.method_of(config), **rest)
