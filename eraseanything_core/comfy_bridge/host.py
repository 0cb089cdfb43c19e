"""ComfyUI as the host of a model and its text encoder; see `protocols.ModelHost`."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import comfy.model_management as model_management
import torch
from torch import Tensor

from ..lora.keys import target_slices
from .memory import MemoryPlan, plan_memory
from .model import FluxModel
from .text import ComfyTextEncoder
from .training_session import check_model, fingerprint, training_session


class ComfyHost:
    """A MODEL and its CLIP as the trainer, the erasers and the attacks see them.

    Args:
        model: MODEL of a loader node. It is only borrowed and samples bit for bit as before afterwards. None where
            only the text encoder is used.
        clip: CLIP of the text encoder's loader.
    """

    interrupts: tuple[type[BaseException], ...] = (
        model_management.InterruptProcessingException,
        KeyboardInterrupt,
    )

    def __init__(self, model: Any, clip: Any):
        self.model = model
        self.clip = clip

    @property
    def downscale(self) -> int:
        """Pixels a latent cell, in each direction."""
        return self.model.model.latent_format.spacial_downscale_ratio

    def check(self) -> None:
        """Raises ValueError when this model cannot be trained exactly; see `check_model`."""
        check_model(self.model)

    def text_encoder(self, keep: bool = True) -> ComfyTextEncoder:
        """The text encoder of this model. With `keep` each prompt is encoded once and its encoding kept."""
        # With the model's shape, a CLIP of another model is refused before anything is trained.
        params = self.model.model.diffusion_model.params if self.model is not None else None
        return ComfyTextEncoder(self.clip, keep, params)

    def vocabulary(self) -> Iterable[str]:
        """The pieces of T5's tokenizer, in which "▁" stands for a blank."""
        return self.clip.tokenizer.t5xxl.inv_vocab.values()

    def fingerprint(self) -> str:
        """Names the model's own weights, whatever is patched into them at the time."""
        return fingerprint(self.model)

    def release_others(self) -> None:
        """Takes everything but this model off its device. Every prompt must have been encoded by now."""
        release_others(self.model)

    def estimate(
        self,
        tokens: int,
        width: int,
        height: int,
        batch: int,
        trained_bytes: int,
        dtype: torch.dtype | None,
        forward_batch: int = 0,
    ) -> MemoryPlan:
        """What a graph takes on this model's device; see `protocols.ModelHost.estimate`."""
        base = self.model.model
        latent_format = base.latent_format
        cell = latent_format.spacial_downscale_ratio
        # Flux joins 2 x 2 latent cells into one token.
        image_tokens = (width // (cell * base.diffusion_model.patch_size)) * (
            height // (cell * base.diffusion_model.patch_size)
        )
        # ComfyUI's own estimate knows a forward without gradients only; it bounds what its loader keeps free.
        latents = [forward_batch or batch, latent_format.latent_channels, height // cell, width // cell]
        itemsize = (dtype or base.get_dtype_inference()).itemsize
        forward = int(base.memory_required(latents))
        return plan_memory(self.model, tokens + image_tokens, batch, itemsize, trained_bytes, forward)

    def lora_size(self, targets: str | tuple[str, ...], rank: int) -> int:
        """How many weights a LoRA on these targets has."""
        # A is [rank, columns] and B is [rows, rank].
        params = self.model.model.diffusion_model.params
        parts = target_slices(targets, params.hidden_size, params.depth, params.depth_single_blocks, params.mlp_ratio)
        return sum(rank * (part.rows + part.columns) for part in parts)

    def to_model_space(self, latents: Tensor) -> Tensor:
        """A LATENT's samples [b, c, h, w] in the space that the model works in; a float32 copy."""
        # The copy is made first: outside inference mode an inference tensor may not be changed in place.
        return self.model.model.process_latent_in(latents.clone()).float()

    def session(
        self, dtype: torch.dtype | None = None, gradient_checkpointing: bool = False, memory: int = 0
    ) -> AbstractContextManager[FluxModel]:
        """Lends the model for training; see `training_session`."""
        return training_session(self.model, dtype, gradient_checkpointing, memory)


def release_others(patcher: Any) -> None:
    """Takes text encoders and whatever else is on the model's device off it, but for the model itself."""
    device = patcher.load_device
    # There weights off the device would lie in the same memory.
    if device.type == "cpu":
        return
    own = []
    for loaded in model_management.current_loaded_models:
        # A loaded model refers to its patcher weakly; clones of a MODEL share one `model`.
        if loaded.model is not None and loaded.model.model is patcher.model:
            own.append(loaded)
    # More than any device has: everything else goes.
    model_management.free_memory(1e32, device, keep_loaded=own)
