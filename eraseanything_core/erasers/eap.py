"""EAP, adversarial preservation (Bui et al., NeurIPS 2024), for Flux, written from the paper.

L = mean( v_student(x_t, c) - sg v_esd )^2 + mean( v_student(x_t, a) - sg v(x_t, a) )^2, a the prompts of R that the
eraser damages most. R is the retain pool. The worst of it are found by looking at every one, without gradients, every
few steps; the paper climbs to them through a Gumbel softmax over R's embeddings.
"""

import dataclasses
import time

import torch
from torch import Tensor

from ..sampling import Pool
from ..training import trainer
from ..training.config import EraseConfig
from ..training.objective import erase_graphs, preserve_graphs, weighted
from ..training.plan import Plan, conds, generator
from ..training.trajectory_cache import new_epoch
from .esd import esd

EVERY = 10  # steps between two looks at R
WORST = 0.25  # share of R that is kept until the next look


def eap(config: EraseConfig, **settings) -> EraseConfig:
    """The configuration for `train`: ESD's, with prompts that must stay."""
    return esd(
        config,
        **{"retain_weight": 1.0, "on_policy_share": 0.0, "cached_retain_trajectories": 32, "refresh_every": 40}
        | settings,
    )


def train(model, plan: Plan) -> trainer.EraseResult:
    """Trains the slices of `model`; see `trainer.train` for the seam.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    config, history, begun = plan.config, {}, time.monotonic()
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    optimizer = trainer.optimizer(lora, config.lr_low, config)
    for step in range(config.steps):
        rng = generator(~config.seed, step)
        if step % config.refresh_every == 0:
            epoch = new_epoch(model, plan, step // config.refresh_every)
        if step % EVERY == 0 or step % config.refresh_every == 0:
            worst = hardest(damage(model, plan, epoch.retain, rng))
        draw = epoch.draws[step][0]
        chosen = worst[torch.randint(len(worst), (config.retain_batch_size,), generator=rng)]
        draw = dataclasses.replace(draw, retain=(chosen, draw.retain[1]))
        found = next(erase_graphs(model, plan, epoch, draw)) | next(preserve_graphs(model, plan, epoch, draw))
        loss = weighted(found, config)
        trainer.update(optimizer, lora, loss, config)
        trainer.record(history, found, loss, step)
    seconds = time.monotonic() - begun
    return trainer.EraseResult(lora.tensors(torch.float32), history, config.steps, False, seconds, config)


@torch.no_grad()
def damage(model, plan: Plan, pool: Pool, rng: torch.Generator) -> Tensor:
    """How far the student is from the teacher at one point of every trajectory, [p]."""
    rows, found = torch.arange(len(pool.sources)), []
    steps = torch.randint(len(pool.sigmas) - 1, (len(rows),), generator=rng)
    for part in rows.split(4 * plan.config.batch_size):
        x_t, sigma, teacher = pool.at(part, steps[part], model.device)
        student = model.velocity(x_t, sigma, conds(model, plan, [pool.sources[i] for i in part]), adapters=True)
        found.append((student - teacher).pow(2).mean((1, 2, 3)).cpu())
    return torch.cat(found)


def hardest(damages: Tensor) -> Tensor:
    """The trajectories that are damaged most."""
    return damages.topk(max(1, round(WORST * len(damages)))).indices
