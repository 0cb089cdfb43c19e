"""Flux.1-dev at its true size, as shapes only: the trainer's own model on tensors without data."""

import json
import os
from functools import cache
from pathlib import Path

import comfy.ops
import torch
from comfy.ldm.flux.model import Flux
from comfy.text_encoders import t5
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eraseanything_core.comfy_bridge.architecture import t5_tokenizer
from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.concepts.pieces import pieces_of
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.presets import PRESETS

DEV = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip


def true_flux(dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init, device="meta") -> FluxModel:
    """The seam over ComfyUI's Flux with Flux.1-dev's 11.9 billion parameters."""
    module = Flux(dtype=dtype, device=device, operations=operations, **DEV).requires_grad_(False)
    return FluxModel(frozen_view(module, torch.bfloat16), device, torch.bfloat16)


def true_config(preset: str, pixels: int = 512) -> EraseConfig:
    """A run as the node would start it, with K = 3."""
    return EraseConfig(
        concept="cat",
        synonyms=("kitten", "feline"),
        irrelevant=("bridge", "violin", "mountain", "teapot", "bicycle"),
        other_neutrals=("{house}", "{tree}"),
        retain=("a dog on a sofa", "a tiger in the grass", "a photo of a street"),
        width=pixels,
        height=pixels,
        **PRESETS[preset],
    )


class Shapes:
    """The text encoders' results without their contents; counts what was encoded."""

    def __init__(self, tokens: int = 256):
        self.tokens = tokens
        self.tokenizer = t5_tokenizer(tokens)
        self.encoded = 0

    def pieces(self, text: str) -> list[str]:
        return [p for row in self.tokenizer.tokenize_with_weights(text) for p in pieces_of(self.tokenizer, row)]

    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        self.encoded += 1
        return torch.zeros(1, self.tokens, DEV["context_in_dim"]), torch.zeros(1, DEV["vec_in_dim"])


def counted(work) -> int:
    """FLOPs of matrix products in work(), a multiply-add as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@cache
def t5_flops(tokens: int = 256) -> int:
    """One prompt through T5-XXL."""
    config = json.loads((Path(os.environ["COMFYUI_PATH"]) / "comfy/text_encoders/t5_config_xxl.json").read_text())
    encoder = t5.T5(config, torch.bfloat16, "meta", comfy.ops.disable_weight_init).encoder
    with torch.no_grad():
        return counted(lambda: encoder(torch.zeros(1, tokens, config["d_model"], dtype=torch.bfloat16, device="meta")))
