"""Pictures of latents."""

from typing import Any

import comfy.taesd.taesd
import folder_paths
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .frames import as_pictures, with_frames

# Weights of a decoder that paints in well under a second on a CPU: TAESD has 1 million. FLUX.1's VAE has 84 million and
# takes 10 s a picture.
SMALL_VAE = 10_000_000


@torch.no_grad()
def small_pictures(patcher: ModelPatcher, latents: Tensor, vae: Any = None) -> Tensor:
    """Pictures of latents in little time, made on the CPU: a training leaves no memory for a VAE on the device.

    By the given VAE where it is small and on the CPU, else by TAESD if it is in models/vae_approx, else by ComfyUI's
    linear map from latents to colours.

    Args:
        patcher: MODEL whose latents they are.
        latents: [n, c, h, w] in the model's space, on the CPU.
        vae: VAE of the user.

    Returns:
        [n, h, w, 3] in [0, 1].
    """
    latent_format = patcher.model.latent_format
    latents = with_frames(patcher, latents)
    if vae is not None and _is_quick_on_cpu(vae):
        return _by_vae(vae, latent_format.process_out(latents))
    taesd_decoder = taesd_path(latent_format)
    # The small decoders of videos are of another class.
    if taesd_decoder is not None and latents.ndim == 4:
        # TAESD and the linear map take latents as the model has them, without `process_out`.
        taesd = comfy.taesd.taesd.TAESD(None, taesd_decoder, latent_channels=latent_format.latent_channels)
        return (taesd.decode(latents) / 2 + 0.5).movedim(1, -1)
    return _by_linear_map(latent_format, latents)


def _is_quick_on_cpu(vae: Any) -> bool:
    if not vae.first_stage_model:
        return False
    weights = list(vae.first_stage_model.parameters())
    return weights[0].device.type == "cpu" and sum(weight.numel() for weight in weights) <= SMALL_VAE


def _by_vae(vae: Any, latents: Tensor) -> Tensor:
    """By its decoder alone: `VAE.decode` would have ComfyUI load it onto the device."""
    decoder = vae.first_stage_model
    # The decoder is used past `VAE.decode`, so the cast is ours to make.
    dtype = next(decoder.parameters()).dtype
    return as_pictures(vae.process_output(decoder.decode(latents.to(dtype)).float()).movedim(1, -1))


def _by_linear_map(latent_format: LatentFormat, latents: Tensor) -> Tensor:
    if latent_format.latent_rgb_factors_reshape is not None:
        latents = latent_format.latent_rgb_factors_reshape(latents)
    if latent_format.latent_rgb_factors is None:
        # Nobody has fitted one: the mean of the channels at least has the picture's forms.
        grey = latents.mean(1).sigmoid()[..., None]
        return as_pictures(grey.expand(*grey.shape[:-1], 3))
    # A matrix from latent channels to RGB: blurry, but it needs no network.
    factors = torch.tensor(latent_format.latent_rgb_factors)
    rgb = latents.movedim(1, -1) @ factors
    if latent_format.latent_rgb_factors_bias:
        rgb = rgb + torch.tensor(latent_format.latent_rgb_factors_bias)
    return as_pictures((rgb / 2 + 0.5).clamp(0, 1))


def decoded(patcher: ModelPatcher, latents: Tensor, vae: Any) -> Tensor:
    """Pictures [n, h, w, channels] of latents [n, c, h, w] in the model's space, by the user's VAE."""
    return as_pictures(vae.decode(patcher.model.process_latent_out(with_frames(patcher, latents))))


def pictures_of(patcher: ModelPatcher, latents: Tensor, vae: Any) -> Tensor:
    """Pictures of latents as the stock VAEDecode makes them.

    Args:
        patcher: MODEL whose latents they are.
        latents: [n, c, h, w] in the model's space.
        vae: VAE of the user.

    Returns:
        [n, 3, h, w] in [0, 1], float32, on the CPU.
    """
    # VAEs take latents in the user's space, and some give a fourth channel, alpha.
    pictures = decoded(patcher, latents, vae)  # [n, h, w, channels]
    return pictures.movedim(-1, 1)[:, :3].float().cpu()


def taesd_path(latent_format: LatentFormat) -> str | None:
    """The TAESD decoder of the model's latents, if the user has it."""
    name = latent_format.taesd_decoder_name
    if not name:
        return None
    for file in folder_paths.get_filename_list("vae_approx"):
        if file.startswith(name):
            return folder_paths.get_full_path("vae_approx", file)
    return None
