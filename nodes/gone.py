"""The node that says whether a concept is gone, by the original model alone."""

from typing import Any

from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.concepts.concept_set import ConceptSet
from ..eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from ..eraseanything_core.training.gone_check import Erased, check_gone
from ..eraseanything_core.training.presets import run_config
from .shared.inputs import CATEGORY_EVALUATION, NOT_LINKED, accepted, check_concept, concepts, seed
from .shared.loras import LINKED, check_chosen, chosen_lora, eraser_input, file_time
from .shared.texts import show_text
from .shared.types import LORA_MODEL


class IsItGone(io.ComfyNode):
    """Draws held-out sentences with an eraser, and lets the original model say what they still show."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_IsItGone",
            display_name="Is It Gone?",
            category=CATEGORY_EVALUATION,
            description="Says whether a concept is gone, for any LoRA or checkpoint and without a judge.",
            search_aliases=["gone score", "check erasure", "test eraser", "verify unlearning", "evaluate lora"],
            inputs=[
                io.Model.Input("model", tooltip="The original model, straight from its loader. It reads the pictures."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input("concept", default="", tooltip="The word or words that should be gone."),
                eraser_input(),
                io.Float.Input(
                    "strength", default=1.0, min=-3.0, max=3.0, step=0.05, tooltip="LoRA strength to look at."
                ),
                io.Int.Input(
                    "pictures",
                    default=24,
                    min=1,
                    max=256,
                    tooltip="Held-out pictures of the concept; of its neighbours half as many. Each takes about "
                    "40 forwards of the model.",
                ),
                io.Int.Input(
                    "size", default=256, min=16, max=1024, step=16, tooltip="Side of the pictures in pixels, at most."
                ),
                io.Int.Input("steps", default=8, min=2, max=100, tooltip="Sampler steps of a picture.", advanced=True),
                io.Float.Input(
                    "guidance", default=3.5, min=0.0, max=20.0, step=0.1, tooltip="Guidance value.", advanced=True
                ),
                seed(),
                LORA_MODEL.Input("lora", optional=True, tooltip="An eraser, instead of a file."),
                io.Model.Input(
                    "erased",
                    optional=True,
                    tooltip="An erased checkpoint straight from its loader. It replaces file and lora.",
                ),
                concepts("it replaces `concept`."),
            ],
            outputs=[
                io.Boolean.Output(
                    display_name="gone", tooltip="Whether no picture that can be read shows the concept."
                ),
                io.Float.Output(
                    display_name="shown", tooltip="Share of the pictures that show it; -1 if none is read."
                ),
                io.String.Output(display_name="text", tooltip="The verdict in words, with its interval."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        concept: str | None = None,
        file: str | None = None,
        lora: Any = NOT_LINKED,
        erased: Any = NOT_LINKED,
        concepts: Any = NOT_LINKED,
    ) -> bool | str:
        said = check_concept(concept, concepts)
        return accepted(check_chosen, file, lora, erased) if said is True else said

    @classmethod
    def fingerprint_inputs(cls, file: str = LINKED, **others: Any) -> int:
        return file_time(file)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: str,
        file: str,
        strength: float,
        pictures: int,
        size: int,
        steps: int,
        guidance: float,
        seed: int,
        lora: dict[str, Any] | None = None,
        erased: Any = None,
        concepts: ConceptSet | None = None,
    ) -> io.NodeOutput:
        host = ComfyHost(model, clip)
        if erased is not None:
            looked_at = Erased(ComfyHost(erased, clip))
        else:
            looked_at = Erased(host, chosen_lora(file, lora), strength)
        words = concepts or sample_offline(ConceptRequest(concept))
        typed = {
            "width": size,
            "height": size,
            "look_pictures": pictures,
            "look_steps": steps,
            "guidance": guidance,
            "seed": seed,
            "monitor_every": 1,
        }
        config = run_config(words.settings(), "balanced", typed)
        node = cls.hidden.unique_id
        verdict = check_gone(host, looked_at, config, lambda message: show_text(message, node))
        shown = verdict.shown / verdict.readable if verdict.readable else -1.0
        text = verdict.text()
        return io.NodeOutput(verdict.gone, shown, text, ui=ui.PreviewText(text))


NODES = [IsItGone]
