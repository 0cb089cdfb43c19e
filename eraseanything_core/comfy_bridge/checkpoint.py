"""A loaded MODEL with a LoRA in its weights, as a file that the stock loader reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from .. import files
from ..lora.factors import Eraser, by_module
from ..lora.files import file_order, raw_bytes, safetensors_head
from ..lora.kept_change import KeptChange, kept_change
from . import patch
from .training_session import TRANSFORMER_PREFIX, check_model


class ErasedCheckpoint:
    """The weights of a MODEL with a LoRA in them, each made when it is read.

    The rounding is ComfyUI's own, so the file samples as the MODEL with the LoRA does.

    Args:
        patcher: MODEL of a loader node.
        eraser: the LoRA.
        scale: how much of it.

    Attributes:
        tensors: by the names of the stock loader. Their `to` makes the values; before that they are the base's.
        size: of all of them, in bytes.

    Raises:
        ValueError: the MODEL is none that can be changed, or one whose weights are packed.
    """

    def __init__(self, patcher: ModelPatcher, eraser: Eraser, scale: float) -> None:
        check_model(patcher)
        self.eraser = eraser
        self.scale = scale
        self.patched = patch.with_lora(patcher, eraser, scale)
        # As the stock ModelSave does it. Weights that do not fit stay outside, and get the LoRA when they are read.
        model_management.load_models_gpu([self.patched])
        transformer = self.patched.model.diffusion_model
        self.tensors: Mapping[str, Tensor] = self.patched.model_state_dict_for_saving(transformer, TRANSFORMER_PREFIX)
        _check_plain(self.tensors)
        self.size = sum(tensor.nbytes for tensor in self.tensors.values())

    def kept_changes(self) -> dict[str, KeptChange]:
        """How much of the LoRA is left in each weight that it changes, by the weight's type."""
        return kept_changes(self.patched, self.eraser, self.scale)

    def write(self, path: Path, header: Mapping[str, str], progress: Callable[[int], None]) -> Path:
        """Writes the file, whole or not at all; one tensor at a time is in memory beside the model.

        Args:
            path: where to; its folder must exist.
            header: the metadata.
            progress: called with the number of tensors so far; what it raises ends the writing.

        Raises:
            OSError: the folder cannot be written to.
            ValueError: a tensor of a type that the format does not have.
        """
        keys = file_order(self.tensors)
        head = safetensors_head(self.tensors, keys, {"format": "pt", **header})
        return files.write_stream(path, self._parts(head, keys, progress))

    def _parts(self, head: bytes, keys: Sequence[str], progress: Callable[[int], None]) -> Iterator[bytes | memoryview]:
        yield head
        for done, key in enumerate(keys, 1):
            # Not `cpu()`: core makes the value in `to`.
            yield raw_bytes(self.tensors[key].to("cpu"))
            progress(done)


def kept_changes(patched: ModelPatcher, eraser: Eraser, scale: float) -> dict[str, KeptChange]:
    """How much of a LoRA is left in each weight that it changes, by the weight's type.

    Args:
        patched: a MODEL that has the LoRA as a patch, whether it is loaded or not.
        eraser: the LoRA.
        scale: how much of it.
    """
    changes: dict[str, KeptChange] = {}
    for module, parts in by_module(eraser).items():
        key = f"{TRANSFORMER_PREFIX}{module}.weight"
        base = base_weight(patched, key)
        changed = _patched_weight(patched, key)
        kind = _type_name(base)
        kept = kept_change(unpacked(base), unpacked(changed), parts, scale)
        changes[kind] = changes.get(kind, KeptChange()) + kept
    return changes


def _check_plain(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for weights that are not there as numbers."""
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ValueError("the MODEL's weights are packed (GGUF): load it as bf16 or fp8, which this file can hold")


def base_weight(patcher: ModelPatcher, key: str) -> Tensor:
    """A weight without the LoRA: where the LoRA is in it now, the original lies in the backup."""
    backup = patcher.backup.get(key)
    return comfy.utils.get_attr(patcher.model, key) if backup is None else backup.weight


def _patched_weight(patcher: ModelPatcher, key: str) -> Tensor:
    """A weight with the LoRA, rounded to its own precision."""
    if key in patcher.backup:
        return comfy.utils.get_attr(patcher.model, key)
    return patcher.patch_weight_to_device(key, device_to=patcher.load_device, return_weight=True)


def unpacked(weight: Any) -> Tensor:
    """The numbers that a quantised weight stands for."""
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def _type_name(weight: Any) -> str:
    """The type of a weight for people, such as `bfloat16`."""
    if isinstance(weight, QuantizedTensor):
        return f"{str(weight._qdata.dtype).removeprefix('torch.')} (scaled)"
    return str(weight.dtype).removeprefix("torch.")
