"""The copy of a streamed model that a training loads for itself."""

from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from torch import nn


def static_clone(patcher: Any) -> Any:
    """A clone whose weights lie where they are used.

    DynamicVRAM streams weights through buffers that the next layer overwrites, so backward would read another layer's.
    A static copy is loaded from the file instead. Without DynamicVRAM the clone shares its weights.
    """
    static = patcher.clone(disable_dynamic=True)
    if patcher.is_dynamic():
        # Streamed weights keep the file's type in main memory and are cast on their way. ComfyUI leaves them so in the
        # copy as well: a bf16 file of which fp8 was asked would take twice the memory.
        _cast_to_asked_types(static.model.diffusion_model)
        static.size = 0  # it was counted before the cast; ComfyUI counts it anew
    return static


def asked_type(layer: nn.Module, name: str) -> torch.dtype | None:
    """The type that the loader was asked for in a streamed layer; None where the parameter has it already."""
    parameter = layer._parameters[name]
    # A quantised tensor is stored as its file has it.
    if parameter is None or isinstance(parameter, QuantizedTensor):
        return None
    asked = getattr(layer, f"{name}_comfy_model_dtype", None)
    return None if asked == parameter.dtype else asked


def static_bytes(patcher: Any) -> int:
    """Bytes of the model's weights as `static_clone` has them."""
    size = patcher.model_size()
    if not patcher.is_dynamic():
        return size
    for layer in patcher.model.diffusion_model.modules():
        for name, parameter in layer._parameters.items():
            asked = asked_type(layer, name)
            if asked is not None:
                size += parameter.numel() * (asked.itemsize - parameter.dtype.itemsize)
    return size


def _cast_to_asked_types(module: nn.Module) -> None:
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            asked = asked_type(layer, name)
            if asked is not None and parameter is not None:
                layer._parameters[name] = nn.Parameter(parameter.detach().to(asked), requires_grad=False)
