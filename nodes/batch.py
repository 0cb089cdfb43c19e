"""The node that erases a list of concepts on many workers."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.concepts.prompts import lines_of
from ..eraseanything_core.fleet.cluster import Progress
from ..eraseanything_core.fleet.job import Outcome
from ..eraseanything_core.fleet.plan import Plan, make_plan
from ..eraseanything_core.fleet.run import comfyui_runner, machines_of, run_plan
from ..eraseanything_core.lora.files import read_lora
from ..eraseanything_core.lora.merge import MODES
from ..eraseanything_core.packages import require_package
from ..eraseanything_core.quoting import quoted
from ..eraseanything_core.training.presets import PRESETS
from .shared.folders import loras_folder, runs_folder
from .shared.inputs import CATEGORY_TRAINING, DEFAULT_PRESET, accepted, seed
from .shared.progress import check_interrupt, progress_bar
from .shared.texts import show_text
from .shared.types import ERASE_SETTINGS, LORA_MODEL, PICTURES

PACK = str(Path(__file__).resolve().parents[1])
DEFAULT_MERGE = "concatenate"
NO_CONCEPTS = "`concept_list` is empty: type the concepts to erase, one per line"


def loader_of(graph: Mapping[str, Any], node: str, name: str) -> dict[str, dict[str, Any]]:
    """The loader node behind an input, as a worker runs it: {class: its inputs}.

    Args:
        graph: in API format.
        node: id of the node that has the input.
        name: of the input.

    Raises:
        ValueError: what is linked there is no loader, since it has a link itself.
    """
    source = graph[node]["inputs"][name][0]
    loader = graph[source]
    for value in loader["inputs"].values():
        if isinstance(value, list):
            raise ValueError(
                f"`{name}` comes from {quoted(loader['class_type'])}, which is no loader: link the loader itself, "
                "since every worker loads the model anew"
            )
    return {loader["class_type"]: dict(loader["inputs"])}


def base_name(loader: Mapping[str, Mapping[str, Any]]) -> str:
    """What to call a base in names of files: the first file that its loader names."""
    ((_, inputs),) = loader.items()
    names = [Path(value).stem for value in inputs.values() if isinstance(value, str) and "." in value]
    return names[0] if names else "model"


def command_line(address: str) -> list[str]:
    """ComfyUI's own command line, with its base directory spelt out: a worker may start in another folder.

    Args:
        address: of a cluster, whose machines may have GPUs where this one has none; empty is this machine.
    """
    own = [argument for argument in sys.argv[1:] if not (address and argument == "--cpu")]
    return [*own, "--base-directory", folder_paths.base_path] if args.base_directory else own


def batch_plan(
    bases: dict[str, Any], output_name: str, concept_list: str, preset: str, merge: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a plan that do not depend on workers; see `plan.Plan`."""
    return {
        "results": runs_folder() / files.check_name(output_name, subfolders=True),
        "concepts": list(lines_of(concept_list)),
        "bases": bases,
        "methods": {preset: {"preset": preset}},
        "settings": settings,
        "merge": {"mode": merge},
    }


def worker_fields(workers: int, address: str) -> dict[str, Any]:
    """The workers of a plan: one a GPU or, on a machine without GPUs, one on the CPU.

    Args:
        workers: how many, if the user says so; else 0.
        address: of a cluster, whose workers get a GPU each whatever this machine has; empty is this machine.
    """
    on_gpu = bool(address) or comfy.model_management.get_torch_device().type == "cuda"
    return {"gpus": 1 if on_gpu else 0, "cpus": 1, "count": workers or (0 if on_gpu else 1)}


def shown_progress(node: str | None) -> Progress:
    """Moves the node's bar, says how many jobs are done and what failed, and listens to the user's cancel."""
    bars: dict[int, Any] = {}

    def progress(done: int, total: int, outcome: Outcome | None) -> None:
        check_interrupt()
        bars.setdefault(total, progress_bar(total))(done)
        if outcome:
            show_text(
                f"{done} of {total} erasers are trained" + f"; failed: {outcome.error}" * bool(outcome.error), node
            )

    return progress


def run_batch(plan: Plan, address: str, node: str | None) -> tuple[Any, str, list[str]]:
    """Runs a plan with one base and one method.

    Returns:
        The merged LoRA, the summary with the table, and the names of the LoRA files.

    Raises:
        ValueError: a training failed. What was trained is kept, and another run goes on.
    """
    machines = machines_of(plan, address, [PACK])
    runner = comfyui_runner(str(Path(folder_paths.__file__).resolve().parent), command_line(address))
    loras = loras_folder() / plan.results.relative_to(runs_folder())
    folder = plan.results / "gathered"
    result = run_plan(plan, machines, runner, folder, loras, shown_progress(node), check_interrupt)
    if result.failed:
        raise ValueError(f"{result.summary()}\nwhat is done is kept: press Run to try the others again")
    table = (folder / "table.md").read_text(encoding="utf-8")
    names = [path.relative_to(loras_folder()).as_posix() for path in result.gathered.loras]
    (merged,) = result.gathered.merged
    return read_lora(merged), f"{result.summary()}\n\n{table}", names


class EraseBatch(io.ComfyNode):
    """Erases a list of concepts, each by a LoRA of its own, on many workers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_EraseBatch",
            display_name="Erase Trainer Batch",
            category=CATEGORY_TRAINING,
            description="Trains an eraser for every concept of a list, on several GPUs or machines with Ray.",
            search_aliases=["many concepts", "batch", "ray", "cluster", "multi gpu", "distributed", "queue trainings"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="Flux.1, straight from its loader. Every worker loads the same file anew."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model, straight from its loader."),
                io.String.Input(
                    "concept_list", default="", multiline=True, tooltip="The words to erase, one concept per line."
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=DEFAULT_PRESET,
                    tooltip="How long and how thoroughly each eraser is trained; as in Erase Trainer.",
                ),
                io.String.Input(
                    "output_name",
                    default="batch",
                    tooltip="The folder of the LoRAs, in that of ComfyUI's LoRAs. Under the same name only what is "
                    "missing is trained.",
                ),
                seed("On one kind of machine the same seed gives the same LoRAs; on a GPU up to rounding."),
                io.Combo.Input(
                    "merge",
                    options=list(MODES),
                    default=DEFAULT_MERGE,
                    tooltip="How `lora` is made of all erasers; see Multi Erase LoRA.",
                ),
                io.Int.Input(
                    "workers",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="How many trainings run at once. 0 is one on each GPU or, on a machine without GPUs, one.",
                ),
                io.String.Input(
                    "address",
                    default="",
                    tooltip="Of a running Ray cluster, such as auto or 10.0.0.1:6379. Every worker there takes a GPU. "
                    "Empty uses this machine.",
                ),
                ERASE_SETTINGS.Input(
                    "settings", optional=True, tooltip="From Erase Settings: single values, over those of the preset."
                ),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="All erasers as one LoRA, for Save Erase LoRA."),
                io.String.Output(display_name="report", tooltip="What was done, and a table with a row a concept."),
                io.String.Output(display_name="files", tooltip="The LoRA file of every concept, one per line."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, concept_list: str | None = None, output_name: str | None = None) -> bool | str:
        if concept_list is not None and not lines_of(concept_list):
            return NO_CONCEPTS
        named = True if output_name is None else accepted(files.check_name, output_name, subfolders=True)
        return accepted(require_package, "ray") if named is True else named

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept_list: str,
        preset: str,
        output_name: str,
        seed: int,
        merge: str,
        workers: int,
        address: str,
        settings: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        if not lines_of(concept_list):
            raise ValueError(NO_CONCEPTS)
        if PICTURES in (settings or {}):
            raise ValueError("Erase Trainer Batch takes no pictures: unlink `pictures` of Erase Settings")
        ComfyHost(model, clip).check()
        base = {name: loader_of(cls.hidden.prompt, cls.hidden.unique_id, name) for name in ("model", "clip")}
        bases = {base_name(base["model"]): base}
        fields = batch_plan(bases, output_name, concept_list, preset, merge, settings or {})
        address = address.strip()
        plan = make_plan({**fields, "seeds": [seed], "workers": worker_fields(workers, address)}, "Erase Trainer Batch")
        if not address:
            # The workers of this machine share its GPUs with ComfyUI.
            comfy.model_management.unload_all_models()
            comfy.model_management.soft_empty_cache()
        lora, report, names = run_batch(plan, address, cls.hidden.unique_id)
        return io.NodeOutput(lora, report, "\n".join(names), ui=ui.PreviewText(report))


NODES = [EraseBatch]
