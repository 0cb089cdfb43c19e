"""What every loaded model has in common as a velocity field with adapters; see `protocols.ErasableModel`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import comfy.model_management as model_management
import torch
from torch import Tensor, nn

from ..lora.adapter import Lora
from ..lora.factors import Eraser, Factors, RowFactors, add_to_output, by_module
from ..lora.keys import LinearSlice
from ..protocols import AttentionCapture, EncodedPrompt
from ..sampling import euler
from .capture import Capture

LinearForward = Callable[[Tensor], Tensor]  # of a linear


class CaptureComplete(Exception):
    """Ends a forward of which only the attention was wanted."""


class AdaptedModel:
    """A loaded model as a velocity field, with trainable slices that can be on or off.

    Args:
        module: a view of the diffusion model, see `frozen_view`.
        device, dtype: where and in what precision it computes.
        downscale: pixels a latent cell.
        channels: of the latent.

    Attributes:
        lora: the adapters; `attach` replaces them.
        last_time: the largest t at which the model predicts.
        noise_scale: the standard deviation of its noise.
    """

    last_time = 1.0
    noise_scale = 1.0

    def __init__(
        self, module: nn.Module, device: torch.device | str, dtype: torch.dtype, downscale: int, channels: int
    ) -> None:
        self.module: Any = module
        self.device = torch.device(device)
        self.dtype = dtype
        self.downscale = downscale
        self.channels = channels
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

    def attach_frozen_lora(self, tensors: dict[str, Tensor], strength: float = 1.0, student: bool = False) -> None:
        """Puts a trained LoRA under everything, which is not trained any further.

        Args:
            tensors: under their file keys; slices may differ in rank.
            strength: factor of the LoRA.
            student: it is on for the student alone, and not for the teacher as well.

        Raises:
            ValueError: a tensor that belongs to no slice of the model.
        """
        modules = dict(self.module.named_modules())
        for name, parts in by_module(self._read(tensors)).items():
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
            linear.forward = self._with_frozen_lora(linear.forward, own_parts, student)

    def conds(self, encodings: Sequence[EncodedPrompt], guidance: float) -> Any:
        """A batch of conditions at one guidance, one prompt a row."""
        raise NotImplementedError

    def capture(self, select: Tensor, blocks: tuple[int, ...] | None = None) -> Capture:
        """A request for attention columns, for `velocity` and `columns`; select [b, text tokens, columns]."""
        return Capture(select, blocks)

    def velocity(
        self, x_t: Tensor, sigma: Tensor, cond: Any, adapters: bool, capture: AttentionCapture | None = None
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
        self, x_t: Tensor, sigma: Tensor, cond: Any, adapters: bool, capture: AttentionCapture
    ) -> dict[int, Tensor]:
        """Only the attention columns; the forward ends at the last block that is read. For the rest see `velocity`.

        Returns:
            A block's index to [b, heads, image queries, columns].
        """
        # ComfyUI's forward has no way out in its middle but an exception.
        with suppress(CaptureComplete):
            self._run(x_t, sigma, cond, adapters, capture, stop=True)
        return capture.maps

    def trajectory(
        self, cond: Any, noise: Tensor, sigmas: Tensor, adapters: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Euler's walk from noise [b, c, h, w]: yields (x_t, velocity there), last (x_0, None).

        Args:
            cond: as long as the batch.
            noise: standard noise, from which x at sigmas[0] is made.
            sigmas: [steps + 1], falling from 1 to 0, or [steps + 1, b] for times of each picture's own.
            adapters: whether the trained slices take part.
        """

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.velocity(x_t, t, cond, adapters)

        # No graph for the student's walks either: it would keep every step's activations. All begin at one time.
        with torch.no_grad():
            yield from euler(velocity, self._start(noise.to(self.device), sigmas[0].max()), sigmas)

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

    def embedder(self) -> tuple[str, str]:
        """The linear that brings a text's states into the model: its path, and its key in a file."""
        raise NotImplementedError

    def _slices(self, targets: str | tuple[str, ...]) -> list[LinearSlice]:
        raise NotImplementedError

    def _read(self, tensors: dict[str, Tensor]) -> Eraser:
        """The factors of a LoRA under its file keys."""
        raise NotImplementedError

    def _start(self, noise: Tensor, t: Tensor) -> Tensor:
        """x_t at the first time of a walk."""
        return noise

    def _predict(self, x_t: Tensor, sigma: Tensor, cond: Any, capture: AttentionCapture | None, stop: bool) -> Tensor:
        """One forward, without a word on adapters or gradients; see `_run`."""
        raise NotImplementedError

    def _adapted(self, forward: LinearForward, lora: Lora, indices: list[int]) -> LinearForward:
        def adapted(x: Tensor) -> Tensor:
            return lora.add_to_output(indices, x, forward(x)) if self.adapters else forward(x)

        return adapted

    def _with_frozen_lora(self, forward: LinearForward, parts: list[RowFactors], student: bool) -> LinearForward:
        def adapted(x: Tensor) -> Tensor:
            return add_to_output(x, forward(x), parts) if self.adapters or not student else forward(x)

        return adapted

    def _run(
        self, x_t: Tensor, sigma: Tensor, cond: Any, adapters: bool, capture: AttentionCapture | None, stop: bool
    ) -> Tensor:
        """One forward. With `stop` it ends in `CaptureComplete` once all columns are read."""
        self.adapters = adapters
        try:
            # The teacher is a constant of every loss, so its forward builds no graph.
            with torch.set_grad_enabled(adapters and torch.is_grad_enabled()):
                v = self._predict(x_t, sigma, cond, capture, stop)
        finally:
            self.adapters = True
        # In bf16 the squares of small differences would be lost.
        return v.to(x_t.dtype)
