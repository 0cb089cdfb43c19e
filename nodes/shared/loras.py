"""Erasers as nodes take them: a file of the loras folder, or a linked LORA_MODEL."""

from typing import Any

from ...eraseanything_core.lora.files import LoraModel, read_lora
from .folders import lora_file


def read_file(name: str) -> LoraModel:
    """A LoRA of the loras folder with its header.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: it cannot be read.
    """
    return read_lora(lora_file(name))


def with_header(tensors: dict[str, Any]) -> LoraModel:
    """A linked LORA_MODEL; one that another pack's node trained has no header."""
    return tensors if isinstance(tensors, LoraModel) else LoraModel(tensors, {})
