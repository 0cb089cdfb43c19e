"""Concept Ablation (Kumari et al., 2023), model-based: the concept's prompt is to look like its anchor's.

L = mean( v_student(x_t, c) - sg v(x_t, a) )^2, x_t on the frozen model's trajectory of the anchor prompt a, which is
the same sentence with the anchor in the concept's place (`EraseConfig.neutral`, as `{anchor}`).
"""

import dataclasses
import time

import torch

from .. import sampling
from ..training import losses, trainer
from ..training.config import EraseConfig
from ..training.plan import Plan, conds, generator
from ..training.trajectory_cache import fill_pool, schedule

TARGETS = "add_k+add_v+to_k+to_v"


def concept_ablation(config: EraseConfig, **settings) -> EraseConfig:
    """The configuration for `train`: plain sentences of the concept itself, official targets."""
    own = {"synonym_rate": 0.0, "shuffle_rate": 0.0, "rsc_weight": 0.0, "targets": TARGETS}
    return dataclasses.replace(config, **own | settings)


def train(model, plan: Plan) -> trainer.EraseResult:
    """Trains the slices of `model`; see `trainer.train` for the seam.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
    """
    config, history, begun = plan.config, {}, time.monotonic()
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    optimizer = trainer.optimizer(lora, config.lr_low, config)
    for step in range(config.steps):
        rng = generator(config.seed, step)
        if step % config.refresh_every == 0:
            pool = anchors(model, plan, step // config.refresh_every)
        row, at = pool.draw(config.batch_size, config.erase_sigma, rng)
        x_t, sigma, teacher = pool.at(row, at, model.device)
        concept = conds(model, plan, [pool.sources[i].concept for i in row])
        loss = losses.retain_loss(model.velocity(x_t, sigma, concept, adapters=True), teacher)
        trainer.update(optimizer, lora, loss, config)
        trainer.record(history, {"ablation": loss}, loss, step)
    seconds = time.monotonic() - begun
    return trainer.EraseResult(lora.tensors(torch.float32), history, config.steps, False, seconds, config)


def anchors(model, plan: Plan, epoch: int) -> sampling.Pool:
    """Trajectories of the frozen model for the anchors of sentences, each with its sentence as the source."""
    config, rng = plan.config, generator(plan.config.seed, -1 - epoch)
    chosen = torch.randint(len(plan.sentences), (config.cached_trajectories,), generator=rng).tolist()
    sentences = [plan.sentences[i] for i in chosen]
    pool = fill_pool(model, plan, [s.neutral for s in sentences], schedule(model, config), rng)
    return dataclasses.replace(pool, sources=sentences)
