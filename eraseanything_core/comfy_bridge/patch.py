"""LoRAs on ComfyUI's MODEL, through its patcher."""

import comfy.patcher_extension
import comfy.sd
from torch import Tensor

from ..lora.keys import Eraser, place, write


def check_fits(patcher, eraser: Eraser):
    """Raises ValueError when the LoRA is of another model; the stock loader would only log it."""
    flux = patcher.model.diffusion_model
    for key, (up, down) in eraser.items():
        name, start = place(key, down.shape[1])
        found = dict(flux.named_modules()).get(name)
        if found is None or found.in_features != down.shape[1] or start + len(up) > found.out_features:
            raise ValueError(f"the LoRA does not fit this MODEL at {key}: it was made for another one")


def patched(patcher, eraser: Eraser, scale: float):
    """A MODEL with the LoRA in its weights, as the stock LoraLoader does it."""
    check_fits(patcher, eraser)
    return comfy.sd.load_lora_for_models(patcher, None, write(eraser, next(iter(eraser.values())).up.dtype), scale, 0)[
        0
    ]


class Window:
    """Whether the present step of sampling lies between two sigmas."""

    def __init__(self, start: float, end: float):
        self.start, self.end, self.open = start, end, False

    def see(self, executor, x, sigma, *args, **kwargs):
        """Around the model's forward; sigma [b] is of this step."""
        self.open = self.end <= float(sigma[0]) <= self.start
        return executor(x, sigma, *args, **kwargs)


def scheduled(patcher, eraser: Eraser, scale: float, start: float, end: float):
    """A MODEL that has the LoRA only while sigma is between start (the larger) and end.

    The weights stay; the LoRA is added to each as it is cast for use.
    """
    check_fits(patcher, eraser)
    patcher, window = patcher.clone(), Window(start, end)
    for key, (up, down) in eraser.items():
        name, first = place(key, down.shape[1])
        patcher.add_weight_wrapper(f"diffusion_model.{name}.weight", _adder(window, first, scale * up, down))
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "eraseanything", window.see)
    return patcher


def _adder(window: Window, first: int, up: Tensor, down: Tensor):
    def add(weight: Tensor) -> Tensor:
        if not window.open:
            return weight
        change = up.to(weight.device) @ down.to(weight.device)
        rows = weight[first : first + len(up)]
        rows.copy_(rows.float() + change)
        return weight

    return add
