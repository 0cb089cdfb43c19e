"""A LoRA on a MODEL so that it works whatever the weights are rounded to."""

from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor

from ..lora.factors import Eraser, by_module
from . import patch
from .checkpoint import base_weight, kept_changes
from .training_session import TRANSFORMER_PREFIX


def with_whole_lora(patcher: ModelPatcher, eraser: Eraser, scale: float) -> tuple[ModelPatcher, str]:
    """A MODEL with a LoRA: in its weights as the stock loader puts it there, or beside them where rounding takes it.

    A small change of a weight in 8 or 4 bits can round away. Beside them it is added to each weight as it is unpacked
    for use, in the compute type.

    Args:
        patcher: the MODEL.
        eraser: the LoRA.
        scale: how much of it.

    Returns:
        The MODEL, and a sentence where the LoRA is beside the weights; else empty.

    Raises:
        ValueError: see `patch.check_fits`.
    """
    baked = patch.with_lora(patcher, eraser, scale)
    if not scale or not is_coarse(patcher, eraser):
        return baked, ""
    for kind, change in kept_changes(baked, eraser, scale).items():
        if change.is_lost:
            whole = patch.with_lora_beside(patcher, eraser, scale)
            return whole, (
                f"weights in {kind} would keep {change.kept:.0%} of the change and add {change.noise:.0%} of its size "
                "by rounding, so the LoRA is added as they are used; the stock Load LoRA rounds it"
            )
    return baked, ""


def is_coarse(patcher: ModelPatcher, eraser: Eraser) -> bool:
    """Whether a weight that the LoRA changes has fewer than 16 bits; GGUF adds it to unpacked weights itself."""
    for module in by_module(eraser):
        weight = base_weight(patcher, f"{TRANSFORMER_PREFIX}{module}.weight")
        if isinstance(weight, QuantizedTensor) or (weight.is_floating_point() and weight.dtype.itemsize < 2):
            return True
    return False
