"""Nodes that combine erasers and set their strength."""

import functools
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.compose import fusion, gate, keys, merge
from ..eraseanything_core.compose.erased import Erased, joint_header, listed
from ..eraseanything_core.flux import TextEncoder, merging, patch
from ..eraseanything_core.lora import LoraModel, load_lora, save_lora
from ..eraseanything_core.prompts import lines_of
from ..eraseanything_core.strength import HEADER, Curve, StrengthConfig

CATEGORY = "EraseAnything/lora"
LORA_MODEL = io.Custom("LORA_MODEL")
FUSION, GATED = "closed-form fusion", "prompt-gated"
LINKED = "(the linked lora)"


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
        lines_input("prompt", "Prompt-gated only: the prompt that will be painted; connect the text of it here."),
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
                io.Model.Output(display_name="model", tooltip="The model with all of them erased."),
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
        gates = None
        if mode in (FUSION, GATED):
            if clip is None:
                raise ValueError(f"{mode} reads text states: connect the CLIP of this model")
            erased = concepts_of(models, names, concepts)
        if mode == GATED and not prompt.strip():
            raise ValueError("prompt-gated works for one prompt: connect its text to `prompt`, or choose another mode")
        if mode == FUSION:
            config = fusion.FusionConfig.like(erased[0], settings["seed"])
            cache = Path(folder_paths.get_system_user_directory("eraseanything")) / "states"
            one = merging.closed_form(model, clip, erasers, given, erased, lines_of(preserve), config, cache)
        elif mode == GATED:
            with torch.inference_mode(False):
                gates = gate.Gate(erased, TextEncoder(clip))(prompt)
            one = merge.concatenated(erasers, [w * g for w, g in zip(given, gates, strict=True)])
        else:
            one = merge.combined(erasers, given, mode, **settings)
        summary = describe(mode, names, given, gates, one)
        made = LoraModel(keys.write(one, widest(models)), joint_header([m.header for m in models], names, given, mode))
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


def strength_inputs() -> list:
    """An eraser, its dial and its window."""
    files = [LINKED, *folder_paths.get_filename_list("loras")]
    file = "An eraser of the loras folder, or the one that is linked."
    dial = "0: untouched. 0.5: half of the effect. 1: the eraser as trained. Past 1: more of it. "
    start = "From which part of the sampling on it works; 0 is the first step."
    end = "Up to which part of the sampling it works; 1 is the last step."
    part = {"min": 0.0, "max": 1.0, "step": 0.01}
    dialled = {"default": 1.0, "min": -3.0, "max": 3.0, "step": 0.05}
    seeds = "Seeds that the measurement takes; each is painted eight times in ten steps."
    count = {"default": StrengthConfig.images, "min": 1, "max": 256}
    return [
        io.Model.Input("model", tooltip="Flux.1; for the first measurement straight from its loader."),
        io.Combo.Input("file", options=files, tooltip=file),
        io.Float.Input("strength", **dialled, tooltip=dial + "Below 0 the concept is amplified."),
        io.Float.Input("start_percent", default=0.0, **part, tooltip=start),
        io.Float.Input("end_percent", default=1.0, **part, tooltip=end),
        LORA_MODEL.Input("lora", optional=True, tooltip="An eraser, instead of a file."),
        io.Clip.Input("clip", optional=True, tooltip="Needed once, to measure an eraser that was not yet."),
        io.Int.Input("images", **count, tooltip=seeds, advanced=True),
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
    def execute(cls, model, file, strength, start_percent, end_percent, images, lora=None, clip=None):
        if file == LINKED and lora is None:
            raise ValueError("there is no eraser: choose a file, or link a LORA_MODEL")
        if start_percent >= end_percent:
            raise ValueError(f"start_percent {start_percent:g} must be below end_percent {end_percent:g}")
        made, path = read_file(file) if file != LINKED else (with_header(lora), None)
        eraser = keys.read(made, made.header, file)
        patch.check_fits(model, eraser)
        made, curve = calibrated(model, clip, made, eraser, file, images)
        if path and made.header != load_lora(path)[1]:
            save_lora(made, path, made.header)
        scale = curve.scale_at(strength)
        summary = (
            f"strength {strength:g} is a scale of {scale:.3f}\nscale: share of seeds that have flipped\n"
            + "\n".join(f"{s:.2f}: {e:.2f}" for s, e in zip(curve.scale, curve.effect, strict=True))
        )
        window = (start_percent, end_percent)
        return io.NodeOutput(placed(model, eraser, scale, window), made, scale, summary, ui=ui.PreviewText(summary))


def calibrated(model, clip, made: LoraModel, eraser: keys.Eraser, name: str, images: int):
    """The LoRA with its measured dial in the header, and the dial; it is measured when it is not there."""
    known = Curve.of(made.header)
    if known:
        return made, known
    if clip is None:
        raise ValueError(f"the strength of {name} was not measured yet: connect the CLIP of this model once")
    erased = Erased.of(made.header, name)
    config = StrengthConfig.like(erased, images)
    curve = merging.calibrate(model, clip, eraser, erased, config)
    return LoraModel(made, made.header | {HEADER: curve.text()}), curve


def placed(model, eraser: keys.Eraser, scale: float, window: tuple[float, float]):
    """The MODEL with the eraser: in its weights, or only in a window of the sampling."""
    if window == (0.0, 1.0):
        return patch.patched(model, eraser, scale)
    sampling = model.get_model_object("model_sampling")
    return patch.scheduled(model, eraser, scale, *(sampling.percent_to_sigma(percent) for percent in window))


NODES = [MultiEraseLoRA, EraseStrength]
