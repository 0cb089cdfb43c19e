"""LoRA files: safetensors that are written whole, and equal bytes for equal contents."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import files
from ..quoting import quoted

ALIGNMENT = 8  # bytes; the format asks that the data begin at a multiple of it
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class LoraModel(dict[str, Tensor]):
    """ComfyUI's LORA_MODEL: tensors under their file keys, and here also the header of their file.

    Attributes:
        header: the metadata, strings only.
    """

    def __init__(self, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
        super().__init__(tensors)
        self.header = header


def save_lora(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> Path:
    """Writes a LoRA file, whole or not at all.

    Args:
        tensors: as `Lora.tensors` gives them.
        path: where to; the folder must exist, and an older file is replaced.
        metadata: the header; see `header_strings`.

    Returns:
        The path.

    Raises:
        OSError: the folder cannot be written to.
    """
    return files.write_atomic(path, *safetensors_parts(tensors, {"format": "pt", **header_strings(metadata)}))


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError when a LoRA of whatever kind holds NaN or infinite numbers: it would spoil every picture."""
    for key, tensor in tensors.items():
        # In float32, since torch has no such test for the 8-bit types.
        if not tensor.float().isfinite().all():
            raise ValueError(
                f"the LoRA holds NaN or infinite numbers at {quoted(key)}: it is not saved, train it again"
            )


def load_lora(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a LoRA file and its header.

    Args:
        path: the file.
        mapped: leave the tensors in the file, which Windows then neither replaces nor removes while they live.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is damaged, or no safetensors file.
    """
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():
            tensor = file.get_tensor(key)
            # A clone lies in memory of its own, so the mapping ends with this block.
            tensors[key] = tensor if mapped else tensor.clone()
        return tensors, file.metadata() or {}


def read_lora(path: Path) -> LoraModel:
    """A LoRA file that a user chose. Nothing but safetensors is opened: a pickle runs code while it is read.

    Raises:
        ValueError: the file cannot be read; the message names it and says what it is instead.
    """
    try:
        return LoraModel(*load_lora(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} {_kind_of_file(path)} ({error})") from error


def _kind_of_file(path: Path) -> str:
    """What a file is that is no safetensors file, and what to do, to follow its name in an error."""
    if not path.is_file():
        return "is no file: choose another"
    if not os.access(path, os.R_OK):
        return "may not be read: give ComfyUI the permission"
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the LoRA itself: run `git lfs pull`, or download the file"
    if start.startswith(b"<"):
        return "is a web page that was saved under this name: download the file itself, signed in if the site asks"
    # A zip is what `torch.save` writes; the older form is a bare pickle of protocol 2 and up.
    if start.startswith((b"PK", b"\x80")):
        return "is a .pt file under another name, which is never opened: convert it to safetensors"
    return "is damaged or no safetensors file: download it again"


def header_strings(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as safetensors holds it: values that are no strings become JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def safetensors_parts(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> list[bytes | memoryview]:
    """A safetensors file in the parts that make it up, in order.

    The library's own writer orders the header at random, so that equal contents have different hashes. It also makes
    the whole file in memory, where these parts lie where the tensors lie.
    """
    keys = file_order(tensors)
    return [safetensors_head(tensors, keys, header), *(raw_bytes(tensors[key]) for key in keys)]


def file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The keys in the order of the data: wide types first, which keeps every tensor aligned."""
    return sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))


def safetensors_head(tensors: Mapping[str, Tensor], keys: Sequence[str], header: Mapping[str, str]) -> bytes:
    """What stands before the data of a safetensors file.

    The format: the length of the JSON (8 bytes, little-endian), the JSON, the data.
    See https://huggingface.co/docs/safetensors.

    Args:
        tensors: of which only shapes and dtypes are read.
        keys: their order.
        header: the metadata.

    Raises:
        ValueError: a dtype that the format does not have.
    """
    entries: dict[str, Any] = {"__metadata__": dict(sorted(header.items()))}
    end = 0
    for key in keys:
        tensor = tensors[key]
        if tensor.dtype not in TYPE_NAMES:
            raise ValueError(f"{quoted(key)} is {tensor.dtype}, which no safetensors file holds")
        begin = end
        end = begin + tensor.nbytes
        entries[key] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    # Not escaped to ASCII: half a surrogate pair, which no reader takes, fails here and not at the next load.
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Names tensors by their keys and bytes, whatever their order and their file's header."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(raw_bytes(tensors[key]))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor where they lie, if that is on the CPU and in one piece."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # As bytes: NumPy has neither bfloat16 nor the 8-bit types.
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
