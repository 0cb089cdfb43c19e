"""Pictures of latents; the small ones on the CPU, with no model more in the device's memory."""

import comfy.taesd.taesd
import folder_paths
import torch
from torch import Tensor


def small_pictures(patcher, latents: Tensor, vae=None) -> Tensor:
    """Pictures [n, h, w, 3] in [0, 1] of latents in the model's space.

    By the given VAE where it lies on the CPU, else by TAESD if it is in models/vae_approx, else by ComfyUI's
    linear map from latents to colours; these two take latents as the model has them.
    """
    latent_format = patcher.model.latent_format
    with torch.no_grad():
        if vae is not None and (decoder := vae.first_stage_model) and next(decoder.parameters()).device.type == "cpu":
            out = decoder.decode(latent_format.process_out(latents).to(next(decoder.parameters()).dtype)).float()
            return vae.process_output(out).movedim(1, -1)
        if path := taesd_path(latent_format):
            taesd = comfy.taesd.taesd.TAESD(None, path, latent_channels=latent_format.latent_channels)
            return (taesd.decode(latents) / 2 + 0.5).movedim(1, -1)
    factors, bias = torch.tensor(latent_format.latent_rgb_factors), latent_format.latent_rgb_factors_bias
    rgb = latents.movedim(1, -1) @ factors + (torch.tensor(bias) if bias else 0)
    return (rgb / 2 + 0.5).clamp(0, 1)


def pictures_of(patcher, latents: Tensor, vae) -> Tensor:
    """Pictures [n, 3, h, w] in [0, 1] of latents in the model's space, as the stock VAEDecode makes them."""
    return vae.decode(patcher.model.latent_format.process_out(latents)).movedim(-1, 1)[:, :3].float().cpu()


def taesd_path(latent_format) -> str | None:
    """The TAESD decoder of the model's latents, if the user has it."""
    name = latent_format.taesd_decoder_name
    found = next((f for f in folder_paths.get_filename_list("vae_approx") if name and f.startswith(name)), None)
    return found and folder_paths.get_full_path("vae_approx", found)
