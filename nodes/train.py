"""Nodes that train an eraser and save it."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.comfy_bridge.lora_files import eraser_for
from ..eraseanything_core.comfy_bridge.previews import decoded
from ..eraseanything_core.comfy_bridge.unbaked import with_whole_lora
from ..eraseanything_core.comfy_bridge.user_pictures import picture_hash, picture_latents
from ..eraseanything_core.concepts.concept_set import ConceptSet
from ..eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from ..eraseanything_core.erasers.registry import method_of, settings_of
from ..eraseanything_core.lora.files import LoraModel, check_tensors, header_strings, save_lora
from ..eraseanything_core.lora.headers import model_spec, named_header, training_header
from ..eraseanything_core.training.config import EraseConfig
from ..eraseanything_core.training.presets import PRESETS, run_config
from ..eraseanything_core.training.recipe import train_eraser
from ..eraseanything_core.training.run_files import mark_finished
from ..eraseanything_core.training.trainer import EraseResult
from .shared.folders import free_lora_path, loras_folder, run_folder, run_name
from .shared.inputs import (
    CATEGORY_TRAINING,
    DEFAULT_PRESET,
    NOT_LINKED,
    SAVE_EVERY,
    accepted,
    check_concept,
    concepts,
    seed,
)
from .shared.training_display import TrainingDisplay, finish_on_sigterm
from .shared.types import ERASE_SETTINGS, LORA_MODEL, PICTURES

SHOWN = 2  # pictures of the concept, before and after
SUBFOLDER_NAME = "File name, also in a sub-folder as people/star; a number is added if the name is in use."
PRESET_TOOLTIP = (
    "How long and how thoroughly to train. quick takes things and relations away, but often leaves a style. paper and "
    "reference are the settings of the paper and of its code. Erase Settings goes over it."
)


def accepted_name(output_name: str | None) -> bool | str:
    """The answer of `validate_inputs` for the name of a LoRA, which may stand in a sub-folder; None is a linked one."""
    return True if output_name is None else accepted(files.check_name, output_name, subfolders=True)


def trainer_config(words: ConceptSet, preset: str, settings: dict[str, Any], seed: int) -> EraseConfig:
    """The settings of a run: what the settings nodes hold goes over the preset.

    Args:
        words: of the concept.
        preset: a name of `PRESETS`.
        settings: fields of an `EraseConfig`.
        seed: of the run.
    """
    own = dict(settings.get("method_settings", ()))
    of_method = settings_of(settings.get("method", EraseConfig.method), own)
    typed = {"save_every": SAVE_EVERY, "preview_images": SHOWN, **of_method, **settings, "seed": seed}
    if "irrelevant" in settings:
        typed["tiers"] = ()  # they are those of the words that are replaced
    return run_config(words.settings(), preset, typed)


def with_pictures(
    config: EraseConfig, model: Any, vae: Any, pictures: torch.Tensor | None
) -> tuple[EraseConfig, torch.Tensor | None]:
    """The settings with the hash of the user's pictures, and their latents; None where there are none.

    Raises:
        ValueError: the method takes no pictures.
    """
    if pictures is None:
        return config, None
    config = dataclasses.replace(config, anchor_pictures=picture_hash(pictures))
    method_of(config)  # before the VAE is loaded for nothing
    return config, picture_latents(model, pictures, vae, config.width, config.height)


def changed_settings(words: ConceptSet, preset: str, settings: dict[str, Any]) -> str:
    """A line on the settings that differ from the preset's; empty where none does."""
    plain = trainer_config(words, preset, {}, seed=0)
    changes = [f"{name} {value}" for name, value in settings.get("method_settings", ())]
    for name, value in settings.items():
        before = getattr(plain, name)
        if value != before and name != "method_settings":
            changes.append(f"{name} {_short(value)} instead of {_short(before)}")
    return f"settings over the preset {preset}: {', '.join(changes)}" if changes else ""


def _short(value: Any) -> str:
    """A value for a line of many: of a list of words its length."""
    return f"{len(value)} entries" if isinstance(value, tuple) else str(value)


def train_and_save(
    host: ComfyHost,
    config: EraseConfig,
    run: Path,
    display: TrainingDisplay,
    auto: bool,
    pictures: torch.Tensor | None = None,
) -> tuple[EraseResult, LoraModel, str]:
    """Trains in the folder of a run, or goes on there, and writes the LoRA; see `train_eraser` and `saved_lora`."""
    if run.is_dir():
        display.notify(f"goes on with the stopped run {run_name(run)}")
    # The LoRA belongs inside as well: a server that is stopped now still writes it.
    with finish_on_sigterm():
        result = train_eraser(
            host,
            config,
            display.progress,
            run,
            auto,
            display.show,
            display.notify,
            report=display.prepare,
            method=method_of(config),
            pictures=pictures,
        )
        lora, file_name = saved_lora(result, run_name(run), host.fingerprint(), host.family)
        if not result.interrupted:
            mark_finished(run, file_name)
    return result, lora, file_name


def saved_lora(result: EraseResult, name: str, base: str, family: str = "") -> tuple[LoraModel, str]:
    """Writes the LoRA of a run under a free name.

    Args:
        result: of the run.
        name: of the file, also in a sub-folder; it gets a number if it is in use.
        base: names the weights of the model.
        family: of the model; empty for FLUX.1.

    Returns:
        The LoRA as the file has it, and the name of the file in the loras folder.
    """
    path = free_lora_path(name)
    # The header says how many pairs are in the LoRA. Of a run that was stopped these are not those of its settings.
    trained = dataclasses.replace(result.config, steps=result.steps)
    measured = result.verdict.text() if result.verdict else ""
    tensors = {key: tensor.bfloat16() for key, tensor in result.lora.items()}
    lora = LoraModel(tensors, header_strings(training_header(trained, base, trained.method, measured, family)))
    save_lora(lora, path, lora.header)
    return lora, path.relative_to(loras_folder()).as_posix()


def before_and_after(model: Any, vae: Any, result: EraseResult) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [b, h, w, 3] of the concept from the same noise, by the original model and by the erased one."""
    assert result.samples is not None, "a run that ends makes them, since `preview_images` is set"
    before, after = (decoded(model, latents, vae) for latents in result.samples)
    return before, after


class EraseTrainer(io.ComfyNode):
    """Trains a LoRA that erases a concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_EraseTrainer",
            display_name="Erase Trainer",
            category=CATEGORY_TRAINING,
            description="Trains a LoRA that erases a concept from a model. The word alone is enough.",
            search_aliases=[
                "remove concept",
                "forget",
                "unlearn",
                "erase",
                "negative",
                "uncensor",
                "nsfw",
                "concept erasure",
                "erase concept",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model, straight from its loader. It stays unchanged."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.Vae.Input("vae", tooltip="The VAE of the model. It shows the concept before and after."),
                io.String.Input("concept", default="", tooltip="The word or words to erase."),
                io.Combo.Input("preset", options=list(PRESETS), default=DEFAULT_PRESET, tooltip=PRESET_TOOLTIP),
                io.String.Input(
                    "output_name",
                    default="eraser",
                    tooltip=f"{SUBFOLDER_NAME} A stopped run of this name and these settings goes on.",
                ),
                seed("The same seed gives the same LoRA; on a GPU up to rounding, without `deterministic`."),
                concepts(
                    "it replaces `concept`, and each step compares with one irrelevant word of each of its tiers."
                ),
                ERASE_SETTINGS.Input(
                    "settings", optional=True, tooltip="From Erase Settings: single values, over those of the preset."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the eraser at strength 1."),
                LORA_MODEL.Output(
                    display_name="lora", tooltip="For Load LoRA Model, Erase Strength and Multi Erase LoRA."
                ),
                io.String.Output(
                    display_name="report", tooltip="What was trained, on which words, and into which file."
                ),
                io.Image.Output(
                    display_name="pictures",
                    tooltip="The concept by the original model (left) and the erased one (right).",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, concept: str | None = None, output_name: str | None = None, concepts: Any = NOT_LINKED
    ) -> bool | str:
        said = check_concept(concept, concepts)
        return accepted_name(output_name) if said is True else said

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        concept: str,
        preset: str,
        output_name: str,
        seed: int,
        concepts: ConceptSet | None = None,
        settings: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        settings = dict(settings or {})
        pictures = settings.pop(PICTURES, None)
        words = concepts or sample_offline(ConceptRequest(concept))
        config, anchors = with_pictures(trainer_config(words, preset, settings, seed), model, vae, pictures)
        host = ComfyHost(model, clip)
        host.check()
        run = run_folder(output_name, config, host.fingerprint())
        display = TrainingDisplay(config.steps, cls.hidden.unique_id, model, vae)
        auto = "gradient_checkpointing" not in settings
        result, lora, file_name = train_and_save(host, config, run, display, auto, anchors)
        if result.interrupted:
            display.notify(f"stopped at {result.steps} of {config.steps}; press Run to go on")
            # Nothing behind this node runs on half an eraser, and ComfyUI does not take the node for done.
            raise InterruptProcessingException
        erased, unbaked = with_whole_lora(model, eraser_for(model, lora, lora.header, file_name), 1.0)
        changed = changed_settings(words, preset, settings)
        parts = [result.summary(file_name), unbaked, display.went_on(), changed, words.text()]
        report = "\n".join(filter(None, parts))
        before, after = before_and_after(model, vae, result)
        preview = ui.PreviewImage(display.finish(before, after), cls=cls).as_dict()
        shown = ui.PreviewText(report).as_dict() | {"lora": [file_name]} | preview
        return io.NodeOutput(erased, lora, report, torch.cat((before, after), dim=2), ui=shown)


class SaveEraseLoRA(io.ComfyNode):
    """Saves a LoRA where the stock LoraLoader finds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_SaveEraseLoRA",
            display_name="Save Erase LoRA",
            category=CATEGORY_TRAINING,
            description="Saves a LoRA into the loras folder, with the concept in its header.",
            search_aliases=["save lora", "export lora"],
            inputs=[
                LORA_MODEL.Input("lora", tooltip="From Erase Trainer or Multi Erase LoRA."),
                io.String.Input("output_name", default="eraser", tooltip=SUBFOLDER_NAME),
                io.String.Input(
                    "concept", default="", optional=True, tooltip="What the LoRA erases; written into the header."
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None) -> bool | str:
        return accepted_name(output_name)

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
