"""Erase Trainer in process: what it is given, how it is run, and what it has written."""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from scripts.erase_settings import UNWATCHED

# ComfyUI is imported where it is used: conftest.py reads this file before it skips the folder that needs ComfyUI.


class Vae:
    first_stage_model = None  # live previews then do without it

    def decode(self, latent):
        return torch.zeros(len(latent), 96, 96, 3) + latent.mean((1, 2, 3))[:, None, None, None]


SMALL = {
    "width": 96,
    "height": 96,
    "steps": 2,
    "sampling_steps": 3,
    "cached_trajectories": 2,
    "batch_size": 1,
    "retain_batch_size": 1,
    **UNWATCHED,
}
WORDS = {"synonyms": ("crimson star",), "irrelevant": ("tree", "house", "dog")}


def execute(node, values, **settings):
    """As the executor does: a locked clone of the class, inside inference mode; `settings` go over those of values."""
    if settings:
        values = values | {"settings": values["settings"] | settings}
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**values)


def said(node, **values):
    """What a node's check says when it is queued: True, or the message."""
    try:
        return node.validate_inputs(**values)
    except ValueError as error:
        return str(error)


def written(output, folder):
    """The LoRA file that a run of the trainer has written."""
    (name,) = output.ui["lora"]
    return folder / name


def losses_of(run="eraser"):
    """The losses in a run's state."""
    import folder_paths

    state = Path(folder_paths.get_output_directory()) / "eraseanything" / run / "state.safetensors"
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["run"])["losses"]


def stop_after(pairs, monkeypatch):
    """Presses ComfyUI's cross once so many pairs are done."""
    import comfy.model_management

    # The pack's modules have a name of ComfyUI's choice. The bar itself counts what is prepared, too.
    name = next(name for name in sys.modules if name.endswith("nodes.shared.training_display"))
    display = sys.modules[name].TrainingDisplay
    progress = display.progress

    def stop(self, step, losses):
        if step == pairs:
            comfy.model_management.interrupt_current_processing()
        return progress(self, step, losses)

    monkeypatch.setattr(display, "progress", stop)
