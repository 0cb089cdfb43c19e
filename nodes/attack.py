"""Nodes of the attacks that search: in the text encoder, in the states of the prompt, and in the weights."""

import comfy.utils
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge.attacks import breed, invert, relearn
from ..eraseanything_core.concepts.concept_set import erased
from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.evaluation.genetic_attack import GeneticConfig
from ..eraseanything_core.evaluation.weight_attacks import AWAKEN, InversionConfig, RelearnConfig
from .shared.inputs import LORA_MODEL, concepts, seed

CATEGORY = "EraseAnything/attacks"
RELEARN = "relearn"
MODES = {RELEARN: {}, "awaken (ReFlux)": AWAKEN}  # what goes over the typed settings


def _number(config, name: str, low, high, tooltip: str, step=None):
    """An INT or FLOAT input whose default is the configuration's."""
    default = getattr(config, name)
    if isinstance(default, int):
        return io.Int.Input(name, default=default, min=low, max=high, tooltip=tooltip)
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=False, tooltip=tooltip)


def _target() -> list:
    """What both white-box attacks are given."""
    return [
        io.Model.Input("model", tooltip="The un-erased Flux.1, straight from its loader. It is left as it is."),
        LORA_MODEL.Input(
            "lora", tooltip="The eraser, from Erase Trainer or Load LoRA Model's file; put onto the model here."
        ),
        io.Clip.Input("clip", tooltip="The text encoder."),
        io.Latent.Input("latent", tooltip="About ten pictures of the concept, such as the un-erased model draws."),
        io.String.Input("prompt", tooltip="A prompt that holds the concept."),
        io.String.Input("concept", tooltip="What was erased; the word or words in the prompt."),
    ]


def _progress(steps: int):
    bar = comfy.utils.ProgressBar(steps)
    return lambda step, loss: bar.update_absolute(step)


class GeneticAttack(io.ComfyNode):
    """Breeds a prompt that means the concept without naming it."""

    @classmethod
    def define_schema(cls):
        default = GeneticConfig()
        return io.Schema(
            node_id="EraseAnything_GeneticAttack",
            display_name="Genetic Attack",
            category=CATEGORY,
            description="Breeds a prompt of other words whose encoding means the concept (after Ring-A-Bell).",
            search_aliases=["Ring-A-Bell", "adversarial prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder; the search needs nothing else."),
                io.String.Input("concept", tooltip="What was erased; it is not among the words that are found."),
                io.String.Input("templates", default="a photo of a {}\na drawing of a {}\n{} on a table",
                                multiline=True, tooltip="Prompts, one a line; {} stands for the concept."),
                io.String.Input("forbidden", default="", multiline=True,
                                tooltip="Further words that must not be used, such as synonyms."),
                _number(default, "words", 1, 64, "Words of the prompt."),
                _number(default, "eta", 0, 20, "How far the target lies along the concept's direction.", 0.1),
                _number(default, "population", 4, 2000, "Prompts of one generation."),
                _number(default, "generations", 1, 5000, "Generations."),
                seed(),
                concepts("takes the place of concept, and its other words must not be used either."),
            ],
            outputs=[io.String.Output(display_name="prompt", tooltip="The nearest prompt.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, clip, concept, templates, forbidden, concepts=None, **settings) -> io.NodeOutput:
        config = GeneticConfig(**settings)
        concept, others = erased(concepts, concept)
        prompt, history = breed(clip, concept, lines_of(templates), (*words_of(forbidden), *others), config)
        text = f"{prompt}\ndistance {history[0]:.4f} -> {history[-1]:.4f}"
        return io.NodeOutput(prompt, ui=ui.PreviewText(text))


class InversionAttack(io.ComfyNode):
    """Searches the states with which the erased model draws the concept."""

    @classmethod
    def define_schema(cls):
        default = InversionConfig()
        return io.Schema(
            node_id="EraseAnything_InversionAttack",
            display_name="Inversion Attack",
            category=CATEGORY,
            description="Searches, through the erased model, the encoding in the concept's place that draws given "
            "pictures. Nobody can type it; it tells what the weights still hold.",
            search_aliases=["textual inversion", "circumventing concept erasure"],
            inputs=[
                *_target(),
                _number(default, "steps", 1, 10000, "Steps of the search."),
                _number(default, "batch", 1, 64, "Pictures of a step."),
                _number(default, "lr", 0, 10, "Learning rate, in standard deviations of the states.", 0.01),
                _number(default, "guidance", 0, 20, "Guidance value that the model is given.", 0.1),
                seed(),
                concepts("takes the place of concept."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For a sampler of the erased model.")],
        )

    @classmethod
    def execute(cls, model, lora, clip, latent, prompt, concept, concepts=None, **settings) -> io.NodeOutput:
        concept, _ = erased(concepts, concept)
        config = InversionConfig(**settings)
        samples = latent["samples"]
        found = invert(model, clip, lora, samples, prompt, concept, config, _progress(config.steps))
        context, pooled, history = found
        text = f"loss {history[0]:.4f} -> {sum(history[-10:]) / len(history[-10:]):.4f}"
        return io.NodeOutput([[context, {"pooled_output": pooled}]], ui=ui.PreviewText(text))


class RelearnAttack(io.ComfyNode):
    """Trains the concept back into the erased model."""

    @classmethod
    def define_schema(cls):
        default = RelearnConfig()
        return io.Schema(
            node_id="EraseAnything_RelearnAttack",
            display_name="Relearn Attack",
            category=CATEGORY,
            description="Trains a LoRA on top of the eraser that brings the concept back, with few pictures and steps; "
            "`awaken (ReFlux)` also awakes the attention that the concept's tokens get.",
            search_aliases=["ReFlux", "fine-tuning attack"],
            inputs=[
                *_target(),
                _number(default, "steps", 1, 10000, "Steps of training; 50 is usual."),
                _number(default, "batch", 1, 64, "Pictures of a step."),
                _number(default, "lr", 0, 1, "Learning rate.", 1e-5),
                _number(default, "rank", 1, 256, "Rank of the LoRA."),
                _number(default, "attn", 0, 100, "Weight of the attention that the concept's tokens lack.", 0.01),
                _number(default, "keep", 0, 100, "Weight of staying at the erased model for the empty prompt.", 0.01),
                _number(default, "guidance", 0, 20, "Guidance value that the model is given.", 0.1),
                seed(),
                concepts("takes the place of concept."),
                io.Combo.Input("mode", options=list(MODES), default=RELEARN, optional=True,
                               tooltip="relearn takes attn and keep as typed; awaken (ReFlux) sets both to 1."),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="For Load LoRA Model, behind the one of the eraser.")
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, lora, clip, latent, prompt, concept, concepts=None, mode=RELEARN,
                **settings) -> io.NodeOutput:  # fmt: skip
        concept, _ = erased(concepts, concept)
        config = RelearnConfig(**settings | MODES[mode])
        samples = latent["samples"]
        found, history = relearn(model, clip, lora, samples, prompt, concept, config, _progress(config.steps))
        text = f"loss {history[0]:.4f} -> {sum(history[-10:]) / len(history[-10:]):.4f}"
        return io.NodeOutput(found, ui=ui.PreviewText(text))


NODES = [GeneticAttack, InversionAttack, RelearnAttack]
