"""What ComfyUI finds free on a device, said to it in place of what is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management

PLENTY = 2**60


@contextmanager
def told_free(size: int) -> Iterator[None]:
    """ComfyUI finds so many bytes free on every device."""
    before = management.get_free_memory

    def found(*_: Any, torch_free_too: bool = False) -> Any:
        return (size, 0) if torch_free_too else size

    management.get_free_memory = found
    try:
        yield
    finally:
        management.get_free_memory = before
