"""The fields of Erase Settings by their groups, with the defaults of the trainer's default preset."""

import dataclasses
from typing import Any

from comfy_api.latest import io

from ...eraseanything_core.erasers.registry import METHODS
from ...eraseanything_core.lora.keys import TARGETS
from ...eraseanything_core.lora.roles import ROLES
from ...eraseanything_core.training import divergences, optimizers
from ...eraseanything_core.training.config import EraseConfig
from ...eraseanything_core.training.presets import PRESETS
from .inputs import DEFAULT_PRESET, SAVE_EVERY

DEFAULTS = dataclasses.asdict(EraseConfig(concept="", save_every=SAVE_EVERY)) | PRESETS[DEFAULT_PRESET]
PIXELS_A_TOKEN = 16  # in each direction: Flux packs 2 x 2 latent cells of 8 pixels each into one token
WORDS = "words"  # the group of texts, which count only where something is typed
METHOD = "method"  # the group of the method, and the choice in it
ATTENTION_BLOCKS = "attention_blocks"
BLOCKS = {"all": None, "last": (-1,)}  # the choices, as `EraseConfig` has them


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
        number_input(
            "steps",
            1,
            100000,
            "Training steps; each has an erasing and a preserving loss, in two updates or in one (alternate).",
        ),
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
        number_input(
            "lr_low", 0, 1, "Learning rate of the erasing update, or of both losses with alternate off.", step=1e-5
        ),
        number_input(
            "lr_up",
            0,
            1,
            "Learning rate of the preserving update; not used with alternate off, as in most presets.",
            step=1e-5,
        ),
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
            "targets",
            [*TARGETS, *ROLES],
            "Projections that are trained; `paper` is the text stream's queries and keys. The names with blanks are "
            "for any family of models.",
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
        number_input(
            "attn_share",
            0,
            0.9,
            "Share of the first gradient that this loss is to have; it sets attn_weight. 0 takes attn_weight as typed.",
        ),
        number_input("retain_weight", 0, 1000, "Weight of staying at the original model where the concept is absent."),
        number_input("rsc_weight", 0, 100, "Weight of the reverse self-contrastive loss; 0 needs no synonyms."),
        number_input("rsc_share", 0, 0.9, "The same for rsc_weight."),
        number_input("eta", 0, 20, "How far the concept is pushed past the neutral prompt; 0 stops at it.", step=0.1),
        number_input("tau", 0.01, 1, "Temperature of the reverse self-contrastive loss."),
        number_input("k_irrelevant", 1, 16, "Irrelevant words that one step compares with (K)."),
        choice_input(
            "retain_loss",
            ["teacher", "paper"],
            "What preserving compares with: the original model on other prompts, or the paper's Eq. 4.",
        ),
        switch_input("paper_sign", "Eq. 5 with the sign that the paper prints, which is the opposite of its text."),
        choice_input(
            "attention_reduction", ["mean", "sum", "l2"], "How the attention of heads and queries becomes one number."
        ),
        io.Combo.Input(
            ATTENTION_BLOCKS,
            options=list(BLOCKS),
            default="all",
            tooltip="Blocks whose attention the losses read: all with two streams, or the last of them.",
            optional=True,
        ),
        choice_input(
            "divergence",
            list(divergences.NAMES),
            "What the erasing loss measures with. Bounded ones pull less where the prediction is far from its target.",
        ),
        number_input("alpha", -4, 4, "Of the divergence `alpha`; 0.5 is `hellinger`, 0 and 1 are none."),
        number_input("divergence_width", 0.01, 100, "Where the other divergences bend; large is `squared`."),
    ]


def picture_inputs() -> list[io.Input]:
    """The size of the pictures, and the points x_t at which the model is trained."""
    return [
        number_input("width", 16, 4096, "Width of the training images in pixels.", step=PIXELS_A_TOKEN),
        number_input("height", 16, 4096, "Height of the training images in pixels.", step=PIXELS_A_TOKEN),
        number_input("guidance", 0, 20, "Guidance value during training.", step=0.1),
        number_input("sampling_steps", 2, 200, "Sampler steps of the trajectories that the model is trained on."),
        switch_input(
            "own_times",
            "Walk each trajectory at noise levels of its own: all are trained, and not those of a few steps alone.",
        ),
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
        number_input("erase_time", 0, 0.9, "Lowest noise level t of the points that are erased at; 0 is all of them."),
        number_input("rsc_time", 0, 0.9, "The same for the contrastive loss."),
        switch_input(
            "importance_sampling",
            "Train more often at the times where the concept makes the most difference.",
        ),
        switch_input(
            "shared_points",
            "Preserve other prompts at the concept's points, instead of on trajectories of their own.",
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


def sentence_inputs() -> list[io.Input]:
    """How the sentences of a training are drawn."""
    return [
        number_input("sentences", 1, 4096, "How many sentences of the concept are drawn for the run."),
        number_input("shuffle_rate", 0, 1, "How often the words of a sentence are shuffled."),
        number_input("synonym_rate", 0, 1, "How often a synonym is erased in the concept's place."),
        number_input(
            "retain_prompt_share",
            0,
            1,
            "Share of what is preserved that is drawn from `retain`; the others are irrelevant words in templates.",
        ),
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
        switch_input("deterministic", "Repeat the same bits on a GPU, too; slower. A CPU repeats them anyway."),
    ]


def own_input(field: "dataclasses.Field[Any]") -> io.Input:
    """A setting of one method alone."""
    told = field.metadata
    common: dict[str, Any] = {"default": field.default, "tooltip": told["text"], "optional": True}
    if told["choices"]:
        return io.Combo.Input(field.name, options=list(told["choices"]), **common)
    if isinstance(field.default, int):
        return io.Int.Input(field.name, min=told["low"], max=told["high"], **common)
    return io.Float.Input(field.name, min=told["low"], max=told["high"], step=0.001, round=False, **common)


def method_inputs() -> list[io.Input]:
    """How the concept is erased."""
    options = []
    for method in METHODS.values():
        own = [own_input(field) for field in dataclasses.fields(method.own_settings)]
        options.append(io.DynamicCombo.Option(method.label, own))
    return [
        io.DynamicCombo.Input(
            METHOD,
            options=options,
            optional=True,
            tooltip="How the concept is erased. It goes over the preset, and what other Erase Settings hold over it.",
        ),
        number_input(
            "meta_weight",
            0,
            100,
            "Weight of Meta-Unlearning's step on top of the method: the eraser is to withstand fine-tuning. 0 is off.",
        ),
    ]


GROUPS = {
    "length": length_inputs,
    "learning rates": rate_inputs,
    "LoRA": lora_inputs,
    "losses": loss_inputs,
    "pictures": picture_inputs,
    WORDS: word_inputs,
    "sentences": sentence_inputs,
    "memory and saving": saving_inputs,
    METHOD: method_inputs,
}
