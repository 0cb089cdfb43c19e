"""Nodes that train an eraser and save it."""

import dataclasses
import logging
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from server import PromptServer

from ..eraseanything_core import files
from ..eraseanything_core.comfy_bridge.previews import small_pictures
from ..eraseanything_core.comfy_bridge.training import train_eraser
from ..eraseanything_core.comfy_bridge.training_session import fingerprint
from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.lora.adapter import PRESETS as TARGETS
from ..eraseanything_core.lora.adapter import LoraModel, header, save_lora, strings, title
from ..eraseanything_core.training import optimizers
from ..eraseanything_core.training.config import PRESETS, EraseConfig
from ..eraseanything_core.training.curves import curves, stacked, strip
from ..eraseanything_core.training.monitor import bounds
from ..eraseanything_core.training.termination import kept_on_sigterm
from ..eraseanything_core.training.trainer import EraseResult

DEFAULT = EraseConfig(concept="")
CATEGORY = "EraseAnything/training"
LORA_MODEL, LOSS_MAP = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")
ERASE_CONCEPTS = io.Custom("ERASE_CONCEPTS")
CUSTOM = "custom"


def loras() -> Path:
    """The folder that the stock LoraLoader lists."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def taken() -> set[str]:
    """The names in it."""
    return {file.stem for file in loras().glob("*.safetensors")}


def free_path(name: str) -> Path:
    """A file in it that is not there yet: the name, or the name with a number."""
    return files.writable(loras(), files.numbered(files.check_name(name), taken()))


def checked(name: str | None) -> bool | str:
    """True, or what is wrong with a typed name; None stands for a linked one."""
    try:
        return True if name is None else bool(files.check_name(name))
    except ValueError as error:
        return str(error)


def _text(name: str, tooltip: str, default: str = "", **more):
    return io.String.Input(name, tooltip=tooltip, default=default, **more)


def _setting(kind, name: str, tooltip: str, **more):
    """A widget of a setting, with the trainer's default, among the advanced ones."""
    more = {"default": getattr(DEFAULT, name, None), "advanced": True} | more
    return kind.Input(name, tooltip=tooltip, **more)


def _int(name: str, low: int, high: int, tooltip: str, **more):
    return _setting(io.Int, name, tooltip, **{"min": low, "max": high, "step": 1} | more)


def _float(name: str, high: float, tooltip: str, **more):
    return _setting(io.Float, name, tooltip, **{"min": 0.0, "max": high, "step": 0.01, "round": False} | more)


def _combo(name: str, options: list[str], tooltip: str, **more):
    return _setting(io.Combo, name, tooltip, options=options, **more)


def _what() -> list:
    return [
        io.Model.Input("model", tooltip="Flux.1, straight from its loader. It is left as it is."),
        io.Clip.Input("clip", tooltip="The text encoder that the prompts are encoded with."),
        _text("concept", "The word or words to erase."),
        _text("synonyms", "Other words for it, separated by commas or lines.", multiline=True),
        _text("irrelevant", "Words that have to survive, separated by commas or lines.", multiline=True),
        _text(
            "templates",
            "Prompts to erase it from, one a line; {} stands for the concept.",
            "\n".join(DEFAULT.templates),
            multiline=True,
        ),
        _text(
            "neutral",
            "What the model shall paint instead. Empty: the empty prompt. Text: that prompt. {}: the same sentence "
            "without the concept. {person}: the same sentence with `person` in its place; {dog|cat} draws one.",
            DEFAULT.neutral,
        ),
        _text(
            "retain", "Prompts that have to stay as they are, one a line: neighbours and generic ones.", multiline=True
        ),
        _text(
            "output_name", "File name of the LoRA, without folder; a number is added where the name is taken.", "eraser"
        ),
    ]


def _objective() -> list:
    return [
        _float(
            "eta", 20, "How far past the neutral prompt the concept is pushed; 0 leads to the neutral prompt.", step=0.1
        ),
        _float("tau", 1, "Temperature of the reverse self-contrastive loss.", min=0.01),
        _int("k_irrelevant", 1, 16, "Irrelevant words compared with in one step (K)."),
        _float("esd_weight", 100, "Weight of the erasing loss on the velocity."),
        _float("attn_weight", 100, "Weight of the loss on the attention that the concept's tokens get."),
        _float("retain_weight", 1000, "Weight of staying at the frozen model where the concept is absent."),
        _float("rsc_weight", 100, "Weight of the reverse self-contrastive loss; 0 needs no synonyms."),
        _float("guidance", 20, "Guidance value that the model is given in training.", step=0.1),
    ]


def _points() -> list:
    return [
        _int("width", 16, 4096, "Width of the training images in pixels.", step=16),
        _int("height", 16, 4096, "Height of the training images in pixels.", step=16),
        _int("sampling_steps", 2, 200, "Steps of the trajectories on which the model is corrected."),
        _int("cached_trajectories", 1, 1024, "Trajectories kept in memory, of the concept and of the rest each."),
        _int("refresh_every", 1, 100000, "Steps after which the trajectories are drawn anew."),
    ]


def _optimisation() -> list:
    targets = "Which projections are trained; `paper` is the text stream's queries and keys."
    turns = "On: two optimisers take turns, as in the paper. Off: one step on the summed loss at lr_low."
    again = "Equal seeds give equal LoRAs."
    recompute = "Recompute blocks in the backward pass: less memory, more time, the same gradients. "
    return [
        _int("steps", 1, 100000, "Pairs of one erasing and one preserving step."),
        _int("batch_size", 1, 256, "Sentences to erase in one step."),
        _int("retain_batch_size", 1, 256, "Prompts to preserve in one step."),
        _int("rank", 1, 256, "Rank of the LoRA; its alpha is the same, so its strength is 1."),
        _float("lr_low", 1, "Learning rate of the erasing step.", step=1e-5),
        _float("lr_up", 1, "Learning rate of the preserving step.", step=1e-5),
        _combo("targets", list(TARGETS), targets),
        _setting(io.Boolean, "alternate", turns),
        _combo("dtype", ["auto", "bf16", "fp32"], "Precision of the model."),
        _setting(io.Boolean, "gradient_checkpointing", recompute + "With memory on `auto` the node decides."),
        _int("seed", 0, 2**31 - 1, again, step=None, control_after_generate=False),
        io.Vae.Input("vae", optional=True, tooltip="With it the node shows the concept before and after."),
        ERASE_CONCEPTS.Input(
            "concepts",
            optional=True,
            tooltip="From Concept Sampler. It takes the place of concept, synonyms, irrelevant, templates, neutral and "
            "retain, and each step compares with one irrelevant word of each of its tiers.",
        ),
    ]


def _later() -> list:
    """What came later: optional, so that older workflows and scripts go on."""
    presets = "How long and how thoroughly: 100, 200 or 500 pairs, or the settings of the paper or of its code. "
    presets += "It goes over the inputs that it names in its help; `custom` leaves them all to you."
    resume = "Name of a stopped run to go on with; empty starts a new one. The inputs must be the same as then, "
    memory = "`auto` estimates the peak, recomputes blocks or leaves weights in main memory if it must, and says so."
    inputs = [
        _combo("preset", [CUSTOM, *PRESETS], presets, default="balanced", advanced=False),
        _text("resume", resume + "but for steps and those of saving, memory and watching.", advanced=True),
        _combo("memory", ["auto", "as set"], memory, default="auto"),
        _int("save_every", 0, 100000, "Pairs between two saved states; 0 saves only when it stops.", default=25),
        _int("monitor_every", 0, 100000, "Pairs between two looks from outside, with pictures; 0 is never."),
        _float("stop_score", 1, "Stop when the concept score has fallen to this; 0 is never. It starts at 1."),
        _float("stop_drift", 10, "Stop when held-out prompts have drifted by more than this; 0 is never."),
        _int("cached_retain_trajectories", 0, 1024, "Trajectories of what stays; 0 is as many as `pool`."),
        _int("rsc_samples", 0, 100000, "Points that the contrastive loss has in a pool; 0 is new ones."),
        _float("on_policy_share", 1, "Share of the trajectories that the student walks from the second pool on."),
        _combo("optimizer", optimizers.installed(), "The others appear when their libraries are installed."),
        _combo("lr_schedule", list(optimizers.SCHEDULES), "How the learning rates go over the run."),
        _int("warmup_steps", 0, 100000, "Pairs in which the learning rates rise."),
        _float("max_grad_norm", 1000, "Norm that a gradient is cut to.", default=DEFAULT.max_grad_norm),
        _float("weight_decay", 1, "Weight decay of the optimiser.", step=1e-5),
        _int("gradient_accumulation_steps", 1, 256, "Draws whose gradients are averaged in one update."),
    ]
    for each in inputs:
        each.optional = True
    return inputs


def run_folder(output_name: str, resume: str) -> Path:
    """Where the state of a run lies: a new folder, or that of the run to go on with.

    Raises:
        ValueError: the folder cannot be written to, or there is no such run.
    """
    runs = Path(folder_paths.get_output_directory()) / "eraseanything"
    for folder in (loras(), runs):
        files.check_folder(folder)
    if not resume.strip():
        return runs / files.numbered(files.check_name(output_name), taken() | {f.name for f in runs.iterdir()})
    run = runs / files.check_name(resume)
    if not run.is_dir():
        known = ", ".join(sorted(f.name for f in runs.iterdir() if f.is_dir())) or "none"
        raise ValueError(f"there is no run {run.name!r} to resume; there are: {known}")
    return run


def replaced(preset: str, typed: dict) -> list[str]:
    """A line that names what a preset took the place of; values that nobody has changed are not worth one."""
    over = {k: v for k, v in PRESETS.get(preset, {}).items() if typed.get(k, v) not in (v, getattr(DEFAULT, k))}
    told = ", ".join(f"{name} {value} instead of {typed[name]}" for name, value in over.items())
    return [f"the preset {preset} replaced typed inputs: {told}; with custom they count"] if over else []


def keeping():
    """SIGTERM lets the pair end, the state and the LoRA be written, and the process then end."""
    server, here = getattr(PromptServer, "instance", None), threading.current_thread() is threading.main_thread()
    if not here and not server:
        return nullcontext()
    call = (lambda work: work()) if here else server.loop.call_soon_threadsafe
    return kept_on_sigterm(comfy.model_management.interrupt_current_processing, call)


class Live:
    """What the node shows while it runs: bar with the time left, losses, and now and then curves and pictures."""

    def __init__(self, steps: int, node: str | None, model, vae):
        self.bar, self.node, self.steps, self.begun = comfy.utils.ProgressBar(steps), node, steps, None
        self.model, self.vae, self.row = model, vae, None

    def progress(self, step: int, losses: dict[str, float]):
        if self.begun is None:
            self.begun = step, time.monotonic()
        done, seconds = step - self.begun[0], time.monotonic() - self.begun[1]
        self.bar.update_absolute(step)
        left = f", {seconds / done * (self.steps - step):.0f} s left" if done else ""
        text = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self.write(f"step {step} of {self.steps}{left}: {text}")
        comfy.model_management.throw_exception_if_processing_interrupted()

    def tell(self, text: str):
        """What is said before the first step; the log keeps it."""
        logging.info("EraseAnything: %s", text)
        self.write(text)

    def write(self, text: str):
        if self.node and getattr(PromptServer, "instance", None):
            PromptServer.instance.send_progress_text(text, self.node)

    def show(self, latents: torch.Tensor | None, run):
        """The curves so far, under the last pictures of base, erased and neighbour."""
        run.read()
        if latents is not None:
            self.row = strip(small_pictures(self.model, latents, self.vae), 160)
        drawn = curves(run.history, run.seen, bounds(run.config))
        self.bar.update_absolute(run.done, preview=("JPEG", stacked(self.row, drawn) if self.row else drawn, 1024))


class EraseTrainer(io.ComfyNode):
    """Trains a LoRA that erases a concept."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_EraseTrainer",
            display_name="Erase Trainer",
            category=CATEGORY,
            description="Erases a concept from Flux and hands back a LoRA.",
            search_aliases=["concept erasure", "unlearn", "erase concept"],
            inputs=[*_what(), *_objective(), *_points(), *_optimisation(), *_later()],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA Weights."),
                LOSS_MAP.Output(display_name="losses", tooltip="For Plot Loss Graph; one list a loss."),
                io.String.Output(display_name="path", tooltip="The file that was written."),
                io.String.Output(display_name="summary", tooltip="What was done, in words and numbers."),
                io.Image.Output(display_name="curves", tooltip="All losses, and what the looks from outside gave."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name=None):
        return checked(output_name)

    @classmethod
    def execute(
        cls, model, clip, output_name, synonyms, irrelevant, templates, retain, vae=None, concepts=None,
        preset=CUSTOM, resume="", memory="as set", **settings,
    ):  # fmt: skip
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
        live = Live(config.steps, cls.hidden.unique_id, model, vae)
        with keeping():
            auto = memory == "auto"
            result = train_eraser(model, clip, config, live.progress, run, auto, live.show, live.tell)
            path = free_path(run.name)
            tensors = {key: tensor.bfloat16() for key, tensor in result.lora.items()}
            head = strings(header(result.config, fingerprint(model)))
            save_lora(tensors, path, head)
        result.notes += replaced(preset, settings)
        if result.interrupted:
            result.notes.append(f"go on with it: resume = {run.name}")
        summary, picture = result.summary(path.name), curves(result.losses, result.seen, bounds(result.config))
        shown = ui.PreviewText(summary).as_dict() | {"lora": [path.name]} | cls.pictures(model, vae, result)
        image = torch.from_numpy(np.array(picture)).float()[None] / 255
        return io.NodeOutput(LoraModel(tensors, head), result.losses, str(path), summary, image, ui=shown)

    @classmethod
    def pictures(cls, model, vae, result: EraseResult) -> dict:
        """The concept's images before (left) and after (right)."""
        if result.samples is None:
            return {}
        before, after = (vae.decode(model.model.process_latent_out(x)) for x in result.samples)
        return ui.PreviewImage(torch.cat((before, after), dim=2), cls=cls).as_dict()


class SaveEraseLoRA(io.ComfyNode):
    """Saves a LoRA where the stock LoraLoader finds it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_SaveEraseLoRA",
            display_name="Save Erase LoRA",
            category=CATEGORY,
            description="Saves a LoRA into the loras folder, with the concept in its header.",
            inputs=[
                LORA_MODEL.Input("lora", tooltip="From Erase Trainer."),
                _text("output_name", "File name, without folder; a number is added where the name is taken.", "eraser"),
                _text("concept", "What the LoRA erases; written into the header.", optional=True),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name=None):
        return checked(output_name)

    @classmethod
    def execute(cls, lora, output_name, concept=""):
        head = getattr(lora, "header", {})
        path = save_lora(lora, free_path(output_name), head | (title(concept) if concept or not head else {}))
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved {path.name}"))


NODES = [EraseTrainer, SaveEraseLoRA]
