"""What Erase Trainer shows while it runs, and how it ends when the server is stopped."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...eraseanything_core.comfy_bridge.previews import small_pictures
from ...eraseanything_core.training.curves import curves, stacked, strip
from ...eraseanything_core.training.monitor import bounds
from ...eraseanything_core.training.termination import defer_sigterm
from .texts import show_text

PREVIEW_SIZE = 1024  # px: ComfyUI scales a larger preview down to this
PREVIEW_LABELS = ("before", "now", "neighbour now")
SECONDS_BETWEEN = 0.5  # two reports of a preparation: a small model is asked a hundred times a second
MINUTE = 60  # seconds
HOUR = 60 * MINUTE


def finish_on_sigterm() -> AbstractContextManager[None]:
    """Lets a SIGTERM wait until the step has ended and the state and the LoRA are written."""
    server: Any = getattr(PromptServer, "instance", None)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread and not server:
        return nullcontext()
    # Python lets only the main thread set signal handlers; in a server that is the thread of the event loop.
    call: Callable[[Callable[[], None]], Any] = _call_now if in_main_thread else server.loop.call_soon_threadsafe
    return defer_sigterm(comfy.model_management.interrupt_current_processing, call)


def duration(seconds: float) -> str:
    """A time in words, in the unit that a reader would choose."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"


def _call_now(function: Callable[[], None]) -> None:
    function()


class TrainingDisplay:
    """What a run does and how long it will take, and now and then curves and pictures, on the node that runs.

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
        self.prepared_from: tuple[int, float] | None = None  # the first report of a preparation, and when
        self.told = 0.0  # when the preparation was last reported

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """After every step; passes on the user's interrupt."""
        now = time.monotonic()
        if self.start is None:
            self.start = (step, now)  # a resumed run begins somewhere in the middle
        first_step, first_time = self.start
        done = step - first_step
        self.bar.update_absolute(step)
        left = f", {duration((now - first_time) / done * (self.steps - step))} left" if done else ""
        values = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self.write(f"step {step} of {self.steps}{left}: {values}")
        comfy.model_management.throw_exception_if_processing_interrupted()

    def went_on(self) -> str:
        """A line on a run that was stopped before; empty for one that began here."""
        first_step = self.start[0] if self.start else 1
        return f"went on from step {first_step - 1}" if first_step > 1 else ""

    def prepare(self, done: int, total: int) -> None:
        """While the original model is asked what the next steps need; passes on the user's interrupt.

        Args:
            done: questions that are answered.
            total: how many there are.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        now = time.monotonic()
        if self.prepared_from is None:
            self.prepared_from = (done, now)
            self.bar = comfy.utils.ProgressBar(total)  # a new one, for none tells the page of a step back
        elif now - self.told < SECONDS_BETWEEN and done < total:
            return
        self.told = now
        self.bar.update_absolute(done)
        first_done, first_time = self.prepared_from
        if done == total:
            self.prepared_from = None  # a run prepares again whenever it takes new trajectories
            self.bar = comfy.utils.ProgressBar(self.steps)
        answered = done - first_done
        left = f", {duration((now - first_time) / answered * (total - done))} left" if answered else ""
        self.write(f"preparing: sampling what the original model does, {done / total:.0%}{left}")

    def notify(self, message: str) -> None:
        """A message before the first step; the log keeps it, the node shows it until the next one."""
        logging.info("EraseAnything: %s", message)
        self.write(message)

    def write(self, text: str) -> None:
        """Shows a line of text on the node."""
        show_text(text, self.node)

    def show(self, latents: Tensor | None, run: Any) -> None:
        """The curves so far, under the last pictures of the concept before and now, and of a neighbour.

        Args:
            latents: of new pictures, [3, c, h, w] in the model's space, or None.
            run: the run with its losses and measurements.
        """
        run.read_losses()
        if latents is not None:
            self.pictures = strip(small_pictures(self.model, latents, self.vae), PREVIEW_LABELS)
        drawn = curves(run.losses, run.scores, bounds(run.config))
        whole = stacked(self.pictures, drawn) if self.pictures else drawn
        self.bar.update_absolute(run.steps_done, preview=("JPEG", whole, PREVIEW_SIZE))

    def finish(self, before: Tensor, after: Tensor) -> Tensor:
        """Shows the concept before and after in the place of the curves, as the last that the run shows.

        ComfyUI's page draws the last preview over the pictures that a node returns, and Nodes 2.0 draws it below them.
        So the preview is taken away again: what the node returns stays, also when the user looks at another tab.

        Args:
            before: [b, h, w, 3] in [0, 1], by the original model.
            after: [b, h, w, 3] in [0, 1], by the erased one from the same noise.

        Returns:
            The picture as it is shown, [1, h, w, 3] in [0, 1], for the pictures that the node returns.
        """
        rows = []
        for label, pictures in (("before", before), ("after", after)):
            rows.append(strip(pictures, [label] * len(pictures), PREVIEW_SIZE))
        whole = stacked(*rows)
        self.bar.update_absolute(self.steps, preview=("JPEG", whole, PREVIEW_SIZE))
        self._drop_preview()
        return torch.from_numpy(np.array(whole)).float()[None] / 255

    def _drop_preview(self) -> None:
        """Has the page drop the preview of this node, as it does for every node that begins to run."""
        server: Any = getattr(PromptServer, "instance", None)
        running = get_executing_context()
        if server and running:
            # After a message without any running node, the next one makes this node one that begins.
            nothing_runs = {"prompt_id": running.prompt_id, "nodes": {}}
            server.send_sync("progress_state", nothing_runs, server.client_id)
            self.bar.update_absolute(self.steps)
