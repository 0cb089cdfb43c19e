"""Nodes that give many prompts: from a table, and by attacking the concept in a prompt."""

import logging
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.concepts.concept_set import ConceptSet, erased
from ..eraseanything_core.concepts.prompts import lines_of
from ..eraseanything_core.evaluation import prompt_sets
from ..eraseanything_core.evaluation.prompt_attacks import ATTACKS, attack_all
from ..eraseanything_core.quoting import quoted
from .shared.folders import input_folder
from .shared.inputs import CATEGORY_EVALUATION, concepts, seed
from .shared.progress import check_interrupt, progress_bar

TYPED = "none"  # the choice that takes the text instead of a file
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")


def table_names() -> list[str]:
    """Names of tables in ComfyUI's input folder."""
    folder = input_folder()
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())


def read_file(name: str) -> str:
    """The text of a table in the input folder; ValueError where it cannot be read."""
    try:
        data = Path(folder_paths.get_annotated_filepath(name)).read_bytes()
    except OSError as error:
        raise ValueError(f"{quoted(name)} cannot be read: {error.strerror}") from error
    return files.decode_text(data, name)


class PromptSet(io.ComfyNode):
    """Reads a prompt set; everything behind it runs once per row."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_PromptSet",
            display_name="Prompt Set",
            category=CATEGORY_EVALUATION,
            description="Reads prompts, seeds and guidances from a CSV in the format of I2P. The nodes after it run "
            "once per row.",
            search_aliases=["I2P", "csv", "prompts from file"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[TYPED, *table_names()],
                    default=TYPED,
                    tooltip="A table in ComfyUI's input folder; none uses the text below.",
                ),
                io.String.Input(
                    "text",
                    default="prompt,seed,guidance,label\n",
                    multiline=True,
                    tooltip="CSV with a header line: prompt, and optionally seed, guidance and label.",
                ),
                io.Int.Input("first", default=0, min=0, max=10**6, tooltip="Rows to skip at the start."),
                io.Int.Input("count", default=0, min=0, max=10**6, tooltip="Rows to use; 0 means all."),
                concepts("its prompts replace file and text, with the concept as label."),
            ],
            outputs=[
                io.String.Output(display_name="prompt", is_output_list=True, tooltip="One prompt per row."),
                io.Int.Output(display_name="seed", is_output_list=True, tooltip="One seed per row."),
                io.Float.Output(display_name="guidance", is_output_list=True, tooltip="One guidance value per row."),
                io.String.Output(display_name="label", is_output_list=True, tooltip="What each picture should show."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, file: str, text: str, first: int, count: int, concepts: ConceptSet | None = None
    ) -> tuple[Any, ...]:
        # Without the time of the file ComfyUI would go on with the rows of an older one.
        path = input_folder() / file
        changed = path.stat().st_mtime if path.is_file() else 0
        return (changed, file, text, first, count)

    @classmethod
    def execute(cls, file: str, text: str, first: int, count: int, concepts: ConceptSet | None = None) -> io.NodeOutput:
        if concepts is not None:
            table = prompt_sets.from_concept_set(concepts, first=first, count=count)
        else:
            if file != TYPED:
                text = read_file(file)
            table = prompt_sets.read_table(text, first=first, count=count, progress=check_interrupt)
        # Also in the log: a run over thousands of rows is often started without anyone looking at the nodes.
        if table.notes:
            logging.warning("EraseAnything: Prompt Set: %s", table.summary())
        rows = table.rows
        return io.NodeOutput(
            [row.prompt for row in rows],
            [row.seed for row in rows],
            [row.guidance for row in rows],
            [row.label for row in rows],
            ui=ui.PreviewText(table.summary()),
        )


class EraseAttack(io.ComfyNode):
    """Changes the concept in a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_EraseAttack",
            display_name="Attack Prompts",
            category=CATEGORY_EVALUATION,
            description="Attacks an eraser through the prompt: misspells, affixes, repeats or renames the concept.",
            search_aliases=["attack", "adversarial prompt", "misspelling", "red team", "jailbreak"],
            inputs=[
                io.String.Input("prompt", multiline=True, tooltip="Prompts that contain the concept, one per line."),
                io.String.Input("concept", tooltip="The word or words to attack; the rest of the prompt stays."),
                io.Combo.Input("attack", options=list(ATTACKS), tooltip="How the concept is changed."),
                io.String.Input(
                    "synonyms",
                    default="",
                    multiline=True,
                    tooltip="For the attack `synonym`: words, separated by commas or lines.",
                ),
                seed("The same seed gives the same attack."),
                io.Int.Input(
                    "count", default=1, min=1, max=1000, tooltip="Attacks on each prompt; each has the next seed."
                ),
                concepts("it replaces concept and synonyms."),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompt",
                    is_output_list=True,
                    tooltip="The attacked prompts. The nodes after this one run once for each.",
                ),
                io.String.Output(display_name="text", tooltip="The same prompts, one per line."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        prompt: str,
        concept: str,
        attack: str,
        synonyms: str,
        seed: int,
        count: int,
        concepts: ConceptSet | None = None,
    ) -> io.NodeOutput:
        concept, words = erased(concepts, concept, synonyms)
        prompts = lines_of(prompt)
        progress = progress_bar(len(prompts) * count)
        attacks = attack_all(prompts, concept, attack, range(seed, seed + count), words, progress, check_interrupt)
        text = "\n".join(attacks)
        return io.NodeOutput(attacks, text, ui=ui.PreviewText(text))


NODES = [PromptSet, EraseAttack]
