"""Loss scaling, for transformers that compute in float16.

float16 has no number between 0 and 6e-8, and half of a LoRA's gradients at 512 px are smaller on their way back. The
loss is multiplied before backward and the gradients are divided after it: Micikevicius et al., Mixed Precision Training
(2018).

The scale lies in the optimizer's parameter group. It is copied, restored and saved with the optimizer, so a resumed run
has the scale of one that was never stopped.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

START = 2.0**14  # powers of two: multiplying and dividing by them rounds nothing
GROW_AFTER = 200  # finite steps after which the scale is doubled
SCALE, FINITE_STEPS, SKIPPED_STEPS = "loss_scale", "finite_steps", "skipped_steps"  # in a parameter group


def start(optimizers: Iterable[torch.optim.Optimizer], dtype: torch.dtype) -> None:
    """Gives the optimizers a scale if the transformer computes in float16; one that they have already stays."""
    if dtype != torch.float16:
        return
    for optimizer in optimizers:
        group = optimizer.param_groups[0]
        group.setdefault(SCALE, START)
        group.setdefault(FINITE_STEPS, 0)
        group.setdefault(SKIPPED_STEPS, 0)


def scale_of(optimizer: torch.optim.Optimizer) -> float:
    """What a loss is multiplied by before backward; 1 where nothing is scaled."""
    return optimizer.param_groups[0].get(SCALE, 1.0)


def unscale(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Divides the gradients by the scale. Must come before they are clipped: the bound is meant for true gradients."""
    scale = scale_of(optimizer)
    if scale == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= scale


def may_step(optimizer: torch.optim.Optimizer, norm: Tensor) -> bool:
    """Whether the gradients are finite, and what their scale becomes.

    Args:
        optimizer: whose scale is halved after an overflow, and doubled after `GROW_AFTER` finite steps.
        norm: of its gradients; the step waits for it. Without a scale it is not looked at.

    Returns:
        False where a gradient is infinite or NaN: the optimizer must not step.

    Raises:
        FloatingPointError: they are not finite without any scale either.
    """
    group = optimizer.param_groups[0]
    if SCALE not in group:
        return True
    if torch.isfinite(norm):
        group[FINITE_STEPS] += 1
        if group[FINITE_STEPS] % GROW_AFTER == 0:
            group[SCALE] *= 2
        return True
    group[FINITE_STEPS] = 0
    group[SKIPPED_STEPS] += 1
    group[SCALE] /= 2
    if group[SCALE] < 1:
        raise FloatingPointError(
            "the gradients are not finite in fp16: set dtype to bf16 or fp32 in Erase Settings, or start ComfyUI with "
            "--bf16-unet or --fp32-unet"
        )
    return False


def scaled_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step without clipping on a loss whose gradients may be too small for float16.

    Args:
        optimizer: with a scale, if `start` has given it one; without one this is `loss.backward()` and a step.
        loss: a scalar.

    Raises:
        FloatingPointError: see `may_step`.
    """
    optimizer.zero_grad()
    (loss * scale_of(optimizer)).backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    unscale(optimizer, parameters)
    norm = torch.zeros(())
    if SCALE in optimizer.param_groups[0]:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
    if may_step(optimizer, norm):
        optimizer.step()


def skipped_note(optimizers: Iterable[torch.optim.Optimizer]) -> str:
    """A line on the updates that were skipped; empty where there was none."""
    skipped = sum(optimizer.param_groups[0].get(SKIPPED_STEPS, 0) for optimizer in optimizers)
    return f"{skipped} updates were skipped, because their gradients overflowed in fp16" if skipped else ""
