"""The node that combines erasers."""

import functools
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.attention.hooks import GatedHook
from ..eraseanything_core.comfy_bridge import combining, patch
from ..eraseanything_core.comfy_bridge.text import TextEncoder
from ..eraseanything_core.concepts.prompts import lines_of
from ..eraseanything_core.lora import fusion, gate, keys, merge
from ..eraseanything_core.lora.adapter import LoraModel, load_lora
from ..eraseanything_core.lora.headers import Erased, joint_header, listed
from .attention import hooked
from .shared.inputs import LORA_MODEL

CATEGORY = "EraseAnything/lora"
FUSION, GATED = "closed-form fusion", "prompt-gated"


def read_file(name: str) -> tuple[LoraModel, Path]:
    """A LoRA of the loras folder, with its header; FileNotFoundError when it is not there."""
    path = Path(folder_paths.get_full_path_or_raise("loras", name))
    return LoraModel(*load_lora(path)), path


def with_header(tensors: dict) -> LoraModel:
    """A LORA_MODEL; one of another pack's nodes has no header."""
    return tensors if isinstance(tensors, LoraModel) else LoraModel(tensors, {})


def file_lines(files: str) -> list[tuple[str, float]]:
    """Names and weights from lines such as `star.safetensors: 0.8`; ValueError for a weight that is no number."""
    found = []
    for line in lines_of(files):
        name, colon, weight = line.rpartition(":")
        found.append((name.strip(), number(weight, line)) if colon else (line, 1.0))
    return found


def number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text.strip()!r} in {where!r} is no number: write a weight such as 0.8") from error


def gather(files: str, loras: dict, weights: str) -> tuple[list[LoraModel], list[str], list[float]]:
    """All erasers in order, the files first, with a name for each and its weight."""
    lines = file_lines(files)
    models = [read_file(name)[0] for name, _ in lines] + [with_header(tensors) for tensors in loras.values()]
    names = [name for name, _ in lines] + [f"the input {name}" for name in loras]
    linked = [number(w, weights) for w in words_of_all(weights)] or [1.0]
    if len(linked) not in (1, len(loras)):
        raise ValueError(f"there are {len(linked)} weights for {len(loras)} linked LoRAs: give one, or one for each")
    linked = linked * len(loras) if len(linked) == 1 else linked
    if not models:
        raise ValueError("there is no LoRA: link one, or name files, one a line")
    return models, names, [weight for _, weight in lines] + linked


def words_of_all(text: str) -> list[str]:
    """Like `words_of`, repeats included."""
    return [word for word in text.replace("\n", ",").split(",") if word.strip()]


def concepts_of(models: list[LoraModel], names: list[str], typed: str) -> list[Erased]:
    """What every LoRA erases: from the typed list if there is one, else from the LoRAs' headers."""
    told = listed(typed)
    if told and len(told) != len(models):
        raise ValueError(f"there are {len(told)} lines of concepts for {len(models)} LoRAs: give one line for each")
    return told or [Erased.of(model.header, name) for model, name in zip(models, names, strict=True)]


def lines_input(name: str, tooltip: str, **more):
    return io.String.Input(name, default="", multiline=True, tooltip=tooltip, **more)


def eraser_inputs() -> list:
    """What is combined."""
    lora = io.Autogrow.TemplatePrefix(LORA_MODEL.Input("lora"), prefix="lora", min=1, max=100)
    one_a_line = "Erasers of the loras folder, one a line, with a weight after a colon if it is not 1: "
    weights = "Weights of the linked erasers: one number for all, or one for each, with commas."
    return [
        io.Model.Input("model", tooltip="Flux.1; closed-form fusion needs it straight from its loader."),
        io.Autogrow.Input("loras", template=lora, optional=True, tooltip="Erasers; a new input grows."),
        lines_input("files", one_a_line + "star.safetensors: 0.8"),
        io.String.Input("weights", default="1", tooltip=weights),
    ]


def mode_inputs() -> list:
    """How it is combined, and what the modes that read text need."""
    how = "How they are combined; the help page has the formulas and what was measured."
    concepts = "Fusion and gating, for LoRAs whose header does not say what they erase: a line for each LoRA in order, "
    return [
        io.Combo.Input("mode", options=[FUSION, GATED, *merge.MODES], default=GATED, tooltip=how),
        io.Clip.Input("clip", optional=True, tooltip="Needed by closed-form fusion and prompt-gated."),
        lines_input("prompt", "Prompt-gated only: the prompt to sample, for any other is refused; connect its text."),
        lines_input("preserve", "Closed-form fusion only: more prompts that must stay as they are, one a line."),
        lines_input("concepts", concepts + "the concept first, then its synonyms, with commas.", advanced=True),
    ]


def number_inputs() -> list:
    """Settings of single modes."""
    rank = "Truncated and the svd modes only: the largest rank of the result; 0 is no limit."
    energy = "Truncated only: the share of the squared singular values that is kept."
    density = "TIES, DARE and magnitude only: the share of entries of each eraser that survives."
    seed = {"default": 0, "min": 0, "max": 2**31 - 1, "control_after_generate": False}
    return [
        io.Int.Input("rank", default=256, min=0, max=4096, tooltip=rank, advanced=True),
        io.Float.Input("energy", default=0.99, min=0.01, max=1.0, step=0.001, tooltip=energy, advanced=True),
        io.Float.Input("density", default=0.5, min=0.01, max=0.99, step=0.01, tooltip=density, advanced=True),
        io.Int.Input("seed", **seed, tooltip="Of the states that fusion reads and of DARE's choice.", advanced=True),
    ]


class MultiEraseLoRA(io.ComfyNode):
    """Combines any number of erasers into one LoRA."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_MultiEraseLoRA",
            display_name="Multi Erase LoRA",
            category=CATEGORY,
            description="Combines any number of erasers into one LoRA and applies it.",
            search_aliases=["merge lora", "combine lora", "several concepts"],
            inputs=[*eraser_inputs(), *mode_inputs(), *number_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="All of them erased; prompt-gated, for `prompt` only."),
                LORA_MODEL.Output(display_name="lora", tooltip="The one LoRA, for Save Erase LoRA."),
                io.String.Output(display_name="summary", tooltip="What was combined, and how."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, files=None, loras=None):  # ComfyUI always hands over a growing input
        try:
            for name, _ in file_lines(files or ""):
                folder_paths.get_full_path_or_raise("loras", name)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, files=None, **others):
        return [Path(folder_paths.get_full_path_or_raise("loras", n)).stat().st_mtime_ns for n, _ in file_lines(files)]

    @classmethod
    def execute(cls, model, files, weights, mode, prompt, preserve, concepts, loras=None, clip=None, **settings):
        models, names, given = gather(files, loras or {}, weights)
        erasers = [keys.read(m, m.header, name) for m, name in zip(models, names, strict=True)]
        keys.check_fit(erasers, names)
        for eraser in erasers:
            patch.check_fits(model, eraser)
        gates, head = None, joint_header([m.header for m in models], names, given, mode)
        if mode in (FUSION, GATED):
            if clip is None:
                raise ValueError(f"{mode} reads text states: connect the CLIP of this model")
            erased = concepts_of(models, names, concepts)
        if mode == GATED and not prompt.strip():
            raise ValueError("prompt-gated works for one prompt: connect its text to `prompt`, or choose another mode")
        if mode == FUSION:
            config = fusion.FusionConfig.like(erased[0], settings["seed"])
            cache = Path(folder_paths.get_system_user_directory("eraseanything")) / "states"
            one = combining.closed_form(model, clip, erasers, given, erased, lines_of(preserve), config, cache)
        elif mode == GATED:
            text, head = TextEncoder(clip), head | {"eraseanything.prompt": prompt}
            with torch.inference_mode(False):
                gates = gate.Gate(erased, text)(prompt)
            model = hooked(model, GatedHook(text.encode(prompt)[0]))
            one = merge.concatenated(erasers, [w * g for w, g in zip(given, gates, strict=True)])
        else:
            one = merge.combined(erasers, given, mode, **settings)
        summary = describe(mode, names, given, gates, one)
        made = LoraModel(keys.write(one, widest(models)), head)
        return io.NodeOutput(patch.patched(model, one, 1.0), made, summary, ui=ui.PreviewText(summary))


def widest(models: list[LoraModel]) -> torch.dtype:
    """The dtype that holds every tensor of the LoRAs."""
    return functools.reduce(torch.promote_types, {t.dtype for m in models for t in m.values()})


def describe(mode: str, names: list[str], weights: list[float], gates: list[float] | None, one: keys.Eraser) -> str:
    ranks = sorted({len(down) for _, down in one.values()})
    size = sum(up.numel() + down.numel() for up, down in one.values()) * 2 / 2**20
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    lines = [f"{len(names)} erasers by {mode}: {len(one)} linears, rank {span}, {size:.1f} MiB in bf16"]
    for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
        lines.append(f"{name}: weight {weight:g}" + (f", gate {gates[i]:.2f}" if gates else ""))
    return "\n".join(lines)


NODES = [MultiEraseLoRA]
