"""What Erase Trainer shows while it runs, and how it ends when the server is stopped."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...eraseanything_core.comfy_bridge.previews import small_pictures
from ...eraseanything_core.training.curves import curves, stacked, strip
from ...eraseanything_core.training.monitor import bounds
from ...eraseanything_core.training.termination import defer_sigterm

PREVIEW_SIZE = 1024  # px: ComfyUI scales a larger preview down to this
STRIP_HEIGHT = 160  # px: of the pictures over the curves


def finish_on_sigterm() -> AbstractContextManager[None]:
    """Lets a SIGTERM wait until the step has ended and the state and the LoRA are written."""
    server: Any = getattr(PromptServer, "instance", None)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread and not server:
        return nullcontext()
    # Python lets only the main thread set signal handlers; in a server that is the thread of the event loop.
    call: Callable[[Callable[[], None]], Any] = _call_now if in_main_thread else server.loop.call_soon_threadsafe
    return defer_sigterm(comfy.model_management.interrupt_current_processing, call)


def _call_now(function: Callable[[], None]) -> None:
    function()


class TrainingDisplay:
    """A bar with the time left, the losses, and now and then curves and pictures, on the node that runs.

    Args:
        steps: of the whole run.
        node: id of the node; None where there is no server.
        model: MODEL that is trained.
        vae: VAE of the pictures, or None for the small decoder of previews.
    """

    def __init__(self, steps: int, node: str | None, model: Any, vae: Any) -> None:
        self.steps = steps
        self.node = node
        self.model = model
        self.vae = vae
        self.bar = comfy.utils.ProgressBar(steps)
        self.start: tuple[int, float] | None = None  # the first step that was reported, and when
        self.pictures: Image.Image | None = None  # the last ones

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """After every step; passes on the user's interrupt."""
        now = time.monotonic()
        if self.start is None:
            self.start = (step, now)  # a resumed run begins somewhere in the middle
        first_step, first_time = self.start
        done = step - first_step
        self.bar.update_absolute(step)
        left = f", {(now - first_time) / done * (self.steps - step):.0f} s left" if done else ""
        values = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self.write(f"step {step} of {self.steps}{left}: {values}")
        comfy.model_management.throw_exception_if_processing_interrupted()

    def notify(self, message: str) -> None:
        """A message before the first step; the log keeps it, the node shows it until the next one."""
        logging.info("EraseAnything: %s", message)
        self.write(message)

    def write(self, text: str) -> None:
        """Shows a line of text on the node."""
        server = getattr(PromptServer, "instance", None)
        if self.node and server:
            server.send_progress_text(text, self.node)

    def show(self, latents: Tensor | None, run: Any) -> None:
        """The curves so far, under the last pictures of original, erased and neighbour.

        Args:
            latents: of new pictures, [3, c, h, w] in the model's space, or None.
            run: the run with its losses and measurements.
        """
        run.read_losses()
        if latents is not None:
            self.pictures = strip(small_pictures(self.model, latents, self.vae), STRIP_HEIGHT)
        drawn = curves(run.losses, run.scores, bounds(run.config))
        whole = stacked(self.pictures, drawn) if self.pictures else drawn
        self.bar.update_absolute(run.steps_done, preview=("JPEG", whole, PREVIEW_SIZE))
