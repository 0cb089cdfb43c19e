"""The node that writes a whole model with an eraser in its weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.comfy_bridge.checkpoint import ErasedCheckpoint
from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.comfy_bridge.lora_files import eraser_for
from ..eraseanything_core.comfy_bridge.training_session import fingerprint
from ..eraseanything_core.lora.files import tensors_sha256
from ..eraseanything_core.lora.headers import checkpoint_header, header_concepts
from ..eraseanything_core.lora.kept_change import KeptChange
from ..eraseanything_core.lora.key_styles import left_out_note
from .shared.inputs import CATEGORY_LORAS, NOT_LINKED, accepted
from .shared.loras import check_chosen, chosen_lora, eraser_input, file_time
from .shared.progress import progress_bar
from .shared.types import LORA_MODEL

DIFFUSION_MODELS = "diffusion_models"
SERVED = "serve this file and not the original: a LoRA that is not loaded protects nobody"
PLAIN_TYPES = ("float32", "bfloat16", "float16")  # all others are coarser


class ExportCheckpoint(io.ComfyNode):
    """Saves a model with an eraser in its weights, for people who serve it to others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        strength = (
            "The LoRA strength that goes into the weights; 1 is the eraser as trained. Takes `scale` of Erase Strength."
        )
        name = "File name in models/diffusion_models, with a sub-folder if you like; a number is added if it is in use."
        return io.Schema(
            node_id="EraseAnything_ExportCheckpoint",
            display_name="Save Erased Checkpoint",
            category=CATEGORY_LORAS,
            description="Saves the whole model with an eraser in its weights, for people who serve it to others: a "
            "LoRA that is not loaded protects nobody.",
            search_aliases=["bake lora", "merge lora into model", "export", "save model", "safety", "checkpoint"],
            inputs=[
                io.Model.Input("model", tooltip="The model, straight from its loader."),
                eraser_input(),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=strength),
                io.String.Input("output_name", default="flux_erased", tooltip=name),
                LORA_MODEL.Input("lora", optional=True, tooltip="An eraser, instead of a file."),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The file that was written."),
                io.String.Output(display_name="report", tooltip="What it holds, and what rounding has cost."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        file: str | None = None,
        strength: float | None = None,
        output_name: str | None = None,
        lora: Any = NOT_LINKED,
    ) -> bool | str:
        answers = [accepted(check_chosen, file, lora)]
        if strength is not None:
            answers.append(accepted(check_strength, strength))
        if output_name is not None:
            answers.append(accepted(files.check_name, output_name, subfolders=True))
        return next((answer for answer in answers if answer is not True), True)

    @classmethod
    def fingerprint_inputs(cls, file: str, **others: Any) -> int:
        return file_time(file)

    @classmethod
    def execute(
        cls,
        model: Any,
        file: str,
        strength: float,
        output_name: str,
        lora: dict[str, torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        check_strength(strength)
        lora_model = chosen_lora(file, lora)
        concepts = header_concepts(lora_model.header, file)
        # The name first: the whole model is written, which takes minutes.
        path = files.free_path(checkpoint_folder(), output_name)
        checkpoint = ErasedCheckpoint(model, eraser_for(model, lora_model, lora_model.header, file), strength)
        files.check_room(path.parent, checkpoint.size)
        family = ComfyHost(model, None).family
        header = checkpoint_header(concepts, fingerprint(model), strength, tensors_sha256(lora_model), family)
        changes = checkpoint.kept_changes()
        checkpoint.write(path, header, progress_bar(len(checkpoint.tensors)))
        lines = [
            f"saved {path}: {checkpoint.size / 1e9:.2f} GB",
            f"has the eraser of {', '.join(concepts) or file} in its weights, at strength {strength:g}",
            SERVED,
            *change_lines(changes),
            left_out_note(lora_model, file),
        ]
        report = "\n".join(filter(None, lines))
        return io.NodeOutput(str(path), report, ui=ui.PreviewText(report))


def check_strength(strength: float) -> None:
    """Raises ValueError for a strength with which the file would be the base, or none at all."""
    if not math.isfinite(strength) or strength == 0:
        raise ValueError(f"strength is {strength:g}: set a number that is not 0")


def checkpoint_folder() -> Path:
    """The models/diffusion_models folder, from which Load Diffusion Model lists the file."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(DIFFUSION_MODELS)]
    # ComfyUI lists its older name `unet` first.
    named = [folder for folder in folders if folder.name == DIFFUSION_MODELS]
    return (named or folders)[0]


def change_lines(changes: Mapping[str, KeptChange]) -> list[str]:
    """What rounding has made of the eraser, a line for each type of weight, and a warning where it is too much."""
    lines = []
    for kind, change in changes.items():
        figures = (
            f"{change.changed_share:.0%} of the entries differ from the base, "
            f"{change.kept:.0%} of the change is kept, and rounding adds {change.noise:.0%} of its size"
        )
        lines.append(f"{kind}: {figures}")
        if change.is_lost:
            lines.append(f"WARNING: {kind} is too coarse for this eraser: {advice(kind)}")
    return lines


def advice(kind: str) -> str:
    """What to do about a type of weight that loses the eraser."""
    judge = "judge pictures of the file before anyone relies on it"
    return judge if kind in PLAIN_TYPES else f"load the base as bfloat16 and save again, or {judge}"


NODES = [ExportCheckpoint]
