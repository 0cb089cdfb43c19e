"""A whole training, from an application's model and text encoder to the LoRA."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..protocols import MemoryEstimate, ModelHost
from . import trainer
from .config import EraseConfig
from .determinism import deterministic_algorithms
from .method import Method
from .optimizers import trained_bytes
from .placed import placed_bytes
from .plan import ENCODE_ONCE, SHORTCUTS, TEACHER_BATCHES, Plan, prepare
from .trainer import EraseResult, Progress, Show
from .trajectory_cache import Report


def train_eraser(
    host: ModelHost,
    config: EraseConfig,
    progress: Progress | None = None,
    run_dir: Path | None = None,
    auto: bool = False,
    show: Show | None = None,
    notify: Callable[[str], None] = logging.info,
    shortcuts: frozenset[str] = SHORTCUTS,
    report: Report | None = None,
    method: Method | None = None,
    pictures: Tensor | None = None,
) -> EraseResult:
    """Trains an eraser on the model of a host. Afterwards the model samples bit for bit as before.

    Args:
        host: lends the model and its text encoder.
        config: the run's settings.
        progress: called as progress(pairs done, losses) after every pair.
        run_dir: the folder of the run's state; a state that lies there is resumed.
        auto: choose gradient checkpointing and how many weights to offload by what memory is free. The choice is
            passed to `notify` and is one of the result's notes.
        show: see `trainer.train`.
        notify: called with a sentence before the model runs.
        shortcuts: those of `plan.SHORTCUTS` that are on.
        report: see `trainer.train`.
        method: that of the settings; None is EraseAnything.
        pictures: of the user, latents [n, c, h, w] in the model's space; the settings have their hash.

    Returns:
        The result; after a user's interrupt, what was trained up to then.

    Raises:
        ValueError: the model cannot be trained exactly, the text encoder is not the model's, the settings cannot
            work, or the state in `run_dir` is of another run.
        FloatingPointError: a loss became NaN or infinite.
    """
    host.check()
    # ComfyUI runs its nodes in inference mode. An encoding made there could not stand in a graph later on.
    with torch.inference_mode(False):
        plan = prepare(config, host.text_encoder(keep=ENCODE_ONCE in shortcuts), shortcuts)
    if ENCODE_ONCE in shortcuts:
        host.release_others()  # every prompt is encoded by now, and T5-XXL alone takes 9 GiB in bf16
    plan = dataclasses.replace(plan, base=host.fingerprint(), pictures=pictures)
    estimate = estimate_memory(host, plan)
    # What the host's loader keeps free of weights. It decides how many of them stay in main memory.
    memory = estimate.forward
    gradient_checkpointing = config.gradient_checkpointing
    if auto:
        notify(str(estimate))
        memory = max(memory, estimate.activations)
        gradient_checkpointing = estimate.gradient_checkpointing
    run_config = dataclasses.replace(plan.config, gradient_checkpointing=gradient_checkpointing)
    plan = dataclasses.replace(plan, config=run_config)
    session = host.session(config.torch_dtype(), gradient_checkpointing, memory)
    with deterministic_algorithms(config.deterministic), session as model:
        result = trainer.train(model, plan, progress, host.interrupts, run_dir, show, report, method)
    if auto:
        result.notes.append(str(estimate))
    return result


def estimate_memory(host: ModelHost, plan: Plan) -> MemoryEstimate:
    """What a training will take on the host's model and device."""
    config = plan.config
    # One entry a token. An encoding would say the same, but without ENCODE_ONCE it would run the text encoder again.
    sentence = plan.sentences[0].concept
    # A look that no prompt names has no word, and so nothing to select.
    tokens = plan.encode(sentence.text)[0].shape[1] if config.unasked else len(plan.select[sentence])
    weights = host.lora_size(config.targets, config.rank)
    return host.estimate(
        tokens=tokens,
        width=config.width,
        height=config.height,
        batch=max(config.batch_size, config.retain_batch_size),
        trained_bytes=trained_bytes(config, weights) + placed_bytes(plan),
        dtype=config.torch_dtype(),
        # The teacher's batches are the largest forwards, but without a graph.
        forward_batch=TEACHER_BATCHES * config.batch_size,
    )
