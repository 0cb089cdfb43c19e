"""Pictures of the user as latents of a model."""

import hashlib
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import common_upscale
from torch import Tensor

from .frames import without_frames


def picture_hash(pictures: Tensor) -> str:
    """Names pictures [n, h, w, channels] by what is in them."""
    shape = repr(tuple(pictures.shape)).encode()
    return hashlib.sha256(shape + pictures.float().cpu().numpy().tobytes()).hexdigest()[:16]


def picture_latents(patcher: ModelPatcher, pictures: Tensor, vae: Any, width: int, height: int) -> Tensor:
    """Latents [n, c, h, w] in the model's space, float32, on the CPU.

    Args:
        patcher: MODEL whose latents they are.
        pictures: [n, h, w, channels] in [0, 1], of any size; scaled, and cut about the middle.
        vae: VAE of the user.
        width, height: in pixels.
    """
    pixels = common_upscale(pictures.movedim(-1, 1)[:, :3], width, height, "bicubic", "center")
    # One by one: the VAE of a model for videos takes several pictures for the frames of one.
    latents = [vae.encode(picture[None].clamp(0, 1)) for picture in pixels.movedim(1, -1)]
    found = without_frames(patcher.model.process_latent_in(torch.cat(latents)))
    # A copy: what is made in ComfyUI's inference mode cannot stand in a graph.
    with torch.inference_mode(False):
        return found.float().cpu().clone()
