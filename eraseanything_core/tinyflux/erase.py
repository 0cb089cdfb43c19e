"""Trains an eraser of TinyFlux without ComfyUI's server, for searches and boards."""

import copy

import torch

from .. import trainer
from ..flux import FluxModel, exact_gradients, private_copy
from . import MU
from .pipeline import Pipeline, TrainerText


def train_eraser(
    pipeline: Pipeline, config: trainer.EraseConfig, dtype=torch.bfloat16, progress=None
) -> trainer.EraseResult:
    """What the EraseTrainer node does, on a pipeline's Flux, which stays as it is."""
    plan = trainer.prepare(config, TrainerText(pipeline))
    module = private_copy(copy.deepcopy(pipeline.module), dtype)
    with exact_gradients(module):
        return trainer.train(FluxModel(module, "cpu", dtype, MU), plan, progress)
