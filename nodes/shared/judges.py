"""What a node needs that lets the user choose a judge, or a network whose features are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from comfy_api.latest import io

from ...eraseanything_core.comfy_bridge.previews import pictures_of
from ...eraseanything_core.evaluation import judge_choice, quality
from ...eraseanything_core.evaluation.judge_choice import JudgeEntry
from ...eraseanything_core.evaluation.quality import FeatureNetwork
from ...eraseanything_core.lora.strength import JudgeReader
from ...eraseanything_core.protocols import Judge
from .folders import judges_folder
from .inputs import accepted

JUDGES: Mapping[str, JudgeEntry] = judge_choice.JUDGES
NETWORKS: Mapping[str, FeatureNetwork] = quality.NETWORKS

# The registry's package is shipped without TinyFlux; where it is there, its judges come first in the list.
if find_spec("...eraseanything_core.tinyflux", __package__):
    from ...eraseanything_core.tinyflux import judges as tinyflux

    JUDGES = {**tinyflux.JUDGES, **JUDGES}
    NETWORKS = {**NETWORKS, **tinyflux.NETWORKS}


def judge_inputs() -> list[io.Input]:
    """Who reads pictures, and what it needs."""
    labels = "For CLIP: the labels that it chooses between, separated by commas or lines."
    template = "For CLIP: the sentence that a label is put into, at {}."
    weights = "In models/erase_judges: for CLIP its folder, for the recogniser its file."
    threshold = (
        "How sure the judge must be. 0 is its own default: NudeNet 0.6, the others 0.5. TinyFlux's judges ignore it."
    )
    clip = "For the judge `CLIP of ComfyUI`: a text encoder that holds a CLIP-L."
    return [
        io.Combo.Input("judge", options=list(JUDGES), tooltip="Who reads the pictures."),
        io.String.Input("labels", default="", multiline=True, tooltip=labels),
        io.String.Input("template", default="a photo of a {}", tooltip=template),
        io.String.Input("weights", default="", tooltip=weights),
        io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=threshold),
        io.ClipVision.Input("clip_vision", optional=True, tooltip="For the judge `CLIP of ComfyUI`."),
        io.Clip.Input("clip", optional=True, tooltip=clip),
    ]


def judge_ready(judge: str | None, weights: str | None, clip_vision: bool, clip: bool) -> bool | str:
    """The answer of `validate_inputs`: True, or what the judge lacks.

    Args:
        judge, weights: as typed; None stands for a value that comes by a link and is not known yet.
        clip_vision, clip: whether these inputs are connected.
    """
    if judge is None:
        return True
    if judge == judge_choice.COMFYUI_CLIP:
        return accepted(judge_choice.check_links, clip_vision, clip)
    if weights is None and judge in JUDGES and JUDGES[judge].needs_weights:
        return True
    return accepted(judge_choice.require_judge, judge, judges_folder(), (weights or "").strip(), JUDGES)


@dataclass(frozen=True)
class ChosenJudge:
    """A judge, and the label with which it says that a picture shows the concept."""

    judge: Judge
    label: str

    def name(self) -> str:
        """The judge and the label, for people."""
        return f"{self.judge.identity['name']} ({self.label})"

    def reader(self, model: Any, vae: Any) -> JudgeReader:
        """Reads latents of a MODEL as the pictures that the VAE makes of them."""

        def shows(latents: torch.Tensor) -> torch.Tensor:
            verdicts = self.judge.read(pictures_of(model, latents, vae))
            return torch.tensor([verdict.label == self.label for verdict in verdicts])

        return JudgeReader(self.name(), shows)
