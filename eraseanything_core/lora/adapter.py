"""The LoRA that is trained: float32 factors of slices of a model's linears.

alpha equals the rank, so the scale is 1 and no alpha is stored. The file keys are those that diffusers and ComfyUI's
stock LoraLoader read.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .factors import Factors, RowFactors, add_to_output
from .keys import LinearSlice, file_keys


class Lora(nn.Module):
    """Trainable float32 factors of a set of slices; B starts at zero, so the model starts unchanged.

    Args:
        parts: the slices.
        rank: of every slice.
        generator: draws A; None is torch's own.
        device: where the factors lie.

    Attributes:
        down, up: A [rank, columns] and B [rows, rank] of each slice, in the order of `parts`.
        scale: the strength at which the LoRA takes part in a forward; a file has strength 1.
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
        self.scale = 1.0
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
        return add_to_output(x, y, parts, self.scale)

    def tensors(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        """The LoRA under its file keys, detached, on the CPU (meta stays meta)."""
        tensors = {}
        for key, indices in self._by_file_key().items():
            downs = [_snapshot(self.down[i], dtype) for i in indices]
            ups = [self._whole_up(i, _snapshot(self.up[i], dtype)) for i in indices]
            # Slices that a file holds in one linear stand beside each other: A below A, and B beside B.
            down_key, up_key = file_keys(key)
            tensors[down_key] = downs[0] if len(downs) == 1 else torch.cat(downs)
            tensors[up_key] = ups[0] if len(ups) == 1 else torch.cat(ups, dim=1)
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over the factors of `tensors`; raises KeyError when one is missing."""
        with torch.no_grad():
            for key, indices in self._by_file_key().items():
                down_key, up_key = file_keys(key)
                downs = tensors[down_key].split(self.rank)
                ups = tensors[up_key].split(self.rank, dim=1)
                for i, down, up in zip(indices, downs, ups, strict=True):
                    part = self.parts[i]
                    self.down[i].copy_(down)
                    self.up[i].copy_(up[part.start : part.start + part.rows] if part.whole_rows else up)

    def _by_file_key(self) -> dict[str, list[int]]:
        """The numbers of the slices that stand under each key of a file."""
        keys: dict[str, list[int]] = {}
        for i, part in enumerate(self.parts):
            keys.setdefault(part.file_key, []).append(i)
        return keys

    def _whole_up(self, i: int, up: Tensor) -> Tensor:
        """B [rows, rank] of a slice with zeros for the other rows of its linear, where a file holds these as well."""
        part = self.parts[i]
        if part.whole_rows in (0, part.rows):
            return up
        return F.pad(up, (0, 0, part.start, part.whole_rows - part.start - part.rows))


def _snapshot(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    # Copied even where the dtype is the same: the optimizer goes on writing into the parameter.
    if parameter.is_meta:
        return parameter.detach().to(dtype, copy=True)
    # To the CPU first and cast there: the factors are saved when the device is full, too.
    return parameter.detach().to("cpu", copy=True).to(dtype).contiguous()
