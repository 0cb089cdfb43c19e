"""Erasers as nodes take them: a file of the loras folder, or a linked LORA_MODEL."""

from typing import Any

from comfy_api.latest import io

from ...eraseanything_core.lora.files import LoraModel, read_lora
from .folders import lora_file, lora_files
from .inputs import NOT_LINKED

LINKED = "(the linked lora)"
NO_ERASER = "there is no eraser: choose a file, or link a LORA_MODEL"


def eraser_input() -> io.Input:
    """The list of files from which one eraser is chosen; the LORA_MODEL that is linked stands first."""
    tooltip = "An eraser of the loras folder, or the one that is linked."
    return io.Combo.Input("file", options=[LINKED, *lora_files()], tooltip=tooltip)


def check_chosen(file: str | None, *links: Any) -> None:
    """Raises ValueError when the linked eraser is chosen and none is linked.

    Args:
        file: as typed; None where it comes by a link.
        links: the inputs that would bring one, `NOT_LINKED` where nothing is connected.
    """
    if file == LINKED and all(link is NOT_LINKED for link in links):
        raise ValueError(NO_ERASER)


def chosen_lora(file: str, lora: dict[str, Any] | None) -> LoraModel:
    """The eraser of the file, or the linked one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither is chosen, or the file cannot be read.
    """
    if file != LINKED:
        return read_file(file)
    if lora is None:
        raise ValueError(NO_ERASER)
    return with_header(lora)


def read_file(name: str) -> LoraModel:
    """A LoRA of the loras folder with its header.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: it cannot be read.
    """
    return read_lora(lora_file(name))


def file_time(name: str) -> int:
    """When a LoRA of the loras folder was changed, in nanoseconds; 0 for the linked one."""
    return 0 if name == LINKED else lora_file(name).stat().st_mtime_ns


def with_header(tensors: dict[str, Any]) -> LoraModel:
    """A linked LORA_MODEL; one that another pack's node trained has no header."""
    return tensors if isinstance(tensors, LoraModel) else LoraModel(tensors, {})
