"""A training from MODEL and CLIP to the LoRA."""

import dataclasses
import logging

import comfy.model_management
import torch

from ..lora.adapter import slices
from ..training import trainer
from ..training.plan import SHORTCUTS, prepare
from .memory import Fit, fit, master_bytes
from .text import TextEncoder
from .training_session import check_model, fingerprint, training_session


def train_eraser(
    patcher, clip, config, progress=None, run_dir=None, auto=False, show=None, tell=logging.info, shortcuts=SHORTCUTS
):
    """Trains an eraser on a loaded Flux; see `trainer.train`.

    Args:
        patcher: MODEL of the stock UNETLoader; it is bit for bit as before afterwards.
        clip: CLIP of the text encoder's loader.
        config: `EraseConfig`.
        progress: called as progress(step, losses) after every step.
        run_dir: folder of the run's state; what is there is resumed.
        auto: choose checkpointing and offload by what is free, and say so to `tell` and in the result's notes.
        show: see `trainer.train`.
        tell: called with a sentence before the model runs.
        shortcuts: see `plan.SHORTCUTS`.

    Returns:
        `trainer.EraseResult`; when the user interrupts, what was trained up to then.

    Raises:
        ValueError: see `check_model`, `TextEncoder` and `prepare`.
        FloatingPointError: a loss became NaN or infinite.
    """
    check_model(patcher)
    with torch.inference_mode(False):
        text = TextEncoder(clip, "encode" in shortcuts, patcher.model.diffusion_model.params)
        plan = prepare(config, text, shortcuts)
    if "encode" in shortcuts:
        release_others(patcher)
    plan = dataclasses.replace(plan, base=fingerprint(patcher))
    memory = patcher.model.memory_required([4 * config.batch_size, 16, config.height // 8, config.width // 8])
    if auto:
        found = estimate(patcher, plan, int(memory))
        tell(str(found))
        plan = dataclasses.replace(
            plan, config=dataclasses.replace(plan.config, gradient_checkpointing=found.checkpoint)
        )
        memory = max(memory, found.activations)
    with training_session(patcher, config.torch_dtype(), plan.config.gradient_checkpointing, memory) as model:
        stops = (comfy.model_management.InterruptProcessingException, KeyboardInterrupt)
        result = trainer.train(model, plan, progress, stops, run_dir, show)
    result.notes += [str(found)] if auto else []
    return result


def release_others(patcher):
    """Text encoders and whatever else lies on the model's device leave it: every prompt is encoded by now."""
    device, management = patcher.load_device, comfy.model_management
    if device.type != "cpu":
        own = [m for m in management.current_loaded_models if m.model is not None and m.model.model is patcher.model]
        management.free_memory(1e32, device, keep_loaded=own)


def estimate(patcher, plan, least: int = 0) -> Fit:
    """What the plan will take on this model and device; see `fit`."""
    config, module = plan.config, patcher.model.diffusion_model
    cells = patcher.model.latent_format.spacial_downscale_ratio * module.patch_size
    tokens = plan.encode(plan.sentences[0].concept.text)[0].shape[1]
    tokens += (config.width // cells) * (config.height // cells)
    held = master_bytes(config, lora_weights(module.params, config.targets, config.rank))
    dtype = config.torch_dtype() or patcher.model.get_dtype_inference()
    return fit(patcher, tokens, max(config.batch_size, config.retain_batch_size), dtype.itemsize, held, least)


def lora_weights(params, targets, rank: int) -> int:
    """Weights of a LoRA on a Flux of this shape."""
    parts = slices(targets, params.hidden_size, params.depth, params.depth_single_blocks, params.mlp_ratio)
    return sum(rank * (part.rows + part.columns) for part in parts)
