"""Judges of pictures: what choosing one needs, and a node that chooses one."""

import os
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..eraseanything_core.comfy_bridge.previews import pictures_of
from ..eraseanything_core.concepts.prompts import words_of
from ..eraseanything_core.evaluation import judge_choice
from ..eraseanything_core.evaluation.judges import Judge
from ..eraseanything_core.lora.strength import Judged
from .shared.inputs import accepted

FOLDER = "erase_judges"  # the folder of models/ that holds what judges need
JUDGE = io.Custom("ERASE_JUDGE")

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def judges_folder() -> Path:
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def judge_inputs() -> list:
    """Who reads pictures, and what it needs."""
    folder = "In models/erase_judges: for CLIP its folder, for the recogniser its file."
    sure = "How sure it must be; 0 is the judge's own: NudeNet 0.6, the others 0.5. TinyFlux's judges have a fixed one."
    labels = "For CLIP: what it chooses between, separated by commas or lines."
    template = "For CLIP: the sentence that a label stands in, at {}."
    clip = "For the judge `CLIP of ComfyUI`: holds a CLIP-L."
    return [
        io.Combo.Input("judge", options=list(judge_choice.JUDGES), tooltip="Who reads the pictures."),
        io.String.Input("labels", default="", multiline=True, tooltip=labels),
        io.String.Input("template", default="a photo of a {}", tooltip=template),
        io.String.Input("weights", default="", tooltip=folder),
        io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=sure),
        io.ClipVision.Input("clip_vision", optional=True, tooltip="For the judge `CLIP of ComfyUI`."),
        io.Clip.Input("clip", optional=True, tooltip=clip),
    ]


def judge_ready(judge: str | None, weights: str | None, clip_vision: bool, clip: bool) -> bool | str:
    """True, or what a chosen judge lacks; None stands for what comes by a link."""
    if judge is None:
        return True
    if judge == judge_choice.COMFYUI:
        return accepted(judge_choice.check_links, clip_vision, clip)
    if judge in judge_choice.FROM_FOLDER and weights is None:
        return True
    return accepted(judge_choice.require, judge, folder=judges_folder(), weights=(weights or "").strip())


@dataclass(frozen=True)
class Asked:
    """A judge, and the label with which it says that a picture shows the concept."""

    judge: Judge
    label: str

    def name(self) -> str:
        return f"{self.judge.identity['name']} ({self.label})"

    def reader(self, patcher, vae) -> Judged:
        """Reads latents of a MODEL as the pictures that the VAE makes of them."""

        def shows(latents: torch.Tensor) -> torch.Tensor:
            verdicts = self.judge.read(pictures_of(patcher, latents, vae))
            return torch.tensor([verdict.label == self.label for verdict in verdicts])

        return Judged(self.name(), shows)


class ChooseJudge(io.ComfyNode):
    """A judge, for nodes that ask one."""

    @classmethod
    def define_schema(cls):
        label = "What it answers where a picture shows the concept; for NudeNet: exposed."
        return io.Schema(
            node_id="EraseAnything_ChooseJudge",
            display_name="Choose Judge",
            category="EraseAnything/evaluation",
            description="A judge by whose reading Erase Strength sets its dial.",
            search_aliases=["NudeNet", "CLIP zero-shot", "classifier"],
            inputs=[io.String.Input("label", tooltip=label), *judge_inputs()],
            outputs=[JUDGE.Output(display_name="judge", tooltip="For Erase Strength.")],
        )

    @classmethod
    def validate_inputs(cls, judge=None, weights=None):
        return judge_ready(judge, weights, True, True)  # what is linked is looked at when it runs

    @classmethod
    def execute(cls, label, judge, labels, template, weights, threshold, clip_vision=None, clip=None):
        given = {"labels": words_of(labels), "template": template, "weights": weights.strip(), "threshold": threshold}
        links = {"folder": judges_folder(), "vision": clip_vision, "clip": clip}
        return io.NodeOutput(Asked(judge_choice.judge(judge, (label.strip(),), **given, **links), label.strip()))


NODES = [ChooseJudge]
