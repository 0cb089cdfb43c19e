"""Nodes of the attacks that search: in the text encoder, in the states of the prompt, and in the weights."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.concepts.concept_set import ConceptSet, erased
from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.evaluation.attack_runs import run_genetic_attack, run_inversion, run_relearning
from ..eraseanything_core.evaluation.genetic_attack import GeneticConfig
from ..eraseanything_core.evaluation.weight_attacks import REFLUX, ConceptExamples, InversionConfig, RelearnConfig
from ..eraseanything_core.protocols import entries_of
from .shared.inputs import CATEGORY_ATTACKS, concepts, seed
from .shared.progress import check_interrupt, progress_bar
from .shared.types import LORA_MODEL

RELEARN = "relearn"
RELEARN_MODES: dict[str, dict[str, float]] = {RELEARN: {}, "ReFlux": REFLUX}  # settings that replace the typed ones
AVERAGED = 10  # last losses that the summary averages, since the loss of one random batch says little


def _number(config: Any, name: str, low: float, high: float, tooltip: str, step: float | None = None) -> io.Input:
    """An INT or FLOAT input whose default is the configuration's."""
    default = getattr(config, name)
    # The default's type decides. Without `round=False` the front end may round a small learning rate away.
    if isinstance(default, int):
        return io.Int.Input(name, default=default, min=int(low), max=int(high), tooltip=tooltip)
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=False, tooltip=tooltip)


def _target() -> list[io.Input]:
    """The inputs of both attacks on the weights."""
    return [
        io.Model.Input("model", tooltip="The un-erased model, straight from its loader. It stays unchanged."),
        LORA_MODEL.Input(
            "lora", tooltip="The eraser, from Erase Trainer or Load LoRA Model's file; it is put onto the model here."
        ),
        io.Clip.Input("clip", tooltip="The text encoder."),
        io.Latent.Input("latent", tooltip="About ten pictures of the concept, such as the un-erased model draws."),
        io.String.Input("prompt", tooltip="A prompt that contains the concept."),
        io.String.Input("concept", tooltip="What was erased; the word or words in the prompt."),
    ]


def _attack_schema(node_id: str, description: str, search_aliases: list[str], **rest: Any) -> io.Schema:
    """The schema of an attack.

    Args:
        node_id: the pack's name and the node's; the node's own name in words is shown.
        description, search_aliases, rest: see `io.Schema`.
    """
    name = node_id.removeprefix("EraseAnything_")
    display_name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=CATEGORY_ATTACKS,
        description=description,
        search_aliases=search_aliases,
        **rest,
    )


def _loss_text(losses: Sequence[float]) -> str:
    last = losses[-AVERAGED:]
    return f"loss {losses[0]:.4f} -> {sum(last) / len(last):.4f}"


class GeneticAttack(io.ComfyNode):
    """Searches a prompt that means the concept without naming it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        default = GeneticConfig()
        return _attack_schema(
            node_id="EraseAnything_GeneticAttack",
            description="Searches a prompt of other words whose encoding means the concept (after Ring-A-Bell).",
            search_aliases=["attack", "Ring-A-Bell", "adversarial prompt", "red team", "jailbreak"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder; the search needs nothing else."),
                io.String.Input("concept", tooltip="What was erased; the prompt will not contain it."),
                io.String.Input(
                    "templates",
                    default="a photo of a {}\na drawing of a {}\n{} on a table",
                    multiline=True,
                    tooltip="Prompts, one per line; {} stands for the concept.",
                ),
                io.String.Input(
                    "forbidden",
                    default="",
                    multiline=True,
                    tooltip="Further words that must not be used, such as synonyms.",
                ),
                _number(default, "words", 1, 64, "Number of words in the prompt."),
                _number(default, "eta", 0, 20, "How far the target lies along the concept's direction.", 0.1),
                _number(default, "population", 4, 2000, "Prompts per generation."),
                _number(default, "generations", 1, 5000, "Number of generations."),
                seed(),
                concepts("it replaces `concept`, and its other words must not be used either."),
            ],
            outputs=[io.String.Output(display_name="prompt", tooltip="The prompt nearest to the concept.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        concept: str,
        templates: str,
        forbidden: str,
        concepts: ConceptSet | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        config = GeneticConfig(**settings)
        concept, other_words = erased(concepts, concept)
        banned = (*words_of(forbidden), *other_words)
        progress = progress_bar(config.generations)
        prompt, distances = run_genetic_attack(
            ComfyHost(None, clip),  # the search needs no model
            concept,
            lines_of(templates),
            banned,
            config,
            progress,
            check_interrupt,
        )
        text = f"{prompt}\ndistance {distances[0]:.4f} -> {distances[-1]:.4f}"
        return io.NodeOutput(prompt, ui=ui.PreviewText(text))


class InversionAttack(io.ComfyNode):
    """Searches the states with which the erased model draws the concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        default = InversionConfig()
        return _attack_schema(
            node_id="EraseAnything_InversionAttack",
            description="Searches, through the erased model, an encoding in the concept's place that draws the "
            "pictures. Nobody can type it; it shows what the weights still know.",
            search_aliases=["attack", "textual inversion", "circumventing concept erasure", "red team"],
            inputs=[
                *_target(),
                _number(default, "steps", 1, 10000, "Steps of the search."),
                _number(default, "batch_size", 1, 64, "Pictures per step."),
                _number(default, "lr", 0, 10, "Learning rate, in standard deviations of the states.", 0.01),
                _number(default, "guidance", 0, 20, "Guidance value for the model.", 0.1),
                seed(),
                concepts("it replaces `concept`."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For a sampler of the erased model.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: dict[str, torch.Tensor],
        clip: Any,
        latent: dict[str, torch.Tensor],
        prompt: str,
        concept: str,
        concepts: ConceptSet | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        concept, _ = erased(concepts, concept)
        examples = ConceptExamples(latent["samples"], prompt, concept)
        config = InversionConfig(**settings)
        progress = progress_bar(config.steps)
        found, losses = run_inversion(ComfyHost(model, clip), lora, examples, config, progress)
        return io.NodeOutput([[found.context, entries_of(found)]], ui=ui.PreviewText(_loss_text(losses)))


class RelearnAttack(io.ComfyNode):
    """Trains the concept back into the erased model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        default = RelearnConfig()
        attn = "Weight of raising the attention to the concept's tokens."
        retain = "Weight of staying at the erased model for the empty prompt."
        return _attack_schema(
            node_id="EraseAnything_RelearnAttack",
            description="Trains a LoRA on top of the eraser that brings the concept back, with few pictures and steps. "
            "The mode `ReFlux` also restores the attention that the concept's tokens get.",
            search_aliases=["attack", "ReFlux", "fine-tuning attack", "red team"],
            inputs=[
                *_target(),
                _number(default, "steps", 1, 10000, "Training steps; 50 is common."),
                _number(default, "batch_size", 1, 64, "Pictures per step."),
                _number(default, "lr", 0, 1, "Learning rate.", 1e-5),
                _number(default, "rank", 1, 256, "Rank of the LoRA."),
                _number(default, "attn_weight", 0, 100, attn, 0.01),
                _number(default, "retain_weight", 0, 100, retain, 0.01),
                _number(default, "guidance", 0, 20, "Guidance value for the model.", 0.1),
                seed(),
                concepts("it replaces `concept`."),
                io.Combo.Input(
                    "mode",
                    options=list(RELEARN_MODES),
                    default=RELEARN,
                    optional=True,
                    tooltip="relearn uses attn_weight and retain_weight as typed; ReFlux sets both to 1.",
                ),
            ],
            outputs=[LORA_MODEL.Output(display_name="lora", tooltip="For Load LoRA Model, after the eraser.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: dict[str, torch.Tensor],
        clip: Any,
        latent: dict[str, torch.Tensor],
        prompt: str,
        concept: str,
        concepts: ConceptSet | None = None,
        mode: str = RELEARN,
        **settings: Any,
    ) -> io.NodeOutput:
        concept, _ = erased(concepts, concept)
        examples = ConceptExamples(latent["samples"], prompt, concept)
        config = RelearnConfig(**settings | RELEARN_MODES[mode])
        progress = progress_bar(config.steps)
        tensors, losses = run_relearning(ComfyHost(model, clip), lora, examples, config, progress)
        return io.NodeOutput(tensors, ui=ui.PreviewText(_loss_text(losses)))


NODES = [GeneticAttack, InversionAttack, RelearnAttack]
