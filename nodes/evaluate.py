"""Nodes that attack an eraser, judge its pictures, and report what is gone and what is left."""

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.concepts.concept_set import erased
from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.evaluation import (
    charts,
    comparison,
    judge_choice,
    prompt_sets,
    quality,
    report,
)
from ..eraseanything_core.evaluation.judges import TransformersClip
from ..eraseanything_core.evaluation.prompt_attacks import ATTACKS, attack
from .judges import judge_inputs, judge_ready, judges_folder
from .shared.inputs import LORA_MODEL, accepted, checked, concepts, pictures, seed

CATEGORY = "EraseAnything/evaluation"
ANSWERS, QUALITY = io.Custom("ERASE_ANSWERS"), io.Custom("ERASE_QUALITY")
CLIP_WEIGHTS = "`clip_weights`"


def input_files(*endings: str) -> list[str]:
    """Names of files in ComfyUI's input folder."""
    folder = Path(folder_paths.get_input_directory())
    return sorted(p.name for p in folder.glob("*") if p.suffix.lower() in endings) if folder.is_dir() else []


def planar(images: list) -> torch.Tensor:
    """A list of IMAGE batches as [n, 3, h, w]; ValueError when their sizes differ."""
    if len({tuple(image.shape[1:]) for image in images}) > 1:
        raise ValueError("the pictures differ in size: judge those of one size at a time")
    return torch.cat(images)[..., :3].permute(0, 3, 1, 2).float().cpu()


class PromptSet(io.ComfyNode):
    """Reads a prompt set; everything behind it runs once a row."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_PromptSet",
            display_name="Prompt Set",
            category=CATEGORY,
            description="Prompts, seeds and guidances from a CSV in the format of I2P; what follows runs once a row.",
            search_aliases=["I2P", "csv", "prompts from file"],
            inputs=[
                io.Combo.Input("file", options=["none", *input_files(".csv")], default="none",
                               tooltip="A CSV in ComfyUI's input folder; none takes the text below."),
                io.String.Input("text", default="prompt,seed,guidance,label\n", multiline=True,
                                tooltip="CSV with a header: prompt, and if wanted seed, guidance and label."),
                io.Int.Input("first", default=0, min=0, max=10**6, tooltip="Rows to leave out at the start."),
                io.Int.Input("count", default=0, min=0, max=10**6, tooltip="Rows to take; 0 is all."),
                concepts("its prompts take the place of file and text, with the concept as label."),
            ],
            outputs=[
                io.String.Output(display_name="prompt", is_output_list=True, tooltip="One prompt a row."),
                io.Int.Output(display_name="seed", is_output_list=True, tooltip="One seed a row."),
                io.Float.Output(display_name="guidance", is_output_list=True, tooltip="One guidance a row."),
                io.String.Output(display_name="label", is_output_list=True, tooltip="What each picture shall show."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file, text, first, count, concepts=None):
        path = Path(folder_paths.get_input_directory()) / file
        return (path.stat().st_mtime if path.is_file() else 0, file, text, first, count)

    @classmethod
    def execute(cls, file, text, first, count, concepts=None) -> io.NodeOutput:
        if file != "none" and concepts is None:
            text = Path(folder_paths.get_annotated_filepath(file)).read_text(encoding="utf-8")
        rows = prompt_sets.read(text) if concepts is None else prompt_sets.asking(concepts)
        rows = rows[first:][: count or None]
        if not rows:
            raise ValueError(f"the prompt set has no rows from {first} on: lower `first`")
        return io.NodeOutput(*([getattr(r, n) for r in rows] for n in ("prompt", "seed", "guidance", "label")))


class EraseAttack(io.ComfyNode):
    """Changes the concept in a prompt."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_EraseAttack",
            display_name="Erase Attack",
            category=CATEGORY,
            description="Attacks an eraser through the prompt: misspells, affixes, repeats or renames the concept.",
            search_aliases=["adversarial prompt", "misspelling", "red team"],
            inputs=[
                io.String.Input("prompt", multiline=True, tooltip="Prompts that hold the concept, one a line."),
                io.String.Input("concept", tooltip="The word or words to attack; the rest of the prompt stays."),
                io.Combo.Input("attack", options=list(ATTACKS), tooltip="How the concept is changed."),
                io.String.Input("synonyms", default="", multiline=True,
                                tooltip="For the attack `synonym`: words, separated by commas or lines."),
                seed("Equal seeds give equal attacks."),
                io.Int.Input("count", default=1, min=1, max=1000, tooltip="Attacks a prompt, with following seeds."),
                concepts("takes the place of concept and synonyms."),
            ],
            outputs=[
                io.String.Output(display_name="prompt", is_output_list=True,
                                 tooltip="Attacked prompts; what follows runs once for each."),
                io.String.Output(display_name="text", tooltip="The same, one a line."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, prompt, concept, attack, synonyms, seed, count, concepts=None) -> io.NodeOutput:
        concept, words = erased(concepts, concept, synonyms)
        made = attacked(lines_of(prompt), concept, attack, words, range(seed, seed + count))
        return io.NodeOutput(made, "\n".join(made), ui=ui.PreviewText("\n".join(made)))


def attacked(prompts, concept, kind, synonyms, seeds) -> list[str]:
    if not prompts:
        raise ValueError("there is no prompt to attack: type one that holds the concept")
    return [attack(prompt, concept, kind, seed, synonyms) for prompt in prompts for seed in seeds]


class EraseJudge(io.ComfyNode):
    """Reads pictures before and after with one judge."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_EraseJudge",
            display_name="Erase Judge",
            category=CATEGORY,
            description="Lets a judge read pictures of the same prompts and seeds before and after erasing.",
            search_aliases=["NudeNet", "CLIP zero-shot", "classifier"],
            is_input_list=True,
            inputs=[
                *pictures(),
                io.String.Input("wanted", tooltip="The label that was asked for: one for all, or one a picture. For "
                                "NudeNet: exposed or clean."),
                *judge_inputs(),
                io.String.Input("prompts", optional=True, force_input=True, tooltip="Of each picture; for the report."),
                io.Int.Input("seeds", optional=True, force_input=True, tooltip="Of each picture; for the report."),
                concepts("an empty `wanted`, or one that is another word of the concept, is the concept; empty "
                         "`labels` are the concept, its anchors and its irrelevant words."),
            ],
            outputs=[
                ANSWERS.Output(display_name="answers", tooltip="For Erasure Report."),
                io.String.Output(display_name="text", tooltip="What was read, in a few lines."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, judge=(), weights=("",), clip_vision=(), clip=()):
        """Lists of one value, or of None where it comes by a link; an input that is not there is empty."""
        return judge_ready(judge[0] if judge else None, weights[0], bool(clip_vision), bool(clip))

    @classmethod
    def execute(cls, before, after, wanted, judge, labels, template, weights, threshold,
                clip_vision=None, clip=None, prompts=(), seeds=(), concepts=()) -> io.NodeOutput:  # fmt: skip
        old, new = planar(before), planar(after)
        labels = words_of(labels[0])
        for found in concepts or ():
            wanted, labels = [found.label(word) for word in wanted], labels or found.labels()
        wanted = tuple(wanted) * len(old) if len(wanted) == 1 else tuple(wanted)
        given = {"labels": labels, "template": template[0], "weights": weights[0].strip(),
                 "threshold": threshold[0], "folder": judges_folder(),
                 "vision": (clip_vision or [None])[0], "clip": (clip or [None])[0]}  # fmt: skip
        reader = judge_choice.judge(judge[0], wanted, **given)
        answers = report.Answers(wanted, tuple(reader.read(old)), tuple(reader.read(new)), reader.identity,
                                 tuple(prompts or ()), tuple(seeds or ()))  # fmt: skip
        text = report.summary(answers)
        return io.NodeOutput(answers, text, ui=ui.PreviewText(text))


class ErasureReport(io.ComfyNode):
    """Counts the answers and writes the report."""

    @classmethod
    def define_schema(cls):
        cells = [ANSWERS.Input(name, optional=name != "acc_e", tooltip=f"From Erase Judge: pictures of {asked}.")
                 for name, asked in report.CELLS.items()]  # fmt: skip
        return io.Schema(
            node_id="EraseAnything_ErasureReport",
            display_name="Erasure Report",
            category=CATEGORY,
            description="What an eraser took and what it left, with intervals: JSON, Markdown and a chart.",
            search_aliases=["evaluation", "metrics", "unlearning score"],
            inputs=[
                io.String.Input("concept", tooltip="What was erased."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                               tooltip="Strength of the LoRA when the pictures after were made."),
                io.String.Input("model", default="", tooltip="Which model and which LoRA, for the reader."),
                io.String.Input("output_name", default="report",
                                tooltip="Name of the files in output/eraseanything; older ones are replaced."),
                *cells,
                concepts("takes the place of concept."),
                QUALITY.Input("quality", optional=True, tooltip="From Erasure Quality; goes into the report."),
                LORA_MODEL.Input("lora", optional=True, tooltip="The eraser that drew the pictures after: the report "
                                 "tells the SHA-256 of its tensors, and on which model it was trained."),
            ],
            outputs=[
                io.Image.Output(display_name="chart", tooltip="Every cell before and after, with 95 % intervals."),
                io.String.Output(display_name="markdown", tooltip="The report for people."),
                io.String.Output(display_name="json", tooltip="The report for programs."),
                io.String.Output(display_name="path", tooltip="The JSON file that was written."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, output_name=None):
        return checked(output_name)

    @classmethod
    def execute(cls, concept, strength, model, output_name, concepts=None, quality=(), lora=None,
                **answers) -> io.NodeOutput:  # fmt: skip
        concept, _ = erased(concepts, concept)
        given = {name: a for name, a in answers.items() if a is not None}
        made = report.make(concept, given, strength, model, quality=quality or (), lora=lora)
        chart, text, told = charts.bars(made), report.markdown(made), report.to_json(made)
        path = reports_folder() / f"{files.check_name(output_name)}.json"
        files.replace(path, told.encode())
        files.replace(path.with_suffix(".md"), text.encode())
        files.replace(path.with_suffix(".png"), charts.png(chart))
        shown = ui.PreviewText(text).as_dict() | ui.PreviewImage(chart, cls=cls).as_dict()
        return io.NodeOutput(chart, text, told, str(path), ui=shown)


def reports_folder() -> Path:
    folder = Path(folder_paths.get_output_directory()) / "eraseanything"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class ErasureCompare(io.ComfyNode):
    """Draws several reports together."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_ErasureCompare",
            display_name="Erasure Compare",
            category=CATEGORY,
            description="Draws saved reports together: erasing against keeping over the strength, and what erasing "
            "one concept did to the others.",
            search_aliases=["pareto", "interference matrix"],
            inputs=[
                io.String.Input("reports", default="*", multiline=True,
                                tooltip="Names of reports in output/eraseanything, one a line; * stands for any text."),
            ],
            outputs=[
                io.Image.Output(display_name="pareto", tooltip="1 - acc_e against acc_ir, one point a report."),
                io.Image.Output(display_name="interference", tooltip="Erased concepts in rows, measured ones in "
                                "columns."),
                io.String.Output(display_name="markdown", tooltip="Averages over the concepts at strength 1, with "
                                 "intervals that draw concepts, then pictures."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, reports):
        return [(str(path), path.stat().st_mtime) for path in chosen(reports)]

    @classmethod
    def execute(cls, reports) -> io.NodeOutput:
        paths = chosen(reports)
        if not paths:
            raise ValueError(f"there is no report {' or '.join(lines_of(reports))} in {reports_folder()}")
        read = [report.from_json(path.read_text(encoding="utf-8")) for path in paths]
        pictures = charts.pareto(comparison.pareto(read)), charts.heat_map(comparison.interference(read))
        text = comparison.macro_markdown(comparison.macro(read))
        shown = [image for picture in pictures for image in ui.PreviewImage(picture, cls=cls).as_dict()["images"]]
        return io.NodeOutput(*pictures, text, ui={"images": shown, "text": (text,)})


def chosen(reports: str) -> list[Path]:
    """Report files by their names, in which * stands for any text; only plain names, so nothing outside the folder."""
    names = [files.check_name(line.replace("*", "x")) and line for line in lines_of(reports)]
    return sorted({path for name in names for path in reports_folder().glob(f"{name}.json")})


class ErasureGrid(io.ComfyNode):
    """Puts pictures before and after under each other."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_ErasureGrid",
            display_name="Erasure Grid",
            category=CATEGORY,
            description="Pictures before and after erasing, those of one prompt and seed under each other.",
            is_input_list=True,
            inputs=[
                *pictures(),
                io.Int.Input("columns", default=8, min=1, max=100, tooltip="Pictures a row."),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="One picture with all pairs.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, before, after, columns) -> io.NodeOutput:
        old, new = (planar(images).permute(0, 2, 3, 1) for images in (before, after))
        grid = charts.grid(old, new, columns[0])
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))


class ErasureQuality(io.ComfyNode):
    """Distances between pictures before and after."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_ErasureQuality",
            display_name="Erasure Quality",
            category=CATEGORY,
            description="How far pictures of unrelated prompts have moved: drift at the same seed, Fréchet and kernel "
            "distances. FID only on Inception; on another network it is FD_<network>.",
            search_aliases=["FID", "KID", "drift"],
            is_input_list=True,
            inputs=[
                *pictures(", of prompts without the concept"),
                io.Combo.Input("network", options=list(quality.NETWORKS),
                               tooltip="Whose features are compared; mobilenet_v2 and inception need a file in "
                               "models/erase_judges."),
                io.Boolean.Input("lpips", default=False, tooltip="Also LPIPS with AlexNet, from torchvision's file."),
                io.String.Input("clip_weights", default="",
                                tooltip="For the CLIP score: a folder in models/erase_judges; empty leaves it out."),
                io.String.Input("prompts", optional=True, force_input=True,
                                tooltip="Of each picture, for the CLIP score."),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The distances, one a line."),
                QUALITY.Output(display_name="quality", tooltip="For Erasure Report."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, network=(None,), lpips=(False,), clip_weights=("",)):
        """Lists of one value, or of None where it comes by a link."""
        folder, clip = judges_folder(), (clip_weights[0] or "").strip()
        found = accepted(quality.require, network[0], folder, bool(lpips[0]))
        return (
            found if found is not True or not clip else accepted(judge_choice.clip_folder, folder, clip, CLIP_WEIGHTS)
        )

    @classmethod
    def execute(cls, before, after, network, lpips, clip_weights, prompts=()) -> io.NodeOutput:
        pairs, folder, clip = (planar(before), planar(after)), judges_folder(), clip_weights[0].strip()
        found = quality.distances(*pairs, network[0], folder)
        if lpips[0]:
            found.append(quality.perceptual(*pairs))
        if clip:
            reader = TransformersClip(judge_choice.clip_folder(folder, clip, CLIP_WEIGHTS))
            found += quality.clip_scores(*pairs, list(prompts or ()), reader)
        text = "\n".join(measure.text() for measure in found)
        return io.NodeOutput(text, tuple(found), ui=ui.PreviewText(text))


NODES = [
    PromptSet,
    EraseAttack,
    EraseJudge,
    ErasureReport,
    ErasureCompare,
    ErasureGrid,
    ErasureQuality,
]
