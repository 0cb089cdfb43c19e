"""Latents of models that have an axis for frames: above the bridge a picture has none."""

from typing import Any

from torch import Tensor


def with_frames(patcher: Any, latents: Tensor) -> Tensor:
    """Latents [b, c, h, w] as the MODEL's classes take them, [b, c, 1, h, w] where these have an axis for frames."""
    dimensions = patcher.model.latent_format.latent_dimensions
    return latents[:, :, None] if dimensions == 3 and latents.ndim == 4 else latents


def without_frames(latents: Tensor) -> Tensor:
    """Latents [b, c, h, w] of [b, c, h, w] or [b, c, 1, h, w]."""
    return latents[:, :, 0] if latents.ndim == 5 else latents


def as_pictures(decoded: Tensor) -> Tensor:
    """What a VAE has decoded, [n, h, w, channels] or [n, frames, h, w, channels], as pictures [n, h, w, channels]."""
    return decoded.flatten(0, 1) if decoded.ndim == 5 else decoded
