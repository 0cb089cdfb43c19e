"""What everything above the bridge sees of a loaded Flux; see `protocols.ErasableModel`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import comfy.model_management as model_management
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ..lora.adapter import Lora
from ..lora.factors import Factors, RowFactors, add_to_output, by_module
from ..lora.key_styles import read_eraser
from ..lora.keys import LinearSlice, target_slices
from ..protocols import AttentionCapture
from ..sampling import euler
from .capture import Capture

LinearForward = Callable[[Tensor], Tensor]  # of a linear


class Cond(NamedTuple):
    """What the prompt and the user give to the transformer, for a batch of b."""

    context: Tensor  # [b, tokens, features]
    pooled: Tensor  # [b, features]
    guidance: Tensor  # [b]


class _CaptureComplete(Exception):
    """Ends a forward of which only the attention was wanted."""


class FluxModel:
    """A loaded Flux as a velocity field, with trainable slices that can be on or off.

    Args:
        module: a view of the transformer, see `frozen_view`.
        device, dtype: where and in what precision it computes.
        mu: the sampling shift that the model carries.
        downscale: pixels a latent cell.

    Attributes:
        lora: the adapters; `attach` replaces them.
        channels: of the latent.
    """

    def __init__(
        self, module: Flux, device: torch.device | str, dtype: torch.dtype, mu: float = 1.15, downscale: int = 8
    ):
        self.module = module
        self.device = torch.device(device)
        self.dtype = dtype
        self.channels: int = module.params.out_channels
        self.downscale = downscale
        self.mu = mu
        self.lora: Lora | None = None
        # Off only inside a teacher's forward. A block that is recomputed in backward belongs to the student, and runs
        # long after its forward has returned; so on is what is restored.
        self.adapters = True

    def attach(self, targets: str | tuple[str, ...], rank: int, generator: torch.Generator) -> Lora:
        """Puts fresh adapters onto the targets' slices. B is zero, so nothing changes yet.

        Raises:
            ValueError: a target that does not exist.
        """
        parts = self._slices(targets)
        self.lora = Lora(parts, rank, generator, self.device)
        for name, indices in self.lora.by_module().items():
            linear = self.module.get_submodule(name)
            # On the instance: only this linear of the view changes, and `dissolve` takes the attribute off again.
            linear.forward = self._adapted(linear.forward, self.lora, indices)
        return self.lora

    def attach_frozen_lora(self, tensors: dict[str, Tensor], strength: float = 1.0) -> None:
        """Puts a trained LoRA under everything: it is on for teacher and student alike, and is not trained.

        Args:
            tensors: under their file keys; slices may differ in rank.
            strength: factor of the LoRA.

        Raises:
            ValueError: a tensor that belongs to no slice of the model.
        """
        modules = dict(self.module.named_modules())
        for name, parts in by_module(read_eraser(tensors, {}, "the LoRA")).items():
            linear = modules.get(name)
            last = parts[-1]
            # Some of ComfyUI's linears are fused (qkv, and linear1 with the MLP): a part is a range of their rows.
            rows = last.start + len(last.factors.up)
            columns = last.factors.down.shape[1]
            if linear is None or linear.in_features != columns or linear.out_features < rows:
                raise ValueError(f"the LoRA is not of this model: it has no place for factors of {name}")
            own_parts = []
            for start, (up, down) in parts:
                # Copies: a node's tensors are inference tensors, which a backward cannot go through.
                factors = Factors(strength * up.to(self.device), down.to(self.device, copy=True))
                own_parts.append(RowFactors(start, factors))
            linear.forward = _with_frozen_lora(linear.forward, own_parts)

    def cond(self, context: Tensor, pooled: Tensor, guidance: float) -> Cond:
        """A batch of conditions at one guidance; context [b, tokens, features], pooled [b, features]."""
        # FLUX.1-dev is distilled: guidance is a number that it reads, and no second forward.
        return Cond(context, pooled, torch.full((len(context),), float(guidance)))

    def capture(self, select: Tensor, blocks: tuple[int, ...] | None = None) -> Capture:
        """A request for attention columns, for `velocity` and `columns`; select [b, text tokens, columns]."""
        return Capture(select, blocks)

    def velocity(
        self, x_t: Tensor, sigma: Tensor, cond: Cond, adapters: bool, capture: AttentionCapture | None = None
    ) -> Tensor:
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

    def columns(
        self, x_t: Tensor, sigma: Tensor, cond: Cond, adapters: bool, capture: AttentionCapture
    ) -> dict[int, Tensor]:
        """Only the attention columns; the forward ends at the last block that is read. For the rest see `velocity`.

        Returns:
            A block's index to [b, heads, image queries, columns].
        """
        # ComfyUI's forward has no way out in its middle but an exception.
        with suppress(_CaptureComplete):
            self._run(x_t, sigma, cond, adapters, capture, stop=True)
        return capture.maps

    def trajectory(
        self, cond: Cond, noise: Tensor, sigmas: Tensor, adapters: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Euler's walk from noise [b, c, h, w]: yields (x_t, velocity there), last (x_0, None).

        Args:
            cond: as long as the batch.
            noise: x at sigmas[0].
            sigmas: [steps + 1], falling from 1 to 0.
            adapters: whether the trained slices take part.
        """

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.velocity(x_t, t, cond, adapters)

        # The student's walks as well: a graph over all steps would keep the activations of every one.
        with torch.no_grad():
            yield from euler(velocity, noise.to(self.device), sigmas)

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Inside, a user's interrupt waits until the work is whole; at the end it is raised.

        ComfyUI looks for an interrupt in every linear, so it could stop a run between two halves of a step.
        """
        raise_if_interrupted = model_management.throw_exception_if_processing_interrupted
        model_management.throw_exception_if_processing_interrupted = lambda: None
        try:
            yield
        finally:
            model_management.throw_exception_if_processing_interrupted = raise_if_interrupted
        # An interrupt that came meanwhile is due now.
        raise_if_interrupted()

    def _slices(self, targets: str | tuple[str, ...]) -> list[LinearSlice]:
        params = self.module.params
        return target_slices(targets, params.hidden_size, params.depth, params.depth_single_blocks, params.mlp_ratio)

    def _adapted(self, forward: LinearForward, lora: Lora, indices: list[int]) -> LinearForward:
        def adapted(x: Tensor) -> Tensor:
            return lora.add_to_output(indices, x, forward(x)) if self.adapters else forward(x)

        return adapted

    def _run(
        self, x_t: Tensor, sigma: Tensor, cond: Cond, adapters: bool, capture: AttentionCapture | None, stop: bool
    ) -> Tensor:
        """One forward. With `stop` it ends in `_CaptureComplete` once all columns are read."""
        self.adapters = adapters
        try:
            # The teacher is a constant of every loss, so its forward builds no graph.
            with torch.set_grad_enabled(adapters and torch.is_grad_enabled()):
                v = self.module(
                    x_t.to(self.device, self.dtype),
                    sigma.to(self.device),  # not cast: bf16 has 8 bits, too few to tell two late steps apart
                    context=cond.context.to(self.device, self.dtype),
                    y=cond.pooled.to(self.device, self.dtype),
                    guidance=cond.guidance.to(self.device, self.dtype),
                    transformer_options={"optimized_attention_override": self._attention(capture, stop)},
                )
        finally:
            self.adapters = True
        # In bf16 the squares of small differences would be lost.
        return v.to(x_t.dtype)

    def _attention(self, capture: AttentionCapture | None, stop: bool) -> Callable[..., Tensor]:
        """An attention for ComfyUI's override that reads the columns of `capture` on the way."""
        wanted = self._wanted_blocks(capture)

        def attend(_: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
            options = kwargs.pop("transformer_options")
            block = options["block_index"]
            if capture is not None and options["block_type"] == "double" and block in wanted:
                # A complete capture comes here again when a block is recomputed in backward. It must not stop there.
                was_complete = len(capture.maps) == len(wanted)
                capture.read(q, k, block)
                if stop and not was_complete and len(capture.maps) == len(wanted):
                    raise _CaptureComplete
            # Other backends have no backward (sage), or cut the work by free memory, which a recomputation must not.
            return attention_pytorch(q, k, v, heads, *args, **kwargs)

        return attend

    def _wanted_blocks(self, capture: AttentionCapture | None) -> set[int]:
        """The indices of the dual blocks to read; -1 is the last one."""
        blocks = range(len(self.module.double_blocks))
        if capture is None or capture.blocks is None:
            return set(blocks)
        # Indexing the range turns -1 into the last block.
        return {blocks[i] for i in capture.blocks}


def _with_frozen_lora(forward: LinearForward, parts: list[RowFactors]) -> LinearForward:
    def adapted(x: Tensor) -> Tensor:
        return add_to_output(x, forward(x), parts)

    return adapted
