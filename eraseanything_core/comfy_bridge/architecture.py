"""ComfyUI's model classes with fresh weights, and its tokenizer."""

from typing import Any

import comfy.ops
import torch
from comfy.ldm.flux.model import Flux
from comfy.taesd.taesd import TAESD, Block
from comfy.text_encoders.flux import T5XXLTokenizer
from torch import nn


def new_flux(config: dict[str, Any], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Flux:
    """ComfyUI's Flux with fresh weights; `config` holds the fields of its FluxParams."""
    flux = Flux(dtype=dtype, device=device, operations=comfy.ops.disable_weight_init, **config)
    _initialise(flux)
    return flux


def _initialise(module: nn.Module) -> None:
    """ComfyUI's layers leave their weights unset; gives them PyTorch's usual initial values."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            # PyTorch's own default: uniform in +-1 / sqrt(inputs).
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        # ComfyUI has an RMSNorm of its own beside PyTorch's.
        elif isinstance(layer, nn.RMSNorm) or type(layer).__name__ == "RMSNorm":
            weight: Any = layer.weight
            nn.init.ones_(weight)


def new_autoencoder(latent_channels: int) -> TAESD:
    """ComfyUI's TAESD with fresh weights: He's initial values, and small residual branches."""
    taesd = TAESD(latent_channels=latent_channels)
    for layer in taesd.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in taesd.modules():
        if isinstance(block, Block):
            # TAESD has no normalisation: at full size each of its many blocks would double the variance.
            block.conv[-1].weight.data.mul_(0.2)
    return taesd


def t5_tokenizer(min_length: int = 256) -> T5XXLTokenizer:
    """ComfyUI's own T5 tokenizer, padding to `min_length` pieces."""
    return T5XXLTokenizer(tokenizer_data={"t5xxl_min_length": min_length})
