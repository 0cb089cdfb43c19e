"""ComfyUI as the host of a model and its text encoder; see `protocols.ModelHost`."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import comfy.model_management as model_management
import torch
from torch import Tensor

from ..concepts.pieces import beginnings
from ..lora.keys import target_slices
from .any_model import AnyModel
from .context_pieces import first_tokenizer
from .families import family, is_flux_1, layout
from .families.encoders import check_encoder
from .families.slices import role_slices
from .family_text import FamilyTextEncoder
from .frames import with_frames
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

    @property
    def family(self) -> str:
        """What ComfyUI calls the family of the model; empty for FLUX.1."""
        return "" if is_flux_1(self.model.model) else family(self.model)

    def check(self) -> None:
        """Raises ValueError when this model cannot be trained exactly; see `check_model`."""
        check_model(self.model)

    def text_encoder(self, keep: bool = True) -> ComfyTextEncoder | FamilyTextEncoder:
        """The text encoder of this model. With `keep` each prompt is encoded once and its encoding kept.

        Raises:
            ValueError: the CLIP is that of another family.
        """
        if self.model is not None and not is_flux_1(self.model.model):
            check_encoder(self.clip, self.model)
            return FamilyTextEncoder(self.clip, self.model, layout(self.model), keep)
        # With the model's shape, a CLIP of another model is refused before anything is trained.
        params = self.model.model.diffusion_model.params if self.model is not None else None
        return ComfyTextEncoder(self.clip, keep, params)

    def vocabulary(self) -> Iterable[str]:
        """The pieces of a tokenizer that begin a word, in which "▁" stands for a blank: T5's where the CLIP has one.

        Raises:
            ValueError: the tokenizer does not tell where words begin.
        """
        return beginnings(first_tokenizer(self.clip))

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
        latents = latent_shape(base, forward_batch or batch, width, height)
        image_tokens = layout(self.model).image_tokens(latents)
        # ComfyUI's own estimate knows a forward without gradients only; it bounds what its loader keeps free.
        dtype = dtype or base.get_dtype_inference()
        forward = int(base.memory_required(latents))
        return plan_memory(self.model, tokens + image_tokens, batch, dtype, trained_bytes, forward)

    def lora_size(self, targets: str | tuple[str, ...], rank: int) -> int:
        """How many weights a LoRA on these targets has."""
        # A is [rank, columns] and B is [rows, rank].
        inner = self.model.model.diffusion_model
        if is_flux_1(self.model.model):
            params = inner.params
            parts = target_slices(
                targets, params.hidden_size, params.depth, params.depth_single_blocks, params.mlp_ratio
            )
        else:
            parts = role_slices(self.model.model, inner, targets)
        return sum(rank * (part.rows + part.columns) for part in parts)

    def to_model_space(self, latents: Tensor) -> Tensor:
        """A LATENT's samples [b, c, h, w] in the space that the model works in; a float32 copy.

        Where the model has an axis for frames, [b, c, 1, h, w] is one picture each and comes back without it.

        Raises:
            ValueError: the latents are a video.
        """
        # The copy is made first: outside inference mode an inference tensor may not be changed in place.
        moved = self.model.model.process_latent_in(with_frames(self.model, latents.clone())).float()
        if moved.ndim == 5 and moved.shape[2] != 1:
            raise ValueError(f"the LATENT is a video of {moved.shape[2]} frames: give pictures, of one frame each")
        return moved[:, :, 0] if moved.ndim == 5 else moved

    def session(
        self, dtype: torch.dtype | None = None, gradient_checkpointing: bool = False, memory: int = 0
    ) -> AbstractContextManager[FluxModel | AnyModel]:
        """Lends the model for training; see `training_session`."""
        return training_session(self.model, dtype, gradient_checkpointing, memory)


def latent_shape(base: Any, batch: int, width: int, height: int) -> list[int]:
    """The shape of a batch of latents as ComfyUI's class takes them.

    Args:
        base: ComfyUI's BaseModel.
        batch: pictures.
        width, height: of one, in pixels.
    """
    latent_format = base.latent_format
    cell = latent_format.spacial_downscale_ratio
    frames = [1] if latent_format.latent_dimensions == 3 else []
    return [batch, latent_format.latent_channels, *frames, height // cell, width // cell]


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
