"""Nodes that train an eraser and save it."""

import dataclasses
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from server import PromptServer

from ..eraseanything_core import files, flux, lora
from ..eraseanything_core.prompts import lines_of, words_of
from ..eraseanything_core.trainer import EraseConfig, EraseResult

DEFAULT = EraseConfig(concept="")
CATEGORY = "EraseAnything/training"
LORA_MODEL, LOSS_MAP = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")
ERASE_CONCEPTS = io.Custom("ERASE_CONCEPTS")


def lora_path(name: str) -> Path:
    """The file that the stock LoraLoader lists under this name; ValueError when it cannot be written."""
    return files.writable(Path(folder_paths.get_folder_paths("loras")[0]), name)


def checked(name: str | None) -> bool | str:
    """True, or what is wrong with a typed name; None stands for a linked one."""
    try:
        return True if name is None else bool(files.check_name(name))
    except ValueError as error:
        return str(error)


def _text(name: str, tooltip: str, default: str = "", multiline: bool = False, **more):
    return io.String.Input(name, default=default, multiline=multiline, tooltip=tooltip, **more)


def _int(name: str, low: int, high: int, tooltip: str, step: int = 1, **more):
    default = getattr(DEFAULT, name)
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, **more)


def _float(name: str, high: float, tooltip: str, step: float = 0.01, low: float = 0.0, **more):
    default = getattr(DEFAULT, name)
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=False, tooltip=tooltip, **more)


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
            "output_name", "File name of the LoRA, without folder; an older file of that name is replaced.", "eraser"
        ),
    ]


def _objective() -> list:
    return [
        _float("eta", 20, "How far past the neutral prompt the concept is pushed; 0 leads to the neutral prompt.", 0.1),
        _float("tau", 1, "Temperature of the reverse self-contrastive loss.", low=0.01),
        _int("k_irrelevant", 1, 16, "Irrelevant words compared with in one step (K)."),
        _float("esd", 100, "Weight of the erasing loss on the velocity."),
        _float("attn", 100, "Weight of the loss on the attention that the concept's tokens get."),
        _float("retain_weight", 1000, "Weight of staying at the frozen model where the concept is absent."),
        _float("rsc", 100, "Weight of the reverse self-contrastive loss; 0 needs no synonyms."),
        _float("guidance", 20, "Guidance value that the model is given in training.", 0.1),
    ]


def _points() -> list:
    return [
        _int("width", 16, 4096, "Width of the training images in pixels.", 16),
        _int("height", 16, 4096, "Height of the training images in pixels.", 16),
        _int("sampling_steps", 2, 200, "Steps of the trajectories on which the model is corrected.", advanced=True),
        _int("pool", 1, 1024, "Trajectories kept in memory, of the concept and of the rest each.", advanced=True),
        _int("refresh", 1, 100000, "Steps after which the trajectories are drawn anew.", advanced=True),
    ]


def _optimisation() -> list:
    return [
        _int("steps", 1, 100000, "Pairs of one erasing and one preserving step."),
        _int("batch", 1, 256, "Sentences to erase in one step.", advanced=True),
        _int("retain_batch", 1, 256, "Prompts to preserve in one step.", advanced=True),
        _int("rank", 1, 256, "Rank of the LoRA; its alpha is the same, so its strength is 1."),
        _float("lr_low", 1, "Learning rate of the erasing step.", 1e-5),
        _float("lr_up", 1, "Learning rate of the preserving step.", 1e-5),
        io.Combo.Input(
            "targets",
            options=list(lora.PRESETS),
            default=DEFAULT.targets,
            tooltip="Which projections are trained; `paper` is the text stream's queries and keys.",
        ),
        io.Boolean.Input(
            "alternate",
            default=DEFAULT.alternate,
            tooltip="On: two optimisers take turns, as in the paper. Off: one step on the summed loss at lr_low.",
            advanced=True,
        ),
        io.Combo.Input(
            "dtype",
            options=["auto", "bf16", "fp32"],
            default=DEFAULT.dtype,
            tooltip="Precision of the model.",
            advanced=True,
        ),
        io.Boolean.Input(
            "checkpoint",
            default=DEFAULT.checkpoint,
            tooltip="Recompute blocks in the backward pass: less memory, more time, the same gradients.",
            advanced=True,
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**31 - 1,
            control_after_generate=False,
            tooltip="Equal seeds give equal LoRAs.",
        ),
        io.Vae.Input("vae", optional=True, tooltip="With it the node shows the concept before and after."),
        ERASE_CONCEPTS.Input(
            "concepts",
            optional=True,
            tooltip="From Concept Sampler. It takes the place of concept, synonyms, irrelevant, templates, neutral and "
            "retain, and each step compares with one irrelevant word of each of its tiers.",
        ),
    ]


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
            inputs=[*_what(), *_objective(), *_points(), *_optimisation()],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA Weights."),
                LOSS_MAP.Output(display_name="losses", tooltip="For Plot Loss Graph; one list a loss."),
                io.String.Output(display_name="path", tooltip="The file that was written."),
                io.String.Output(display_name="summary", tooltip="What was done, in words and numbers."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name=None):
        return checked(output_name)

    @classmethod
    def execute(
        cls, model, clip, output_name, synonyms, irrelevant, templates, retain, vae=None, concepts=None, **settings
    ):
        path = lora_path(output_name)
        config = EraseConfig(
            synonyms=words_of(synonyms),
            irrelevant=words_of(irrelevant),
            templates=lines_of(templates),
            retain=lines_of(retain),
            samples=4 if vae is not None else 0,
            **settings,
        )
        if concepts is not None:
            config = dataclasses.replace(config, **concepts.settings())
        result = flux.train_eraser(model, clip, config, cls.report(config.steps))
        tensors = {key: tensor.bfloat16() for key, tensor in result.lora.items()}
        header = lora.strings(lora.header(result.config, flux.fingerprint(model)))
        lora.save_lora(tensors, path, header)
        summary = result.summary(path.name)
        shown = ui.PreviewText(summary).as_dict() | cls.pictures(model, vae, result)
        return io.NodeOutput(lora.LoraModel(tensors, header), result.losses, str(path), summary, ui=shown)

    @classmethod
    def report(cls, steps: int):
        """Shows the progress bar and the losses on the node while it runs."""
        bar, node = comfy.utils.ProgressBar(steps), cls.hidden.unique_id

        def progress(step: int, losses: dict[str, float]):
            bar.update_absolute(step)
            text = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            if node and getattr(PromptServer, "instance", None):
                PromptServer.instance.send_progress_text(f"step {step} of {steps}: {text}", node)

        return progress

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
                _text("output_name", "File name, without folder; an older file of that name is replaced.", "eraser"),
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
        return save(lora, output_name, concept)


def save(tensors: dict, output_name: str, concept: str) -> io.NodeOutput:
    header = getattr(tensors, "header", {})
    path = lora.save_lora(
        tensors, lora_path(output_name), header | (lora.title(concept) if concept or not header else {})
    )
    return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved {path.name}"))


NODES = [EraseTrainer, SaveEraseLoRA]
