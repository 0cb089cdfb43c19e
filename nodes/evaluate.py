"""Nodes that compare pictures before and after erasing: by a judge, by distances, and by eye."""

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.concepts.concept_set import ConceptSet
from ..eraseanything_core.concepts.prompts import words_of
from ..eraseanything_core.evaluation import charts, judge_choice, judging, quality
from ..eraseanything_core.evaluation.clip_judge import TransformersClip
from ..eraseanything_core.evaluation.judge_choice import JudgeRequest
from ..eraseanything_core.evaluation.report_text import answers_summary
from .shared.folders import judges_folder
from .shared.inputs import CATEGORY_EVALUATION, accepted, concepts, pictures
from .shared.judges import JUDGES, NETWORKS, judge_inputs, judge_ready
from .shared.progress import check_interrupt
from .shared.types import ERASE_ANSWERS, ERASE_QUALITY

CLIP_WEIGHTS = "`clip_weights`"


class EraseJudge(io.ComfyNode):
    """Reads pictures before and after with one judge."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_EraseJudge",
            display_name="Judge Pictures",
            category=CATEGORY_EVALUATION,
            description="Lets a judge read pictures of the same prompts and seeds before and after erasing.",
            search_aliases=["NudeNet", "CLIP zero-shot", "classifier", "safety", "nsfw detector"],
            is_input_list=True,  # all pictures of a prompt set at once, and every input as a list
            inputs=[
                *pictures(),
                io.String.Input(
                    "wanted",
                    tooltip="The label that was asked for: one for all pictures, or one each. For NudeNet: exposed or "
                    "clean.",
                ),
                *judge_inputs(),
                io.String.Input(
                    "prompts", optional=True, force_input=True, tooltip="One prompt per picture, for the report."
                ),
                io.Int.Input("seeds", optional=True, force_input=True, tooltip="One seed per picture, for the report."),
                concepts(
                    "it fills in `wanted` where that is empty or another word of the concept. Empty `labels` become "
                    "the concept, its anchors and its irrelevant words."
                ),
            ],
            outputs=[
                ERASE_ANSWERS.Output(display_name="answers", tooltip="For Erasure Report."),
                io.String.Output(display_name="text", tooltip="What the judge saw, in a few lines."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        judge: Sequence[str | None] = (),
        weights: Sequence[str | None] = ("",),
        clip_vision: Sequence[Any] = (),
        clip: Sequence[Any] = (),
    ) -> bool | str:
        """Lists of one value, or of None where it comes by a link; an input that is not connected is empty."""
        # Said when the graph is queued: drawing the pictures first and failing then would cost hours.
        return judge_ready(judge[0] if judge else None, weights[0], bool(clip_vision), bool(clip))

    @classmethod
    def execute(
        cls,
        before: list[torch.Tensor],
        after: list[torch.Tensor],
        wanted: list[str],
        judge: list[str],
        labels: list[str],
        template: list[str],
        weights: list[str],
        threshold: list[float],
        clip_vision: list[Any] | None = None,
        clip: list[Any] | None = None,
        prompts: list[str] | None = None,
        seeds: list[int] | None = None,
        concepts: list[ConceptSet] | None = None,
    ) -> io.NodeOutput:
        pictures_before = judging.channels_first(before)
        pictures_after = judging.channels_first(after)
        choices = words_of(labels[0])
        if concepts:
            wanted, choices = judging.labels_of(concepts[0], wanted, choices)
        # One typed label stands for all pictures; a linked list has one each.
        if len(wanted) == 1:
            wanted = wanted * len(pictures_before)
        request = JudgeRequest(
            wanted=wanted,
            folder=judges_folder(),
            labels=choices,
            template=template[0],
            weights=weights[0].strip(),
            threshold=threshold[0],
            vision=clip_vision[0] if clip_vision else None,
            clip=clip[0] if clip else None,
        )
        reader = judge_choice.build_judge(judge[0], request, JUDGES)
        answers = judging.judge_pictures(
            reader, wanted, pictures_before, pictures_after, prompts or (), seeds or (), check_interrupt
        )
        text = answers_summary(answers)
        return io.NodeOutput(answers, text, ui=ui.PreviewText(text))


class ErasureGrid(io.ComfyNode):
    """Puts pictures before and after under each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_ErasureGrid",
            display_name="Erasure Grid",
            category=CATEGORY_EVALUATION,
            description="Pictures before and after erasing, those of one prompt and seed under each other.",
            is_input_list=True,
            inputs=[
                *pictures(),
                io.Int.Input("columns", default=8, min=1, max=100, tooltip="Pictures in a row."),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="One picture with all pairs.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, before: list[torch.Tensor], after: list[torch.Tensor], columns: list[int]) -> io.NodeOutput:
        pictures_before = judging.channels_first(before).permute(0, 2, 3, 1)
        pictures_after = judging.channels_first(after).permute(0, 2, 3, 1)
        grid = charts.grid(pictures_before, pictures_after, columns[0])
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))


class ErasureQuality(io.ComfyNode):
    """Distances between pictures before and after."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_ErasureQuality",
            display_name="Erasure Quality",
            category=CATEGORY_EVALUATION,
            description="How far pictures of unrelated prompts have moved: drift at the same seed, Fréchet and kernel "
            "distances. FID only on Inception; on another network it is FD_<network>.",
            search_aliases=["FID", "KID", "drift"],
            is_input_list=True,
            inputs=[
                *pictures(", of prompts without the concept"),
                io.Combo.Input(
                    "network",
                    options=list(NETWORKS),
                    tooltip="Whose features are compared; mobilenet_v2 and inception need a file in "
                    "models/erase_judges.",
                ),
                io.Boolean.Input("lpips", default=False, tooltip="Also LPIPS with AlexNet, from torchvision's file."),
                io.String.Input(
                    "clip_weights",
                    default="",
                    tooltip="For the CLIP score: a folder in models/erase_judges; empty leaves the score out.",
                ),
                io.String.Input(
                    "prompts",
                    optional=True,
                    force_input=True,
                    tooltip="The prompt of each picture, for the CLIP score.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The distances, one per line."),
                ERASE_QUALITY.Output(display_name="quality", tooltip="For Erasure Report."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        network: Sequence[str | None] = (None,),
        lpips: Sequence[bool | None] = (False,),
        clip_weights: Sequence[str | None] = ("",),
    ) -> bool | str:
        """Lists of one value, or of None where it comes by a link."""
        folder = judges_folder()
        answer = accepted(quality.require_quality, network[0], folder, bool(lpips[0]), NETWORKS)
        clip = (clip_weights[0] or "").strip()
        if answer is True and clip:
            return accepted(judge_choice.clip_folder, folder, clip, CLIP_WEIGHTS)
        return answer

    @classmethod
    def execute(
        cls,
        before: list[torch.Tensor],
        after: list[torch.Tensor],
        network: list[str],
        lpips: list[bool],
        clip_weights: list[str],
        prompts: list[str] | None = None,
    ) -> io.NodeOutput:
        pictures_before = judging.channels_first(before)
        pictures_after = judging.channels_first(after)
        folder = judges_folder()
        measures = quality.distances(pictures_before, pictures_after, network[0], folder, NETWORKS, check_interrupt)
        if lpips[0]:
            measures.append(quality.perceptual(pictures_before, pictures_after, check_interrupt))
        if clip_weights[0].strip():
            clip = TransformersClip(judge_choice.clip_folder(folder, clip_weights[0].strip(), CLIP_WEIGHTS))
            measures += quality.clip_scores(pictures_before, pictures_after, prompts or (), clip, check_interrupt)
        text = "\n".join(measure.text() for measure in measures)
        return io.NodeOutput(text, tuple(measures), ui=ui.PreviewText(text))


NODES = [EraseJudge, ErasureGrid, ErasureQuality]
