"""Nodes that train an eraser and save it."""

import dataclasses
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.comfy_bridge.training_session import fingerprint
from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.lora.files import LoraModel, check_tensors, header_strings, save_lora
from ..eraseanything_core.lora.headers import model_spec, named_header, training_header
from ..eraseanything_core.lora.keys import TARGETS
from ..eraseanything_core.training import optimizers
from ..eraseanything_core.training.config import EraseConfig
from ..eraseanything_core.training.curves import curves
from ..eraseanything_core.training.monitor import bounds
from ..eraseanything_core.training.presets import PRESETS
from ..eraseanything_core.training.recipe import train_eraser
from ..eraseanything_core.training.trainer import EraseResult
from .shared.folders import free_lora_path, run_folder
from .shared.inputs import CATEGORY_TRAINING, MAX_SEED, OUTPUT_NAME, valid_name
from .shared.training_display import TrainingDisplay, finish_on_sigterm
from .shared.types import ERASE_CONCEPTS, LORA_MODEL, LOSS_MAP

DEFAULTS = EraseConfig(concept="")
CUSTOM = "custom"  # the preset that leaves every input as typed
AUTO = "auto"
MEMORY_MODES = [AUTO, "as set"]


def text_input(name: str, tooltip: str, default: str = "", **options: Any) -> io.Input:
    """A line of text, or several with `multiline`."""
    return io.String.Input(name, tooltip=tooltip, default=default, **options)


def number_input(name: str, low: float, high: float, tooltip: str, **options: Any) -> io.Input:
    """A number of `EraseConfig`: an integer or not as its default is, among the advanced inputs."""
    default = getattr(DEFAULTS, name)
    kind, step = (io.Int, 1) if isinstance(default, int) else (io.Float, 0.01)
    if kind is io.Float:
        options = {"round": False} | options  # the frontend would round learning rates away
    options = {"default": default, "step": step, "min": low, "max": high, "advanced": True} | options
    return kind.Input(name, tooltip=tooltip, **options)


def switch_input(name: str, tooltip: str) -> io.Input:
    """An on/off setting of `EraseConfig`."""
    return io.Boolean.Input(name, default=getattr(DEFAULTS, name), tooltip=tooltip, advanced=True)


def choice_input(name: str, choices: list[str], tooltip: str, **options: Any) -> io.Input:
    """A setting with a few values, `EraseConfig`'s default first chosen."""
    options = {"default": getattr(DEFAULTS, name, None), "advanced": True} | options
    return io.Combo.Input(name, options=choices, tooltip=tooltip, **options)


def concept_inputs() -> list[io.Input]:
    """What is erased, from which model, and what has to stay."""
    return [
        io.Model.Input("model", tooltip="Flux.1, straight from its loader. It stays unchanged."),
        io.Clip.Input("clip", tooltip="The text encoder of the model."),
        text_input("concept", "The word or words to erase."),
        text_input("synonyms", "Other words for the concept, separated by commas or lines.", multiline=True),
        text_input("irrelevant", "Words that must survive, separated by commas or lines.", multiline=True),
        text_input(
            "templates",
            "Prompts to erase the concept from, one per line; {} stands for the concept.",
            "\n".join(DEFAULTS.templates),
            multiline=True,
        ),
        text_input(
            "neutral",
            "What to paint instead. Empty: the empty prompt. Text: that prompt. {}: the same sentence "
            "without the concept. {person}: the same sentence with `person` in its place; {dog|cat} draws one.",
            DEFAULTS.neutral,
        ),
        text_input("retain", "Prompts that must not change, one per line.", multiline=True),
        text_input("output_name", OUTPUT_NAME, "eraser"),
    ]


def objective_inputs() -> list[io.Input]:
    """The losses and their weights."""
    return [
        number_input("eta", 0, 20, "How far the concept is pushed past the neutral prompt; 0 stops at it.", step=0.1),
        number_input("tau", 0.01, 1, "Temperature of the reverse self-contrastive loss."),
        number_input("k_irrelevant", 1, 16, "Irrelevant words that one step compares with (K)."),
        number_input("esd_weight", 0, 100, "Weight of the erasing loss on the velocity."),
        number_input("attn_weight", 0, 100, "Weight of the loss on the attention that the concept's tokens get."),
        number_input("retain_weight", 0, 1000, "Weight of staying at the original model where the concept is absent."),
        number_input("rsc_weight", 0, 100, "Weight of the reverse self-contrastive loss; 0 needs no synonyms."),
        number_input("guidance", 0, 20, "Guidance value during training.", step=0.1),
    ]


def trajectory_inputs() -> list[io.Input]:
    """The points x_t at which the model is trained."""
    return [
        number_input("width", 16, 4096, "Width of the training images in pixels.", step=16),
        number_input("height", 16, 4096, "Height of the training images in pixels.", step=16),
        number_input("sampling_steps", 2, 200, "Sampler steps of the trajectories that the model is trained on."),
        number_input("cached_trajectories", 1, 1024, "Trajectories of the concept that are kept in memory."),
        number_input("refresh_every", 1, 100000, "Steps after which new trajectories are sampled."),
    ]


def optimisation_inputs() -> list[io.Input]:
    """How long, how fast and in which weights."""
    return [
        number_input("steps", 1, 100000, "Training steps; each has one erasing and one preserving update."),
        number_input("batch_size", 1, 256, "Sentences to erase in one step."),
        number_input("retain_batch_size", 1, 256, "Prompts to preserve in one step."),
        number_input("rank", 1, 256, "Rank of the LoRA; alpha is the same, so a strength of 1 is the trained one."),
        number_input("lr_low", 0, 1, "Learning rate of the erasing update.", step=1e-5),
        number_input("lr_up", 0, 1, "Learning rate of the preserving update.", step=1e-5),
        choice_input(
            "targets", list(TARGETS), "Projections that are trained; `paper` is the text stream's queries and keys."
        ),
        switch_input(
            "alternate", "On: two optimisers take turns, as in the paper. Off: one update on the summed loss at lr_low."
        ),
        choice_input("dtype", ["auto", "bf16", "fp32"], "Precision of the model."),
        switch_input(
            "gradient_checkpointing",
            "Recompute blocks in the backward pass: less memory, more time, the same gradients. With memory on `auto` "
            "the node decides.",
        ),
        number_input(
            "seed", 0, MAX_SEED, "The same seed gives the same LoRA.", step=None, control_after_generate=False
        ),
        io.Vae.Input("vae", optional=True, tooltip="With it the node shows the concept before and after."),
        ERASE_CONCEPTS.Input(
            "concepts",
            optional=True,
            tooltip="From Concept Sampler. It replaces concept, synonyms, irrelevant, templates, neutral and retain. "
            "Each step compares with one irrelevant word of each of its tiers.",
        ),
    ]


def run_inputs() -> list[io.Input]:
    """Presets, saving, monitoring and rarer settings.

    All are optional: workflows and scripts that were saved before them still load.
    """
    inputs = [
        choice_input(
            "preset",
            [CUSTOM, *PRESETS],
            "How long and how thoroughly to train: 100, 200 or 500 steps, or the settings of the paper or of its code. "
            "It replaces the inputs that the help page lists; `custom` replaces none.",
            default="balanced",
            advanced=False,
        ),
        text_input(
            "resume",
            "Name of a stopped run to continue; empty starts a new one. The other inputs must be as they were, except "
            "steps and those of saving, memory and monitoring.",
            advanced=True,
        ),
        choice_input(
            "memory",
            MEMORY_MODES,
            "`auto` estimates the peak, recomputes blocks or keeps weights in main memory if necessary, and says so.",
            default=AUTO,
        ),
        number_input("save_every", 0, 100000, "Steps between two saved states; 0 saves only at the end.", default=25),
        number_input("monitor_every", 0, 100000, "Steps between two measurements, with pictures; 0 never measures."),
        number_input("stop_score", 0, 1, "Stop once the concept score is this low; it starts at 1. 0 never stops."),
        number_input("stop_drift", 0, 10, "Stop once held-out prompts drift by more than this; 0 never stops."),
        number_input(
            "cached_retain_trajectories", 0, 1024, "Trajectories of what stays; 0 means as many as cached_trajectories."
        ),
        number_input(
            "rsc_samples",
            0,
            100000,
            "Points that the contrastive loss reuses until the next refresh; 0 draws new ones.",
        ),
        number_input(
            "on_policy_share", 0, 1, "Share of the trajectories sampled with the LoRA on, after the first refresh."
        ),
        choice_input("optimizer", optimizers.installed(), "Others are listed once their libraries are installed."),
        choice_input("lr_schedule", list(optimizers.SCHEDULES), "How the learning rates change over the run."),
        number_input("warmup_steps", 0, 100000, "Steps over which the learning rates rise."),
        number_input("max_grad_norm", 0, 1000, "Largest norm of a gradient; a larger one is scaled down."),
        number_input("weight_decay", 0, 1, "Weight decay of the optimiser.", step=1e-5),
        number_input("gradient_accumulation_steps", 1, 256, "Batches whose gradients one update averages."),
    ]
    for each in inputs:
        each.optional = True
    return inputs


def replaced_inputs(preset: str, typed: dict[str, Any]) -> list[str]:
    """A line on the typed values that a preset replaced, or none.

    Defaults are not worth a line, nor are values that the preset has as well.
    """
    changes = []
    for name, value in PRESETS.get(preset, {}).items():
        if typed.get(name, value) not in (value, getattr(DEFAULTS, name)):
            changes.append(f"{name} {value} instead of {typed[name]}")
    if not changes:
        return []
    return [f"the preset {preset} replaced typed inputs: {', '.join(changes)}; with custom they count"]


class EraseTrainer(io.ComfyNode):
    """Trains a LoRA that erases a concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_EraseTrainer",
            display_name="Erase Trainer",
            category=CATEGORY_TRAINING,
            description="Trains a LoRA that erases a concept from Flux.",
            search_aliases=["concept erasure", "unlearn", "erase concept"],
            inputs=[
                *concept_inputs(),
                *objective_inputs(),
                *trajectory_inputs(),
                *optimisation_inputs(),
                *run_inputs(),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA Weights."),
                LOSS_MAP.Output(display_name="losses", tooltip="For Plot Loss Graph; one list per loss."),
                io.String.Output(display_name="path", tooltip="The file that was written."),
                io.String.Output(display_name="summary", tooltip="What was trained, in words and numbers."),
                io.Image.Output(display_name="curves", tooltip="All losses and measurements over the steps."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None) -> bool | str:
        return valid_name(output_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        output_name: str,
        synonyms: str,
        irrelevant: str,
        templates: str,
        retain: str,
        vae: Any = None,
        concepts: Any = None,
        preset: str = CUSTOM,
        resume: str = "",
        memory: str = MEMORY_MODES[1],
        **settings: Any,
    ) -> io.NodeOutput:
        run = run_folder(output_name, resume)
        config = EraseConfig(
            synonyms=words_of(synonyms),
            irrelevant=words_of(irrelevant),
            templates=lines_of(templates),
            retain=lines_of(retain),
            preview_images=4 if vae is not None else 0,
            **settings,
        )
        config = dataclasses.replace(config, **PRESETS.get(preset, {}))
        if concepts is not None:
            config = dataclasses.replace(config, **concepts.settings())
        display = TrainingDisplay(config.steps, cls.hidden.unique_id, model, vae)
        # The LoRA belongs inside as well: a server that is stopped now still writes it.
        with finish_on_sigterm():
            auto = memory == AUTO
            host = ComfyHost(model, clip)
            result = train_eraser(host, config, display.progress, run, auto, display.show, display.notify)
            path = free_lora_path(run.name)
            tensors = {key: tensor.bfloat16() for key, tensor in result.lora.items()}
            metadata = header_strings(training_header(result.config, fingerprint(model)))
            save_lora(tensors, path, metadata)
        result.notes += replaced_inputs(preset, settings)
        if result.interrupted:
            result.notes.append(f"go on with it: resume = {run.name}")
        summary = result.summary(path.name)
        picture = curves(result.losses, result.scores, bounds(result.config))
        shown = ui.PreviewText(summary).as_dict() | {"lora": [path.name]} | cls.before_and_after(model, vae, result)
        image = torch.from_numpy(np.array(picture)).float()[None] / 255
        return io.NodeOutput(LoraModel(tensors, metadata), result.losses, str(path), summary, image, ui=shown)

    @classmethod
    def before_and_after(cls, model: Any, vae: Any, result: EraseResult) -> dict[str, Any]:
        """The concept's pictures by the original model (left) and by the erased one (right), for the node's body."""
        if result.samples is None:
            return {}
        pictures = []
        for latents in result.samples:
            pictures.append(vae.decode(model.model.process_latent_out(latents)))
        return ui.PreviewImage(torch.cat(pictures, dim=2), cls=cls).as_dict()


class SaveEraseLoRA(io.ComfyNode):
    """Saves a LoRA where the stock LoraLoader finds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_SaveEraseLoRA",
            display_name="Save Erase LoRA",
            category=CATEGORY_TRAINING,
            description="Saves a LoRA into the loras folder, with the concept in its header.",
            inputs=[
                LORA_MODEL.Input("lora", tooltip="From Erase Trainer or Multi Erase LoRA."),
                text_input("output_name", OUTPUT_NAME, "eraser"),
                text_input("concept", "What the LoRA erases; written into the header.", optional=True),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None) -> bool | str:
        return valid_name(output_name)

    @classmethod
    def execute(cls, lora: Any, output_name: str, concept: str = "") -> io.NodeOutput:
        check_tensors(lora)
        metadata = getattr(lora, "header", {})
        if concept.strip():
            metadata = metadata | named_header(concept)
        elif not metadata:
            # Without a header and a name the title says at least that it is an eraser.
            metadata = model_spec("")
        path = save_lora(lora, free_lora_path(output_name), metadata)
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved {path.name}"))


NODES = [EraseTrainer, SaveEraseLoRA]
