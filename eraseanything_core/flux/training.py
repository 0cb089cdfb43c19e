"""A training from MODEL and CLIP to the LoRA."""

import comfy.model_management
import torch

from .. import trainer
from .loan import borrow, check_model
from .text import TextEncoder


def train_eraser(patcher, clip, config, progress=None, run_dir=None):
    """Trains an eraser on a loaded Flux; see `trainer.train`.

    Args:
        patcher: MODEL of the stock UNETLoader; it is bit for bit as before afterwards.
        clip: CLIP of the text encoder's loader.
        config: `trainer.EraseConfig`.
        progress: called as progress(step, losses) after every step.
        run_dir: folder of the run's state; what is there is resumed.

    Returns:
        `trainer.EraseResult`; when the user interrupts, what was trained up to then.

    Raises:
        ValueError: see `check_model` and `trainer.prepare`.
        FloatingPointError: a loss became NaN or infinite.
    """
    check_model(patcher)
    with torch.inference_mode(False):
        plan = trainer.prepare(config, TextEncoder(clip))
    memory = patcher.model.memory_required([4 * config.batch, 16, config.height // 8, config.width // 8])
    with borrow(patcher, config.torch_dtype(), config.checkpoint, memory) as model:
        stops = (comfy.model_management.InterruptProcessingException, KeyboardInterrupt)
        return trainer.train(model, plan, progress, stops, run_dir)
