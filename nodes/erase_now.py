"""The node that erases in closed form, without training."""

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge.checkpoint import kept_changes
from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.comfy_bridge.text_linears import TextLinears
from ..eraseanything_core.comfy_bridge.unbaked import with_whole_lora
from ..eraseanything_core.concepts.concept_set import ConceptSet
from ..eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from ..eraseanything_core.erasers.erase_now import METHODS, ClosedFormConfig, erase_now
from ..eraseanything_core.lora.factors import Eraser
from ..eraseanything_core.lora.files import LoraModel, header_strings
from ..eraseanything_core.lora.headers import training_header
from ..eraseanything_core.lora.key_styles import eraser_tensors
from .shared.inputs import CATEGORY_LORAS, NOT_LINKED, check_concept, concepts, seed
from .shared.progress import progress_bar
from .shared.types import LORA_MODEL


class EraseNow(io.ComfyNode):
    """Solves the linears that read the text anew, so that a concept reads as its neutral words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_EraseNow",
            display_name="Erase Now (closed form)",  # longer than Erase Trainer: a search for erase finds that first
            category=CATEGORY_LORAS,
            description="Erases a concept in seconds and without training: the linears that read the text are solved "
            "anew. Shallower than Erase Trainer.",
            search_aliases=["uce", "closed form", "unified concept editing", "instant", "without training"],
            inputs=[
                io.Model.Input("model", tooltip="The model, straight from its loader. It stays unchanged."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input("concept", default="", tooltip="The word or words to erase."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip="UCE weighs erasing against keeping; double projection changes nothing along kept texts.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Rank of the LoRA at most; 0 is exact. The report says what a smaller one loses.",
                    advanced=True,
                ),
                seed("Which sentences are taken. The same seed gives the same LoRA."),
                concepts("it replaces `concept`."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the eraser at strength 1."),
                LORA_MODEL.Output(display_name="lora", tooltip="For Save Erase LoRA and Multi Erase LoRA."),
                io.String.Output(display_name="report", tooltip="What was changed, and by how much."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, concept: str | None = None, concepts: Any = NOT_LINKED) -> bool | str:
        return check_concept(concept, concepts)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: str,
        method: Any,
        rank: int,
        seed: int,
        concepts: ConceptSet | None = None,
    ) -> io.NodeOutput:
        words = concepts or sample_offline(ConceptRequest(concept))
        config = ClosedFormConfig.of(words, method, rank, seed)
        reader = TextLinears(model, clip)
        # ComfyUI runs nodes in inference mode, and the encoder keeps what it encodes for work that is not.
        with torch.inference_mode(False), torch.no_grad():
            result = erase_now(config, reader, progress_bar(config.sentences + config.kept))
        erased, unbaked = with_whole_lora(model, result.eraser, 1.0)
        lost = [unbaked] if unbaked else lost_lines(erased, result.eraser)
        report = "\n".join([f"{words.concept} by {method}", result.text(), *lost])
        lora = lora_model(config, result.eraser, ComfyHost(model, clip))
        return io.NodeOutput(erased, lora, report, ui=ui.PreviewText(report))


def lora_model(config: ClosedFormConfig, eraser: Eraser, host: ComfyHost) -> LoraModel:
    """The LoRA as a file has it, with a header that names the method and its settings."""
    method = f"{config.method} in closed form"
    header = training_header(config, host.fingerprint(), method=method, family=host.family)
    # The field `method` of the settings is the same name again, without the words.
    header["eraseanything.method"] = method
    return LoraModel(eraser_tensors(eraser, torch.float32), header_strings(header))


def lost_lines(erased: Any, eraser: Eraser) -> list[str]:
    """A warning for each type of weight in which rounding takes the eraser away."""
    lines = []
    for kind, change in kept_changes(erased, eraser, 1.0).items():
        if change.is_lost:
            lines.append(
                f"WARNING: {kind} keeps {change.kept:.0%} of the change, and rounding adds {change.noise:.0%} of its "
                "size: load the base in a finer type, or judge pictures before anyone relies on it"
            )
    return lines


NODES = [EraseNow]
