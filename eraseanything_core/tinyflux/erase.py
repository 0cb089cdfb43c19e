"""Trains an eraser of TinyFlux without ComfyUI's server, for searches and boards."""

import copy
from contextlib import contextmanager

import torch

from .. import trainer
from ..flux import FluxModel, exact_gradients, private_copy
from . import MU
from .pipeline import Pipeline, TrainerText


@contextmanager
def trainable(pipeline: Pipeline, dtype=torch.bfloat16):
    """A pipeline's Flux as the seam that erasers train, on a copy; it stays as it is."""
    module = private_copy(copy.deepcopy(pipeline.module), dtype)
    with exact_gradients(module):
        yield FluxModel(module, "cpu", dtype, MU)


def train_eraser(
    pipeline: Pipeline, config: trainer.EraseConfig, dtype=torch.bfloat16, progress=None
) -> trainer.EraseResult:
    """What the EraseTrainer node does, on a pipeline's Flux, which stays as it is."""
    plan = trainer.prepare(config, TrainerText(pipeline))
    with trainable(pipeline, dtype) as model:
        return trainer.train(model, plan, progress)
