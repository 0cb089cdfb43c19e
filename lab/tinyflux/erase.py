"""Trains an eraser of TinyFlux without ComfyUI's server, for searches and boards."""

import copy
from contextlib import contextmanager

from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.erasers.registry import method_of
from eraseanything_core.tinyflux import MU
from eraseanything_core.training import trainer
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.plan import prepare
from lab.tinyflux import precision
from lab.tinyflux.pipeline import Pipeline, TrainerText


@contextmanager
def trainable(pipeline: Pipeline, dtype=precision.DTYPE):
    """A pipeline's Flux as the seam that erasers train, on a copy; it stays as it is."""
    module = frozen_view(copy.deepcopy(pipeline.module), dtype)
    with exact_gradients(module):
        yield FluxModel(module, "cpu", dtype, MU)


def train_eraser(pipeline: Pipeline, config: EraseConfig, dtype=precision.DTYPE, progress=None) -> trainer.EraseResult:
    """What the EraseTrainer node does, on a pipeline's Flux, which stays as it is."""
    plan = prepare(config, TrainerText(pipeline))
    with trainable(pipeline, dtype) as model:
        return trainer.train(model, plan, progress, method=method_of(config))
