"""LoRAs on ComfyUI's MODEL, through its patcher."""

from typing import Any

import comfy.patcher_extension
import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..lora.factors import Eraser, Factors, add_to_weight
from ..lora.key_styles import eraser_tensors
from ..lora.keys import module_slice


def check_fits(patcher: ModelPatcher, eraser: Eraser) -> None:
    """Raises ValueError when the LoRA is of another model; the stock loader would only log it."""
    modules = dict(patcher.model.diffusion_model.named_modules())
    for key, (up, down) in eraser.items():
        name, start = module_slice(key, down.shape[1])
        linear = modules.get(name)
        if linear is None or linear.in_features != down.shape[1] or start + len(up) > linear.out_features:
            raise ValueError(f"the LoRA does not fit this MODEL at {key}: it was made for another one")


def with_lora(patcher: ModelPatcher, eraser: Eraser, scale: float) -> ModelPatcher:
    """A MODEL with the LoRA in its weights, as the stock LoraLoader does it.

    Raises:
        ValueError: see `check_fits`.
    """
    check_fits(patcher, eraser)
    dtype = next(iter(eraser.values())).up.dtype
    model, _ = comfy.sd.load_lora_for_models(patcher, None, eraser_tensors(eraser, dtype), scale, 0)
    return model


def with_lora_between(patcher: ModelPatcher, eraser: Eraser, scale: float, start: float, end: float) -> ModelPatcher:
    """A MODEL that has the LoRA only while sigma is between start (the larger) and end.

    The weights stay as they are; the LoRA is added to each as it is cast for use.

    Raises:
        ValueError: see `check_fits`.
    """
    window = SigmaWindow(start, end)
    model = _with_wrappers(patcher, eraser, scale, window)
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "eraseanything", window.apply_model)
    return model


def with_lora_beside(patcher: ModelPatcher, eraser: Eraser, scale: float) -> ModelPatcher:
    """A MODEL with the LoRA beside its weights: it is added to each as it is cast for use.

    Raises:
        ValueError: see `check_fits`.
    """
    window = SigmaWindow(float("inf"), 0.0)
    window.is_open = True
    return _with_wrappers(patcher, eraser, scale, window)


def _with_wrappers(patcher: ModelPatcher, eraser: Eraser, scale: float, window: "SigmaWindow") -> ModelPatcher:
    check_fits(patcher, eraser)
    model = patcher.clone()
    for key, (up, down) in eraser.items():
        name, first_row = module_slice(key, down.shape[1])
        wrapper = WindowedLora(window, first_row, Factors(scale * up, down))
        model.add_weight_wrapper(f"diffusion_model.{name}.weight", wrapper)
    return model


class SigmaWindow:
    """Whether the present step of sampling lies between two sigmas, start being the larger."""

    def __init__(self, start: float, end: float):
        self.start = start
        self.end = end
        self.is_open = False

    def apply_model(self, executor: Any, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A wrapper of the model's forward, which notes the sigma [b] of its step."""
        self.is_open = self.end <= float(sigma[0]) <= self.start
        return executor(x, sigma, *args, **kwargs)


class WindowedLora:
    """A wrapper of one weight that adds B A to some of its rows while the window is open.

    Args:
        window: shared by all weights of the LoRA.
        first_row: of the rows that are changed.
        factors: what is added to them.
    """

    def __init__(self, window: SigmaWindow, first_row: int, factors: Factors):
        self.window = window
        self.first_row = first_row
        self.factors = factors

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight [rows of the linear, columns] as it is used in this step."""
        if not self.window.is_open:
            return weight
        # Once on the device the factors stay there: this runs for each linear in each forward.
        self.factors = Factors(self.factors.up.to(weight.device), self.factors.down.to(weight.device))
        # Always into a copy. Under DynamicVRAM this may be the resident weight itself, and the LoRA would be added to
        # it again in each forward.
        changed = weight.clone()
        add_to_weight(changed, self.first_row, self.factors)
        return changed
