"""The node that combines erasers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge import combining, patch
from ..eraseanything_core.comfy_bridge.gated_loras import with_gated_loras
from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.comfy_bridge.lora_files import eraser_for
from ..eraseanything_core.comfy_bridge.unbaked import with_whole_lora
from ..eraseanything_core.concepts import matching
from ..eraseanything_core.concepts.prompts import lines_of
from ..eraseanything_core.lora import merge
from ..eraseanything_core.lora.factors import Eraser, check_finite, check_same_model
from ..eraseanything_core.lora.files import LoraModel
from ..eraseanything_core.lora.fusion import FusionConfig
from ..eraseanything_core.lora.gate import PromptGate
from ..eraseanything_core.lora.headers import ErasedConcept, joint_header, typed_concepts
from ..eraseanything_core.lora.key_styles import eraser_tensors, left_out_note, widest_dtype
from ..eraseanything_core.lora.merge import FUSION, GATED, TRANSPORT, UNGATED
from ..eraseanything_core.lora.transport import transport
from ..eraseanything_core.protocols import TextEncoder
from ..eraseanything_core.quoting import quoted
from .shared.folders import lora_files, user_folder
from .shared.inputs import CATEGORY_LORAS, accepted
from .shared.loras import file_time, read_file, with_header
from .shared.types import LORA_MODEL

NO_FILE = "none"
NO_LORA = "there is no LoRA: choose a file, or link one"
# ComfyUI's list that grows takes links only, so the number of files is fixed. More erasers can be linked.
FILES = 8
FILES_AT_FIRST = 4  # the others are among the advanced inputs


@dataclass(frozen=True)
class WeightedLora:
    """One of the LoRAs that are combined.

    Attributes:
        name: what to call it in errors and in the summary.
        model: its tensors and header.
        weight: how much of it.
    """

    name: str
    model: LoraModel
    weight: float


def chosen_files(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names and weights of the files that are chosen, from the values of the node's inputs."""
    files: list[tuple[str, float]] = []
    for number in range(1, FILES + 1):
        # A linked input has no value yet when the node is asked whether a file has changed.
        name = values.get(f"file_{number}") or NO_FILE
        if name != NO_FILE:
            files.append((name, values.get(f"weight_{number}", 1.0)))
    return files


def parse_weight(text: str, context: str) -> float:
    """A typed weight; ValueError with the text around it when it is no finite number."""
    try:
        weight = float(text)
    except ValueError as error:
        raise ValueError(
            f"{quoted(text.strip())} in {quoted(context)} is no number: write a weight such as 0.8"
        ) from error
    if not math.isfinite(weight):
        raise ValueError(f"{quoted(text.strip())} in {quoted(context)} is no finite number: write a weight such as 0.8")
    return weight


def parse_weights(text: str) -> list[float]:
    """Typed weights, separated by commas or lines; nothing typed is a 1."""
    entries = [entry for entry in text.replace("\n", ",").split(",") if entry.strip()]
    return [parse_weight(entry, text) for entry in entries] or [1.0]


def linked_weights(text: str, count: int) -> list[float]:
    """The typed weights of `count` linked LoRAs; one number stands for all of them."""
    weights = parse_weights(text)
    if len(weights) == 1:
        return weights * count
    if len(weights) != count:
        raise ValueError(f"there are {len(weights)} weights for {count} linked LoRAs: give one, or one for each")
    return weights


def collect_loras(
    files: Sequence[tuple[str, float]], loras: dict[str, dict[str, torch.Tensor]], weights: str
) -> list[WeightedLora]:
    """All LoRAs in order, the files first."""
    collected = []
    for name, weight in files:
        collected.append(WeightedLora(name, read_file(name), weight))
    for (name, tensors), weight in zip(loras.items(), linked_weights(weights, len(loras)), strict=True):
        collected.append(WeightedLora(f"the input {name}", with_header(tensors), weight))
    if not collected:
        raise ValueError(NO_LORA)
    return collected


def erased_concepts(loras: Sequence[WeightedLora], typed: str) -> list[ErasedConcept]:
    """What each LoRA erases: from the typed list if there is one, else from the LoRAs' headers."""
    # All are typed or none: with some of each, a line would belong to no LoRA for certain.
    concepts = typed_concepts(typed)
    if concepts and len(concepts) != len(loras):
        raise ValueError(f"there are {len(concepts)} lines of concepts for {len(loras)} LoRAs: give one line for each")
    advice = "type a line for each LoRA into `concepts`"
    return concepts or [ErasedConcept.from_header(lora.model.header, lora.name, advice) for lora in loras]


def lines_input(name: str, tooltip: str, **more: Any) -> io.Input:
    """A text of several lines, empty at first."""
    return io.String.Input(name, default="", multiline=True, tooltip=tooltip, **more)


def eraser_inputs() -> list[io.Input]:
    """What is combined."""
    lora = io.Autogrow.TemplatePrefix(LORA_MODEL.Input("lora"), prefix="lora", min=0, max=100)
    weights = "Weights of the linked LoRAs: one number for all, or one for each, separated by commas."
    return [
        io.Model.Input("model", tooltip="The model; closed-form fusion needs it straight from its loader."),
        io.Autogrow.Input("loras", template=lora, optional=True, tooltip="LoRAs; linking one adds another input."),
        *file_inputs(),
        io.String.Input("weights", default="1", tooltip=weights, advanced=True),
    ]


def file_inputs() -> list[io.Input]:
    """Files to choose, and a weight for each."""
    # Required, with a file that is none: ComfyUI would show optional ones below all settings.
    files = [NO_FILE, *lora_files()]
    weight = "How much of this file; 1 is the eraser as trained."
    inputs: list[io.Input] = []
    for number in range(1, FILES + 1):
        more: dict[str, Any] = {"advanced": number > FILES_AT_FIRST}
        file = "An eraser of the loras folder; none leaves it out."
        inputs.append(io.Combo.Input(f"file_{number}", options=files, default=NO_FILE, tooltip=file, **more))
        scale = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}
        inputs.append(io.Float.Input(f"weight_{number}", tooltip=weight, **scale, **more))
    return inputs


def mode_inputs() -> list[io.Input]:
    """How it is combined, and what the modes that read text need."""
    mode = "How the LoRAs are combined. The help page compares the modes."
    prompt = "Facilitated transport only: the prompt that is sampled. It sets how strong each eraser is."
    concepts = (
        "Fusion, gating, transport, for LoRAs whose header does not say what they erase: a line for each LoRA in "
        "order, the concept first, then its synonyms, separated by commas."
    )
    return [
        io.Combo.Input("mode", options=[FUSION, GATED, TRANSPORT, *merge.MODES], default=GATED, tooltip=mode),
        io.Clip.Input(
            "clip", optional=True, tooltip="Needed by closed-form fusion, prompt-gated and facilitated transport."
        ),
        lines_input("prompt", prompt),
        lines_input("preserve", "Closed-form fusion only: more prompts that must not change, one per line."),
        lines_input("concepts", concepts, advanced=True),
    ]


def number_inputs() -> list[io.Input]:
    """Settings of single modes."""
    rank = "Truncated and the svd modes only: the largest rank of the result; 0 means no limit."
    energy = "Truncated only: the share of the squared singular values that is kept."
    density = "TIES, DARE and magnitude only: the share of entries of each LoRA that survives."
    seed = "For the states that fusion reads, and for DARE's random choice."
    seed_range = {"default": 0, "min": 0, "max": 2**31 - 1, "control_after_generate": False}
    return [
        io.Int.Input("rank", default=256, min=0, max=4096, tooltip=rank, advanced=True),
        io.Float.Input("energy", default=0.99, min=0.01, max=1.0, step=0.001, tooltip=energy, advanced=True),
        io.Float.Input("density", default=0.5, min=0.01, max=0.99, step=0.01, tooltip=density, advanced=True),
        io.Int.Input("seed", **seed_range, tooltip=seed, advanced=True),
    ]


class MultiEraseLoRA(io.ComfyNode):
    """Combines any number of erasers into one LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_MultiEraseLoRA",
            display_name="Multi Erase LoRA",
            category=CATEGORY_LORAS,
            description="Combines any number of erasers into one LoRA and applies it.",
            search_aliases=["merge lora", "lora merge", "combine lora", "lora stack", "several concepts", "multiple"],
            inputs=[*eraser_inputs(), *mode_inputs(), *number_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="All of them; prompt-gated, each where it is meant."),
                LORA_MODEL.Output(display_name="lora", tooltip="The one LoRA, for Save Erase LoRA; never gated."),
                io.String.Output(display_name="summary", tooltip="What was combined, and how."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        weights: str | None = None,
        loras: Any = None,
        *,
        file_1: str | None = NO_FILE,
        file_2: str | None = NO_FILE,
        file_3: str | None = NO_FILE,
        file_4: str | None = NO_FILE,
        file_5: str | None = NO_FILE,
        file_6: str | None = NO_FILE,
        file_7: str | None = NO_FILE,
        file_8: str | None = NO_FILE,
    ) -> bool | str:
        # Each by its name: with ** ComfyUI would leave the check of all inputs to this one. A linked file is None.
        files = (file_1, file_2, file_3, file_4, file_5, file_6, file_7, file_8)
        if not loras and all(file == NO_FILE for file in files):
            return NO_LORA
        return True if weights is None else accepted(parse_weights, weights)

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> list[int]:
        return [file_time(name) for name, _ in chosen_files(values)]

    @classmethod
    def execute(
        cls,
        model: Any,
        weights: str,
        mode: str,
        preserve: str,
        concepts: str,
        rank: int,
        energy: float,
        density: float,
        seed: int,
        loras: dict[str, dict[str, torch.Tensor]] | None = None,
        clip: Any = None,
        prompt: str = "",
        **files: Any,
    ) -> io.NodeOutput:
        settings: dict[str, Any] = {"rank": rank, "energy": energy, "density": density, "seed": seed}
        chosen = chosen_files(files)
        check_numbers(settings | {f"the weight of {name}": weight for name, weight in chosen})
        collected = collect_loras(chosen, loras or {}, weights)
        erasers = read_erasers(model, collected)
        erased: list[ErasedConcept] = []
        if mode in (FUSION, GATED, TRANSPORT):
            if clip is None:
                raise ValueError(f"{mode} reads text states: connect the CLIP of this model")
            erased = erased_concepts(collected, concepts)
        if mode == TRANSPORT:
            collected = transported(collected, erased, prompt, ComfyHost(model, clip).text_encoder())
        eraser_weights = [lora.weight for lora in collected]
        if mode == FUSION:
            config = FusionConfig.for_concept(erased[0], seed)
            states = user_folder() / "states"
            preserved = lines_of(preserve)
            matching.check_kept(preserved, [name for concept in erased for name in concept.names])
            one = combining.closed_form(model, clip, erasers, eraser_weights, erased, preserved, config, states)
        else:
            # Gates belong to the MODEL. A file has none, so its erasers are all on.
            plain = UNGATED if mode in (GATED, TRANSPORT) else mode
            one = merge.combined(erasers, eraser_weights, plain, **settings)
        check_finite(one, f"the sum of {len(collected)} LoRAs with these weights")
        unbaked = ""
        if mode == GATED:
            changed = with_gated_loras(model, erasers, eraser_weights, prompt_gate(model, clip, erased))
        else:
            changed, unbaked = with_whole_lora(model, one, 1.0)
        summary = "\n".join(filter(None, (combination_summary(mode, collected, one), unbaked)))
        return io.NodeOutput(changed, joint_lora(collected, one, mode), summary, ui=ui.PreviewText(summary))


def check_numbers(numbers: Mapping[str, float]) -> None:
    """Raises ValueError for a number that is none: NaN passes ComfyUI's check of a widget's range."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}: set a number")


def read_erasers(model: Any, loras: Sequence[WeightedLora]) -> list[Eraser]:
    """The factors of every LoRA, once it is sure that all of them are of this MODEL."""
    erasers = [eraser_for(model, lora.model, lora.model.header, lora.name) for lora in loras]
    check_same_model(erasers, [lora.name for lora in loras])
    for eraser in erasers:
        patch.check_fits(model, eraser)
    return erasers


def transported(
    loras: Sequence[WeightedLora], erased: Sequence[ErasedConcept], prompt: str, encoder: TextEncoder
) -> list[WeightedLora]:
    """The LoRAs, each as strong as a prompt is about its concept."""
    if not prompt.strip():
        raise ValueError("facilitated transport is for one prompt: type it into `prompt`, or link its text")
    strengths = transport(prompt, erased, encoder)
    return [replace(lora, weight=strength * lora.weight) for lora, strength in zip(loras, strengths, strict=True)]


def prompt_gate(model: Any, clip: Any, erased: Sequence[ErasedConcept]) -> PromptGate:
    """What reads from text states of a CLIP how much they are about each concept."""
    # ComfyUI runs nodes in inference mode, and the encoder keeps what it encodes for work that is not.
    with torch.inference_mode(False), torch.no_grad():
        return PromptGate(erased, ComfyHost(model, clip).text_encoder())


def joint_lora(loras: Sequence[WeightedLora], one: Eraser, mode: str) -> LoraModel:
    """The combined LoRA as a file has it."""
    headers = [lora.model.header for lora in loras]
    names = [lora.name for lora in loras]
    header = joint_header(headers, names, [lora.weight for lora in loras], UNGATED if mode == GATED else mode)
    return LoraModel(eraser_tensors(one, widest_dtype([lora.model for lora in loras])), header)


def combination_summary(mode: str, loras: Sequence[WeightedLora], one: Eraser) -> str:
    """The size of the result, a line for each LoRA, and what of their files is not used."""
    ranks = sorted({len(down) for _, down in one.values()})
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    entries = 0
    for up, down in one.values():
        entries += up.numel() + down.numel()
    size = 2 * entries / 2**20  # bytes of bf16
    lines = [f"{len(loras)} erasers by {mode}: {len(one)} linears, rank {span}, {size:.1f} MiB in bf16"]
    for lora in loras:
        lines.append(f"{lora.name}: weight {lora.weight:g}")
    if mode == GATED:
        lines.append("each conditioning that is sampled opens its own gates; the output lora has none")
    if mode == TRANSPORT:
        lines.append("these weights are for this one prompt, in the output lora too")
    for lora in loras:
        note = left_out_note(lora.model, lora.name)
        if note:
            lines.append(note)
    return "\n".join(lines)


NODES = [MultiEraseLoRA]
