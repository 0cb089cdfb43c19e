"""A small random Flux of ComfyUI's own class, and inputs for it; the same on every machine."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import new_flux
from eraseanything_core.comfy_bridge.frozen_view import dissolve, frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.lora.adapter import Lora

SHAPE = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64,
    "context_in_dim": 128, "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 4, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
RANK = 4
TEXT = 24  # tokens of a prompt
BATCH = 2


def random_flux(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Weights large enough that every path through the model matters."""
    generator = torch.Generator().manual_seed(0)
    module = new_flux(SHAPE, torch.float32)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        elif "_norm." in name:
            parameter.data.uniform_(0.8, 1.6, generator=generator)
        else:
            parameter.data.normal_(0, 0.02, generator=generator)
    return module.to(dtype).requires_grad_(False)


def load(state: dict[str, Tensor], **options: Any) -> Any:
    """The MODEL of a loader node; `options` are those of ComfyUI's loader."""
    copies = {name: tensor.clone() for name, tensor in state.items()}
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(copies, model_options=options)


@dataclass(frozen=True)
class Inputs:
    """A batch of points and prompts, and constants for each loss, in float32 on the CPU."""

    x_t: Tensor
    sigma: Tensor
    context: Tensor
    pooled: Tensor
    select: Tensor  # [b, tokens, 1]
    velocities: Tensor  # [2, b, c, h, w], the teacher's for the concept and for the neutral prompt
    features: Tensor  # [b, 1 + K, queries], the teacher's of a synonym and of words to keep


def inputs() -> Inputs:
    """The same in every call."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    select = torch.zeros(BATCH, TEXT, 1)
    select[:, 3:5] = 1
    return Inputs(
        x_t=normal(BATCH, 16, 8, 8),
        sigma=torch.tensor([0.9, 0.4]),
        context=normal(BATCH, TEXT, SHAPE["context_in_dim"]),
        pooled=normal(BATCH, SHAPE["vec_in_dim"]),
        select=select,
        velocities=normal(2, BATCH, 16, 8, 8),
        features=normal(BATCH, 4, 16).abs(),
    )


@contextmanager
def on_card(
    module: nn.Module, dtype: torch.dtype, device: torch.device, recompute: bool = False
) -> Iterator[FluxModel]:
    """The seam over a copy of the module, on a device and in a type."""
    view = frozen_view(copy.deepcopy(module).to(device, dtype), dtype, device)
    try:
        with exact_gradients(view, recompute):
            yield FluxModel(view, device, dtype)
    finally:
        dissolve(view)


def attach(model: Any, targets: str = "all_qkv") -> Lora:
    """Adapters that are not zero, the same on every device."""
    lora: Lora = model.attach(targets, RANK, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    for up in lora.up:
        up.data.copy_(torch.randn(up.shape, generator=generator).mul(0.1))
    return lora
