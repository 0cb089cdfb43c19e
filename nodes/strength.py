"""Nodes that set how strongly an eraser works."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge import combining, patch
from ..eraseanything_core.concepts.prompts import lines_of
from ..eraseanything_core.lora import keys
from ..eraseanything_core.lora.adapter import LoraModel, load_lora, save_lora
from ..eraseanything_core.lora.headers import Erased
from ..eraseanything_core.lora.strength import HEADER, Curve, Moves, StrengthConfig
from .judges import JUDGE, Asked
from .lora import CATEGORY, read_file, with_header
from .shared.inputs import LORA_MODEL

LINKED = "(the linked lora)"


def strength_inputs() -> list:
    """An eraser, its dial and its window."""
    files = [LINKED, *folder_paths.get_filename_list("loras")]
    file = "An eraser of the loras folder, or the one that is linked."
    dial = "0: untouched. 0.5: half of the effect. 1: the eraser as trained. Past 1: more of it. "
    start = "From which part of the sampling on it works; 0 is the first step."
    end = "Up to which part of the sampling it works; 1 is the last step."
    part = {"min": 0.0, "max": 1.0, "step": 0.01}
    dialled = {"default": 1.0, "min": -3.0, "max": 3.0, "step": 0.05}
    seeds = "Seeds that the measurement takes; each is painted eight times in twenty steps."
    judge = "From Choose Judge: the dial follows its reading. Without one, the model's own change is measured."
    count = {"default": StrengthConfig.images, "min": 1, "max": 256}
    own = "Your prompts for the concept, one a line: the dial is measured on them, in turn. Empty: the eraser's own."
    return [
        io.Model.Input("model", tooltip="Flux.1; for the first measurement straight from its loader."),
        io.Combo.Input("file", options=files, tooltip=file),
        io.Float.Input("strength", **dialled, tooltip=dial + "Below 0 the concept is amplified."),
        io.Float.Input("start_percent", default=0.0, **part, tooltip=start),
        io.Float.Input("end_percent", default=1.0, **part, tooltip=end),
        LORA_MODEL.Input("lora", optional=True, tooltip="An eraser, instead of a file."),
        io.Clip.Input("clip", optional=True, tooltip="Needed once, to measure an eraser that was not yet."),
        io.Int.Input("images", **count, tooltip=seeds, advanced=True),
        JUDGE.Input("judge", optional=True, tooltip=judge),
        io.Vae.Input("vae", optional=True, tooltip="Makes the pictures that the judge reads."),
        io.String.Input("prompts", default="", multiline=True, optional=True, tooltip=own, advanced=True),
    ]


class EraseStrength(io.ComfyNode):
    """Applies an eraser at a calibrated strength, in a window of the sampling."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_EraseStrength",
            display_name="Erase Strength",
            category=CATEGORY,
            description="Applies an eraser with a dial whose middle is half of its effect.",
            search_aliases=["lora strength", "erase amount"],
            inputs=strength_inputs(),
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the eraser at this strength."),
                LORA_MODEL.Output(display_name="lora", tooltip="The eraser at full strength, with its measured dial."),
                io.Float.Output(display_name="scale", tooltip="The LoRA scale that the strength stands for."),
                io.String.Output(display_name="summary", tooltip="The measured dial."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file=LINKED, **others):
        return "" if file == LINKED else Path(folder_paths.get_full_path_or_raise("loras", file)).stat().st_mtime_ns

    @classmethod
    def execute(
        cls, model, file, strength, start_percent, end_percent, images, lora=None, clip=None, judge=None, vae=None,
        prompts="",
    ):  # fmt: skip
        if file == LINKED and lora is None:
            raise ValueError("there is no eraser: choose a file, or link a LORA_MODEL")
        if start_percent >= end_percent:
            raise ValueError(f"start_percent {start_percent:g} must be below end_percent {end_percent:g}")
        if judge is not None and vae is None:
            raise ValueError("the judge reads pictures: connect the VAE of this model")
        made, path = read_file(file) if file != LINKED else (with_header(lora), None)
        eraser = keys.read(made, made.header, file)
        patch.check_fits(model, eraser)
        made, curve = calibrated(model, clip, made, eraser, file, Reading(images, judge, vae, lines_of(prompts)))
        note = keep(made, path) if path else []
        scale = curve.scale_at(strength)
        told = f"strength {strength:g} is a scale of {scale:.3f}\nscale: share of seeds that have flipped, by "
        points = [f"{s:.2f}: {e:.2f}" for s, e in zip(curve.scale, curve.effect, strict=True)]
        summary = "\n".join([told + curve.reader, *points, *note])
        window = (start_percent, end_percent)
        return io.NodeOutput(placed(model, eraser, scale, window), made, scale, summary, ui=ui.PreviewText(summary))


@dataclass(frozen=True)
class Reading:
    """What a dial is measured with: how many seeds, who reads their pictures, and the user's own prompts."""

    images: int
    judge: Asked | None
    vae: object
    prompts: tuple[str, ...]

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:12] if self.prompts else ""

    def made(self, known: Curve | None) -> bool:
        """Whether a dial that is there was read by the judge and on the prompts that are asked for."""
        same_judge = known and (self.judge is None or known.reader == self.judge.name())
        return bool(same_judge and self.digest() in ("", known.prompts))


def keep(made: LoraModel, path: Path) -> list[str]:
    """Writes a dial into its LoRA's file unless it is there; a line that tells where the file does not take it.

    The folder may be read-only, and Windows lets nobody replace a file that a loader has open: the dial is good anyway.
    """
    if made.header == load_lora(path)[1]:
        return []
    try:
        save_lora(made, path, made.header)
    except OSError as error:
        told = f"the dial is not kept in {path.name} ({error.strerror}): save the output lora with Save Erase LoRA"
        logging.warning("Erase Strength: %s", told)
        return [told]
    return []


def calibrated(model, clip, made: LoraModel, eraser: keys.Eraser, name: str, how: Reading):
    """The LoRA with its measured dial in the header, and the dial.

    It is measured when it is not there, when a judge is asked and another had read it, and when prompts are given and
    it was measured on others.
    """
    known = Curve.of(made.header)
    if how.made(known):
        return made, known
    if clip is None:
        raise ValueError(f"the strength of {name} was not measured so yet: connect the CLIP of this model once")
    erased, reader = Erased.of(made.header, name), how.judge.reader(model, how.vae) if how.judge else Moves()
    config = StrengthConfig.like(erased, how.images)
    curve = combining.calibrate(model, clip, eraser, how.prompts or erased.asking(), config, reader)
    curve = replace(curve, prompts=how.digest())
    return LoraModel(made, made.header | {HEADER: curve.text()}), curve


def placed(model, eraser: keys.Eraser, scale: float, window: tuple[float, float]):
    """The MODEL with the eraser: in its weights, or only in a window of the sampling."""
    if window == (0.0, 1.0):
        return patch.patched(model, eraser, scale)
    sampling = model.get_model_object("model_sampling")
    return patch.scheduled(model, eraser, scale, *(sampling.percent_to_sigma(percent) for percent in window))


NODES = [EraseStrength]
