"""FLUX.1 as everything above the bridge sees it; see `protocols.ErasableModel`.

`AnyModel` gives the same bits on ComfyUI's own road. This shorter one saves the detour in every forward, and runs a
bare transformer without ComfyUI's BaseModel around it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ..lora.factors import Eraser
from ..lora.key_styles import read_eraser
from ..lora.keys import TRANSFORMER, LinearSlice, target_slices
from ..protocols import AttentionCapture, EncodedPrompt
from ..sampling import shifted_sigmas
from ..transfers import on_device
from .seam import AdaptedModel, CaptureComplete


class Cond(NamedTuple):
    """What the prompt and the user give to the transformer, for a batch of b."""

    context: Tensor  # [b, tokens, features]
    pooled: Tensor  # [b, features]
    guidance: Tensor  # [b]


class FluxModel(AdaptedModel):
    """A loaded FLUX.1 as a velocity field, with trainable slices that can be on or off.

    Args:
        module: a view of the transformer, see `frozen_view`.
        device, dtype: where and in what precision it computes.
        mu: the sampling shift that the model carries.
        downscale: pixels a latent cell.
    """

    remembering = None  # its blocks are given the options of their forward

    def __init__(
        self, module: Flux, device: torch.device | str, dtype: torch.dtype, mu: float = 1.15, downscale: int = 8
    ):
        super().__init__(module, device, dtype, downscale, module.params.out_channels)
        self.mu = mu

    def cond(self, context: Tensor, pooled: Tensor, guidance: float) -> Cond:
        """A batch of conditions at one guidance; context [b, tokens, features], pooled [b, features]."""
        # FLUX.1-dev is distilled: guidance is a number that it reads, and no second forward.
        return Cond(context, pooled, torch.full((len(context),), float(guidance)))

    def conds(self, encodings: Sequence[EncodedPrompt], guidance: float) -> Cond:
        """A batch of conditions at one guidance, one prompt a row."""
        contexts, pooled = zip(*encodings, strict=True)
        return self.cond(torch.cat(contexts), torch.cat(pooled), guidance)

    def sigmas(self, steps: int, mu: float | None = None) -> Tensor:
        """The times of a sampler, [steps + 1], from 1 to 0; mu is the shift, None the model's."""
        return shifted_sigmas(steps, self.mu if mu is None else mu)

    def embedder(self) -> tuple[str, str]:
        return "txt_in", f"{TRANSFORMER}context_embedder"

    def _slices(self, targets: str | tuple[str, ...]) -> list[LinearSlice]:
        params = self.module.params
        return target_slices(targets, params.hidden_size, params.depth, params.depth_single_blocks, params.mlp_ratio)

    def _read(self, tensors: dict[str, Tensor]) -> Eraser:
        return read_eraser(tensors, {}, "the LoRA")

    def _predict(self, x_t: Tensor, sigma: Tensor, cond: Cond, capture: AttentionCapture | None, stop: bool) -> Tensor:
        v: Tensor = self.module(
            x_t.to(self.device, self.dtype),
            sigma.to(self.device),  # not cast: bf16 has 8 bits, too few to tell two late steps apart
            context=on_device(cond.context, self.device).to(self.dtype),
            y=on_device(cond.pooled, self.device).to(self.dtype),
            guidance=on_device(cond.guidance, self.device).to(self.dtype),
            transformer_options={"optimized_attention_override": self._attention(capture, stop)},
        )
        return v

    def _attention(self, capture: AttentionCapture | None, stop: bool) -> Callable[..., Tensor]:
        """An attention for ComfyUI's override that reads the columns of `capture` on the way."""
        wanted = self._wanted_blocks(capture)

        def attend(_: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
            options = kwargs.pop("transformer_options")
            is_single = options["block_type"] == "single"
            block = options["block_index"] + (len(self.module.double_blocks) if is_single else 0)
            if capture is not None and block in wanted:
                # A complete capture comes here again when a block is recomputed in backward. It must not stop there.
                was_complete = len(capture.maps) == len(wanted)
                capture.read(q, k, block)
                if stop and not was_complete and len(capture.maps) == len(wanted):
                    raise CaptureComplete
            # Other backends have no backward (sage), or cut the work by free memory, which a recomputation must not.
            return attention_pytorch(q, k, v, heads, *args, **kwargs)

        return attend

    def _wanted_blocks(self, capture: AttentionCapture | None) -> set[int]:
        """The numbers of the blocks to read: of dual ones, where -1 is the last, then of single ones."""
        blocks = range(len(self.module.double_blocks))
        if capture is None:
            return set(blocks)
        # Indexing the range turns -1 into the last block.
        chosen = set(blocks) if capture.blocks is None else {blocks[i] for i in capture.blocks}
        singles = range(len(blocks), len(blocks) + len(self.module.single_blocks)) if capture.single else ()
        return chosen | set(singles)
