"""The progress bar of long work, which also listens to the user's cancel."""

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils


def progress_bar(total: int) -> Callable[..., None]:
    """A callback for the core: called as progress(done, ...), it moves the node's bar.

    It raises ComfyUI's interrupt once the user has cancelled, which ends the work that calls it. ComfyUI itself looks
    for a cancel only between nodes and inside a model's forward.

    Args:
        total: steps of the whole bar.
    """
    bar = comfy.utils.ProgressBar(total)

    def progress(done: int, *details: Any) -> None:
        check_interrupt()
        bar.update_absolute(done, total)

    return progress


def check_interrupt() -> None:
    """Raises ComfyUI's interrupt once the user has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()
