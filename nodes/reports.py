"""Nodes that report what an eraser removed and what it preserved."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.concepts.concept_set import ConceptSet, erased
from ..eraseanything_core.concepts.prompts import lines_of
from ..eraseanything_core.evaluation import charts, comparison, report, report_files
from ..eraseanything_core.evaluation.gone_answers import gone_answers
from ..eraseanything_core.evaluation.quality import Measure
from ..eraseanything_core.evaluation.report import Answers
from ..eraseanything_core.evaluation.report_text import markdown
from ..eraseanything_core.lora.headers import training_size
from ..eraseanything_core.packages import require_package
from ..eraseanything_core.training import gone_dial
from ..eraseanything_core.training.config import EraseConfig
from ..eraseanything_core.training.gone import look_forwards
from ..eraseanything_core.training.gone_check import Erased
from ..eraseanything_core.training.presets import run_config
from .shared.folders import runs_folder
from .shared.inputs import CATEGORY_EVALUATION, DEFAULT_PRESET, accepted, concepts, valid_name
from .shared.progress import check_interrupt
from .shared.texts import show_text
from .shared.types import ERASE_ANSWERS, ERASE_QUALITY, LORA_MODEL

GONE_PICTURES = 24  # of the concept; of its neighbours half as many
GONE_FORWARDS = sum(look_forwards(GONE_PICTURES + GONE_PICTURES // 2, gone_dial.DIAL_STEPS))


def needs_matplotlib() -> bool | str:
    """The answer of `validate_inputs` of a node that draws a chart."""
    return accepted(require_package, "matplotlib")


def gone_config(concept: str, concepts: ConceptSet | None, lora: Mapping[str, torch.Tensor] | None) -> EraseConfig:
    """What the gone score looks at: the words of a concept set, or those of the eraser's training."""
    header = getattr(lora, "header", {})
    if concepts is None:
        return gone_dial.dial_config(header, concept, False, GONE_PICTURES)
    typed = {"look_pictures": GONE_PICTURES, "look_steps": gone_dial.DIAL_STEPS, **training_size(header)}
    return run_config(concepts.settings(), DEFAULT_PRESET, typed)


def answers_by_gone(
    original: Any,
    clip: Any,
    lora: dict[str, torch.Tensor] | None,
    strength: float,
    config: EraseConfig,
    node: str | None,
) -> dict[str, Answers]:
    """The answers of the gone score; raises ValueError when a link is missing."""
    if original is None or clip is None or lora is None:
        raise ValueError("there is nothing to report: link answers of Judge Pictures, or original, clip and lora")
    host = ComfyHost(original, clip)
    return gone_answers(host, Erased(host, lora, strength), config, lambda message: show_text(message, node))


class ErasureReport(io.ComfyNode):
    """Counts the answers and writes the report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        cells = []
        for name, question in report.CELL_QUESTIONS.items():
            tooltip = f"From Judge Pictures: pictures of {question}."
            if name == "acc_e":
                tooltip += " Without any answers the gone score is used: link original, clip and lora."
            cells.append(ERASE_ANSWERS.Input(name, optional=True, tooltip=tooltip))
        return io.Schema(
            node_id="EraseAnything_ErasureReport",
            display_name="Erasure Report",
            category=CATEGORY_EVALUATION,
            description="Reports what an eraser removed and what it preserved, with intervals: JSON, Markdown and a "
            "chart.",
            search_aliases=["evaluation", "metrics", "unlearning score", "benchmark", "safety"],
            inputs=[
                io.String.Input("concept", tooltip="What was erased."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of the LoRA when the pictures after erasing were made.",
                ),
                io.String.Input("model", default="", tooltip="Which model and which LoRA, for the reader."),
                io.String.Input(
                    "output_name",
                    default="report",
                    tooltip="Name of the files in output/eraseanything; older ones are replaced.",
                ),
                *cells,
                concepts("it replaces `concept`."),
                ERASE_QUALITY.Input("quality", optional=True, tooltip="From Erasure Quality; it goes into the report."),
                LORA_MODEL.Input(
                    "lora",
                    optional=True,
                    tooltip="The eraser that drew the pictures after. The report names it by its SHA-256, and the "
                    "model that it was trained on.",
                ),
                io.Model.Input(
                    "original",
                    optional=True,
                    tooltip="The original model, straight from its loader. Without answers of a judge it draws "
                    f"{GONE_PICTURES} held-out pictures with the lora and reads them: {GONE_FORWARDS:,} forwards.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder of `original`."),
            ],
            outputs=[
                io.Image.Output(display_name="chart", tooltip="Every cell before and after, with 95 % intervals."),
                io.String.Output(display_name="markdown", tooltip="The report for people."),
                io.String.Output(display_name="json", tooltip="The report for programs."),
                io.String.Output(display_name="path", tooltip="The JSON file that was written."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None) -> bool | str:
        # Said before anything is drawn: the pictures and the judge may take hours.
        name_answer = valid_name(output_name)
        return needs_matplotlib() if name_answer is True else name_answer

    @classmethod
    def execute(
        cls,
        concept: str,
        strength: float,
        model: str,
        output_name: str,
        concepts: ConceptSet | None = None,
        quality: Sequence[Measure] | None = None,
        lora: dict[str, torch.Tensor] | None = None,
        original: Any = None,
        clip: Any = None,
        **answers: Answers | None,
    ) -> io.NodeOutput:
        concept, _ = erased(concepts, concept)
        # An optional input that is not connected comes as None.
        connected = {name: answer for name, answer in answers.items() if answer is not None}
        if not connected:
            config = gone_config(concept, concepts, lora)
            connected = answers_by_gone(original, clip, lora, strength, config, cls.hidden.unique_id)
        erasure = report.make_report(
            concept, connected, strength, model, quality=quality or (), lora=lora, check_interrupt=check_interrupt
        )
        chart = charts.cells_chart(erasure)
        path = report_files.save_report(erasure, chart, runs_folder(), output_name)
        text = markdown(erasure)
        preview = ui.PreviewText(text).as_dict() | ui.PreviewImage(chart, cls=cls).as_dict()
        return io.NodeOutput(chart, text, report.to_json(erasure), str(path), ui=preview)


class ErasureCompare(io.ComfyNode):
    """Draws several reports together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_ErasureCompare",
            display_name="Erasure Compare",
            category=CATEGORY_EVALUATION,
            description="Draws saved reports together: erasing against keeping over the strength, and what erasing "
            "one concept did to the others.",
            search_aliases=["pareto", "interference matrix"],
            inputs=[
                io.String.Input(
                    "reports",
                    default="*",
                    multiline=True,
                    tooltip="Names of reports in output/eraseanything, one per line; * matches any text.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="pareto", tooltip="1 - acc_e against acc_ir, one point per report."),
                io.Image.Output(
                    display_name="interference", tooltip="Erased concepts in rows, measured ones in columns."
                ),
                io.String.Output(
                    display_name="markdown",
                    tooltip="Averages over the concepts at strength 1, with intervals that draw concepts, then "
                    "pictures.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls) -> bool | str:
        return needs_matplotlib()

    @classmethod
    def fingerprint_inputs(cls, reports: str) -> list[tuple[str, float]]:
        # Without the times of the files ComfyUI would show the charts of older reports.
        paths = report_files.report_paths(runs_folder(), lines_of(reports))
        return [(str(path), path.stat().st_mtime) for path in paths]

    @classmethod
    def execute(cls, reports: str) -> io.NodeOutput:
        saved = report_files.load_reports(runs_folder(), lines_of(reports), check_interrupt)
        pareto = charts.pareto_chart(comparison.pareto_points(saved))
        interference = charts.interference_chart(comparison.interference(saved))
        text = comparison.macro_markdown(comparison.macro(saved, check_interrupt=check_interrupt))
        images = []
        for chart in (pareto, interference):
            images += ui.PreviewImage(chart, cls=cls).as_dict()["images"]
        return io.NodeOutput(pareto, interference, text, ui={"images": images, "text": (text,)})


NODES = [ErasureReport, ErasureCompare]
