"""ComfyUI's model classes with fresh weights, and its tokenizer."""

import comfy.ops
import torch
from comfy.ldm.flux.model import Flux
from comfy.taesd.taesd import TAESD, Block
from comfy.text_encoders.flux import T5XXLTokenizer
from torch import nn


def _initialise(module: nn.Module) -> nn.Module:
    """ComfyUI's layers leave their weights unset; give them PyTorch's usual initial values."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.RMSNorm) or type(layer).__name__ == "RMSNorm":
            nn.init.ones_(layer.weight)
    return module


def new_flux(config: dict, dtype=torch.float32, device="cpu") -> Flux:
    """ComfyUI's Flux with fresh weights; `config` holds the fields of its FluxParams."""
    return _initialise(Flux(dtype=dtype, device=device, operations=comfy.ops.disable_weight_init, **config))


def new_autoencoder(latent_channels: int) -> TAESD:
    """ComfyUI's TAESD with fresh weights: He's initial values, residual branches small, so that signals survive."""
    taesd = TAESD(latent_channels=latent_channels)
    for layer in taesd.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in taesd.modules():
        if isinstance(block, Block):
            block.conv[-1].weight.data.mul_(0.2)
    return taesd


def t5_tokenizer(min_length: int = 256) -> T5XXLTokenizer:
    """ComfyUI's own T5 tokenizer, padding to `min_length` pieces."""
    return T5XXLTokenizer(tokenizer_data={"t5xxl_min_length": min_length})
