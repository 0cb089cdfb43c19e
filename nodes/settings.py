"""The node that sets single values of a training, over its preset."""

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.lora.keys import TARGETS
from ..eraseanything_core.quoting import quoted
from ..eraseanything_core.training import optimizers
from ..eraseanything_core.training.config import EraseConfig
from ..eraseanything_core.training.presets import PRESETS
from .shared.inputs import CATEGORY_TRAINING, DEFAULT_PRESET, SAVE_EVERY, accepted
from .shared.texts import check_texts
from .shared.types import ERASE_SETTINGS

DEFAULTS = dataclasses.asdict(EraseConfig(concept="", save_every=SAVE_EVERY)) | PRESETS[DEFAULT_PRESET]
PIXELS_A_TOKEN = 16  # in each direction: Flux packs 2 x 2 latent cells of 8 pixels each into one token
WORDS = "words"  # the group of texts, which count only where something is typed
LISTS = {"synonyms": words_of, "irrelevant": words_of, "templates": lines_of, "retain": lines_of}


def number_input(name: str, low: float, high: float, tooltip: str, **options: Any) -> io.Input:
    """A number of `EraseConfig`: an integer or not as its default is."""
    default = DEFAULTS[name]
    kind, step = (io.Int, 1) if isinstance(default, int) else (io.Float, 0.01)
    if kind is io.Float:
        options = {"round": False} | options  # the frontend would round learning rates away
    # Optional: a graph in API format may hold some fields of a group only, and then only those count.
    options = {"default": default, "step": step, "min": low, "max": high, "optional": True} | options
    return kind.Input(name, tooltip=tooltip, **options)


def switch_input(name: str, tooltip: str) -> io.Input:
    """An on/off setting of `EraseConfig`."""
    return io.Boolean.Input(name, default=DEFAULTS[name], tooltip=tooltip, optional=True)


def choice_input(name: str, choices: list[str], tooltip: str) -> io.Input:
    """A setting with a few values."""
    return io.Combo.Input(name, options=choices, default=DEFAULTS[name], tooltip=tooltip, optional=True)


def text_input(name: str, tooltip: str, multiline: bool = True) -> io.Input:
    """Words or prompts; empty leaves those that the trainer has."""
    return io.String.Input(name, default="", multiline=multiline, tooltip=tooltip, optional=True)


def length_inputs() -> list[io.Input]:
    """How long the run is, and what ends it."""
    return [
        number_input("steps", 1, 100000, "Training steps; each has one erasing and one preserving update."),
        number_input("refresh_every", 1, 100000, "Steps after which new trajectories are sampled."),
        number_input("monitor_every", 0, 100000, "Steps between two measurements, with pictures; 0 never measures."),
        number_input("look_pictures", 1, 64, "Pictures of the concept in one measurement."),
        number_input("look_steps", 1, 50, "Sampler steps of these pictures."),
        switch_input("stop_when_gone", "Stop once none of these pictures shows the concept."),
        number_input("stop_drift", 0, 10, "Stop once held-out prompts drift by more than this; 0 never stops."),
    ]


def rate_inputs() -> list[io.Input]:
    """The optimiser, and how much one update sees."""
    return [
        number_input("lr_low", 0, 1, "Learning rate of the erasing update.", step=1e-5),
        number_input("lr_up", 0, 1, "Learning rate of the preserving update.", step=1e-5),
        choice_input("optimizer", optimizers.installed(), "Others are listed once their libraries are installed."),
        choice_input("lr_schedule", list(optimizers.SCHEDULES), "How the learning rates change over the run."),
        switch_input(
            "adapt_rate", "Change the learning rates where a measurement finds that they do too little or too much."
        ),
        number_input("warmup_steps", 0, 100000, "Steps over which the learning rates rise."),
        number_input("max_grad_norm", 0, 1000, "Largest norm of a gradient; a larger one is scaled down."),
        number_input("weight_decay", 0, 1, "Weight decay of the optimiser.", step=1e-5),
        number_input("batch_size", 1, 256, "Sentences to erase in one step."),
        number_input("retain_batch_size", 1, 256, "Prompts to preserve in one step."),
        number_input("gradient_accumulation_steps", 1, 256, "Batches whose gradients one update averages."),
    ]


def lora_inputs() -> list[io.Input]:
    """Which weights are trained."""
    return [
        choice_input(
            "targets", list(TARGETS), "Projections that are trained; `paper` is the text stream's queries and keys."
        ),
        number_input("rank", 1, 256, "Rank of the LoRA; alpha is the same, so a strength of 1 is the trained one."),
        switch_input(
            "alternate", "On: two optimisers take turns, as in the paper. Off: one update on the summed loss at lr_low."
        ),
    ]


def loss_inputs() -> list[io.Input]:
    """The losses and their weights."""
    return [
        number_input("esd_weight", 0, 100, "Weight of the erasing loss on the velocity."),
        number_input("attn_weight", 0, 100, "Weight of the loss on the attention that the concept's tokens get."),
        number_input("retain_weight", 0, 1000, "Weight of staying at the original model where the concept is absent."),
        number_input("rsc_weight", 0, 100, "Weight of the reverse self-contrastive loss; 0 needs no synonyms."),
        number_input("eta", 0, 20, "How far the concept is pushed past the neutral prompt; 0 stops at it.", step=0.1),
        number_input("tau", 0.01, 1, "Temperature of the reverse self-contrastive loss."),
        number_input("k_irrelevant", 1, 16, "Irrelevant words that one step compares with (K)."),
    ]


def picture_inputs() -> list[io.Input]:
    """The size of the pictures, and the points x_t at which the model is trained."""
    return [
        number_input("width", 16, 4096, "Width of the training images in pixels.", step=PIXELS_A_TOKEN),
        number_input("height", 16, 4096, "Height of the training images in pixels.", step=PIXELS_A_TOKEN),
        number_input("guidance", 0, 20, "Guidance value during training.", step=0.1),
        number_input("sampling_steps", 2, 200, "Sampler steps of the trajectories that the model is trained on."),
        number_input("cached_trajectories", 1, 1024, "Trajectories of the concept that are kept in memory."),
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
    ]


def word_inputs() -> list[io.Input]:
    """Words and prompts in the place of those that the trainer finds."""
    return [
        text_input("synonyms", "Other words for the concept, separated by commas or lines. Empty: those found."),
        text_input("irrelevant", "Words that must survive, separated by commas or lines. Empty: those found."),
        text_input(
            "templates", "Prompts to erase from, one per line; {} stands for the concept. Empty: those of its kind."
        ),
        text_input(
            "neutral",
            "What to paint instead. Text: that prompt. {}: the same sentence without the concept. {person}: the same "
            "sentence with `person` in its place; {dog|cat} draws one. Empty: what was found.",
            multiline=False,
        ),
        text_input("retain", "Prompts that must not change, one per line. Empty: those found."),
    ]


def saving_inputs() -> list[io.Input]:
    """Memory, precision and saved states."""
    return [
        choice_input("dtype", ["auto", "bf16", "fp32"], "Precision of the model."),
        switch_input(
            "gradient_checkpointing",
            "Recompute blocks in the backward pass: less memory, more time, the same gradients. Without this group "
            "the trainer decides by what memory is free.",
        ),
        number_input("save_every", 0, 100000, "Steps between two saved states; 0 saves only at the end."),
    ]


GROUPS = {
    "length": length_inputs,
    "learning rates": rate_inputs,
    "LoRA": lora_inputs,
    "losses": loss_inputs,
    "pictures": picture_inputs,
    WORDS: word_inputs,
    "memory and saving": saving_inputs,
}


def typed_words(texts: dict[str, str]) -> dict[str, Any]:
    """The texts that are not empty, as `EraseConfig` has them."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if text.strip():
            values[name] = LISTS[name](text) if name in LISTS else text
    return values


def check_value(field: io.Input, value: Any) -> None:
    """Raises ValueError when a field of the node does not take a value."""
    if isinstance(field, io.Combo.Input) and value not in field.options:
        raise ValueError(f"`{field.id}` is {quoted(value)}: choose one of {', '.join(field.options)}")
    # Written so that NaN fails too.
    if isinstance(field, (io.Int.Input, io.Float.Input)) and not field.min <= value <= field.max:
        raise ValueError(f"`{field.id}` is {value}: type {field.min} to {field.max}")
    if field.id in ("width", "height") and value % PIXELS_A_TOKEN:
        raise ValueError(f"`{field.id}` is {value}: type a multiple of {PIXELS_A_TOKEN}")


def check_group(values: dict[str, Any]) -> None:
    """Raises ValueError when the shown group holds a value that its field does not take; None stands for a link.

    Args:
        values: the name of the group under `group`, and its fields.
    """
    chosen = values.get("group")
    if chosen not in GROUPS:
        raise ValueError(f"`group` is {quoted(chosen)}: choose one of {', '.join(GROUPS)}")
    for field in GROUPS[chosen]():
        value = values.get(field.id)
        if value is not None:
            check_value(field, value)
            check_texts({field.id: value})


class EraseSettings(io.ComfyNode):
    """Sets one group of the trainer's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        options = [io.DynamicCombo.Option(name, inputs()) for name, inputs in GROUPS.items()]
        return io.Schema(
            node_id="EraseAnything_EraseSettings",
            display_name="Erase Settings",
            category=CATEGORY_TRAINING,
            description="Sets one group of Erase Trainer's settings. Everything this node shows counts, over any "
            "preset. Chain several of these nodes to set several groups.",
            search_aliases=["erase options", "training settings", "learning rate", "steps"],
            inputs=[
                io.DynamicCombo.Input(
                    "group",
                    options=options,
                    tooltip="What to set. Everything shown below it counts, over any preset; only empty texts do not.",
                ),
                ERASE_SETTINGS.Input(
                    "settings",
                    optional=True,
                    tooltip="From another Erase Settings. Where both set the same, this node counts.",
                ),
            ],
            outputs=[
                ERASE_SETTINGS.Output(display_name="settings", tooltip="For Erase Trainer, or the next of these.")
            ],
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool | str:
        # Fields of a group can be had by ** only, and ComfyUI then leaves the check of all values to the node.
        return accepted(check_group, values.get("group", {}))

    @classmethod
    def execute(cls, group: dict[str, Any], settings: dict[str, Any] | None = None) -> io.NodeOutput:
        check_group(group)
        # ComfyUI gives None for a field that the graph does not hold.
        values = {name: value for name, value in group.items() if name != "group" and value is not None}
        if group["group"] == WORDS:
            values = typed_words(values)
        return io.NodeOutput({**(settings or {}), **values})


NODES = [EraseSettings]
