"""The LoRA that is trained: float32 factors of slices of Flux's fused linears.

alpha equals the rank, so the scale is 1 and no alpha is stored. The file keys are those that diffusers and ComfyUI's
stock LoraLoader read.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .factors import Factors, RowFactors, add_to_output
from .keys import LinearSlice


class Lora(nn.Module):
    """Trainable float32 factors of a set of slices; B starts at zero, so the model starts unchanged.

    Args:
        parts: the slices.
        rank: of every slice.
        generator: draws A; None is torch's own.
        device: where the factors lie.

    Attributes:
        down, up: A [rank, columns] and B [rows, rank] of each slice, in the order of `parts`.
    """

    def __init__(
        self,
        parts: list[LinearSlice],
        rank: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.parts = parts
        self.rank = rank
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        for part in parts:
            # Drawn on the CPU and then moved: a seed gives the same factors on every device.
            down = torch.empty(rank, part.columns)
            down.normal_(0, 1 / rank, generator=generator)
            self.down.append(down.to(device))
            # With B at zero the student is the teacher; with both at zero neither would get a gradient.
            self.up.append(torch.zeros(part.rows, rank, device=device))

    def by_module(self) -> dict[str, list[int]]:
        """The numbers of the slices of each linear, in the order of their rows."""
        modules: dict[str, list[int]] = {}
        for i in sorted(range(len(self.parts)), key=lambda i: self.parts[i].start):
            modules.setdefault(self.parts[i].module, []).append(i)
        return modules

    def add_to_output(self, indices: Sequence[int], x: Tensor, y: Tensor) -> Tensor:
        """The linear's output y with B A x added to the rows of each slice.

        Args:
            indices: the linear's slices, as `by_module` gives them.
            x: [..., columns], the linear's input.
            y: [..., rows of the whole linear].
        """
        parts = [RowFactors(self.parts[i].start, Factors(self.up[i], self.down[i])) for i in indices]
        return add_to_output(x, y, parts)

    def tensors(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        """The LoRA under its file keys, detached, on the CPU (meta stays meta)."""
        return {key: _snapshot(parameter, dtype) for key, parameter in self._by_file_key()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over the factors of `tensors`; raises KeyError when one is missing."""
        with torch.no_grad():
            for key, parameter in self._by_file_key():
                parameter.copy_(tensors[key])

    def _by_file_key(self) -> Iterator[tuple[str, Tensor]]:
        for part, down, up in zip(self.parts, self.down, self.up, strict=True):
            yield f"transformer.{part.key}.lora_A.weight", down
            yield f"transformer.{part.key}.lora_B.weight", up


def _snapshot(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    # Copied even where the dtype is the same: the optimizer goes on writing into the parameter.
    tensor = parameter.detach().to(dtype, copy=True)
    return tensor if tensor.is_meta else tensor.cpu().contiguous()
