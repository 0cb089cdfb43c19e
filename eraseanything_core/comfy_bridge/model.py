"""The seam: what everything above the bridge sees of a model."""

from contextlib import contextmanager, suppress
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ..lora.adapter import DUAL, SINGLE, Lora, slices
from ..sampling import euler
from .capture import Capture


class Cond(NamedTuple):
    """What the prompt and the user give to the transformer, for a batch of b."""

    context: Tensor  # b tokens features
    pooled: Tensor  # b features
    guidance: Tensor  # b


class _Stop(Exception):
    """Ends a forward whose attention was all that was asked."""


class FluxModel:
    """The seam: a loaded Flux as a velocity, with trainable slices that can be on or off.

    Attributes:
        lora: the adapters; `attach` replaces them.
        device, dtype: where and in what precision the transformer computes.
        channels, downscale: the latent's channels and pixels a cell.
        mu: the sampling shift that the model carries.
    """

    def __init__(self, module: Flux, device, dtype: torch.dtype, mu: float = 1.15, downscale: int = 8):
        self.module, self.device, self.dtype = module, torch.device(device), dtype
        self.channels, self.downscale, self.mu = module.params.out_channels, downscale, mu
        self.lora: Lora | None = None
        self.adapters = True  # off only inside a teacher's forward: a recomputation in backward is the student's

    def attach(self, targets: str | tuple[str, ...], rank: int, generator: torch.Generator) -> Lora:
        """Puts fresh adapters onto the targets' slices; B is zero, so nothing changes yet."""
        p = self.module.params
        parts = slices(targets, p.hidden_size, p.depth, p.depth_single_blocks, p.mlp_ratio)
        self.lora = Lora(parts, rank, generator, self.device)
        for name, indices in self.lora.by_module().items():
            linear = self.module.get_submodule(name)
            linear.forward = self._adapted(linear.forward, indices)
        return self.lora

    def _adapted(self, forward, indices: list[int]):
        return lambda x: self.lora.add(indices, x, forward(x)) if self.adapters else forward(x)

    def attach_frozen_lora(self, tensors: dict[str, Tensor], strength: float = 1.0):
        """Puts a trained LoRA under everything: it stays on, with adapters and without, and is not trained.

        Args:
            tensors: under their file keys; slices may differ in rank.

        Raises:
            ValueError: a tensor that no slice of the model has a place for.
        """
        p, left = self.module.params, set(tensors)
        for part in slices((*DUAL, *SINGLE), p.hidden_size, p.depth, p.depth_single_blocks, p.mlp_ratio):
            down = f"transformer.{part.key}.lora_A.weight"
            if down in tensors:
                lora = Lora([part], len(tensors[down]), device=self.device).requires_grad_(False)
                lora.load(tensors)
                lora.up[0].mul_(strength)
                linear = self.module.get_submodule(part.module)
                linear.forward = self._with_frozen_lora(linear.forward, lora)
                left -= {down, down.replace("lora_A", "lora_B")}
        if left:
            raise ValueError(f"the LoRA is not of this model: nothing here takes {sorted(left)[0]}")

    def _with_frozen_lora(self, forward, lora: Lora):
        return lambda x: lora.add([0], x, forward(x))

    def cond(self, context: Tensor, pooled: Tensor, guidance: float) -> Cond:
        """A batch of conditions at one guidance."""
        return Cond(context, pooled, torch.full((len(context),), float(guidance)))

    def capture(self, select: Tensor, blocks: tuple[int, ...] | None = None) -> Capture:
        """A request for attention columns, for `velocity` and `columns`."""
        return Capture(select, blocks)

    def velocity(self, x_t: Tensor, sigma: Tensor, cond: Cond, adapters: bool, capture: Capture | None = None):
        """v(x_t, t, cond); without adapters it is the frozen model's and carries no gradient.

        Args:
            x_t: [b, c, h, w] in the model's own latent space.
            sigma: [b], t in [0, 1].
            cond: as long as the batch.
            adapters: whether the trained slices take part.
            capture: attention columns to read on the way.

        Returns:
            [b, c, h, w] in x_t's dtype.
        """
        return self._run(x_t, sigma, cond, adapters, capture, stop=False)

    def columns(self, x_t: Tensor, sigma: Tensor, cond: Cond, adapters: bool, capture: Capture) -> dict[int, Tensor]:
        """Only the attention columns: the forward ends at the last block that is asked. See `Capture.maps`."""
        with suppress(_Stop):
            self._run(x_t, sigma, cond, adapters, capture, stop=True)
        return capture.maps

    def trajectory(self, cond: Cond, noise: Tensor, sigmas: Tensor, adapters: bool = False):
        """Euler's walk of the frozen model (or of the adapted one) from noise; yields (x_t, v), see `euler`."""
        with torch.no_grad():
            yield from euler(lambda x, t: self.velocity(x, t, cond, adapters), noise.to(self.device), sigmas)

    @contextmanager
    def uninterrupted(self):
        """Puts the user's cross off until the work inside is whole: ComfyUI looks for it in every linear."""
        management = comfy.model_management
        look = management.throw_exception_if_processing_interrupted
        management.throw_exception_if_processing_interrupted = lambda: None
        try:
            yield
        finally:
            management.throw_exception_if_processing_interrupted = look
        look()

    def _run(self, x_t, sigma, cond, adapters, capture, stop):
        cast = {"device": self.device, "dtype": self.dtype}
        self.adapters = adapters
        try:
            with torch.set_grad_enabled(adapters and torch.is_grad_enabled()):
                v = self.module(
                    x_t.to(**cast),
                    sigma.to(self.device),
                    context=cond.context.to(**cast),
                    y=cond.pooled.to(**cast),
                    guidance=cond.guidance.to(**cast),
                    transformer_options={"optimized_attention_override": self._attention(capture, stop)},
                )
        finally:
            self.adapters = True
        return v.to(x_t.dtype)

    def _attention(self, capture: Capture | None, stop: bool):
        last = len(self.module.double_blocks) - 1
        chosen = None if capture is None else capture.blocks
        wanted = {range(last + 1)[i] for i in (range(last + 1) if chosen is None else chosen)}  # -1 is the last

        def attend(_, q, k, v, heads, *args, transformer_options, **kwargs):
            block = transformer_options["block_index"]
            if capture and transformer_options["block_type"] == "double" and block in wanted:
                done = len(capture.maps) == len(wanted)
                capture.read(q, k, block)
                if stop and not done and len(capture.maps) == len(wanted):
                    raise _Stop
            return attention_pytorch(q, k, v, heads, *args, **kwargs)

        return attend
