"""Nodes that need no training: where a concept stands in the attention, and its columns scaled away."""

from typing import Any

from comfy_api.latest import io, ui

from ..eraseanything_core.attention import heat_maps
from ..eraseanything_core.attention.blocks import Blocks
from ..eraseanything_core.attention.erase import MapErasure
from ..eraseanything_core.attention.hooks import EraseHook, ProbeHook
from ..eraseanything_core.attention.probe import VIEWS, parse_heads
from ..eraseanything_core.comfy_bridge.families import class_name, diffusion_model, family, is_flux_1, layout, refused
from ..eraseanything_core.comfy_bridge.family_probe import FamilyProbeHook
from ..eraseanything_core.comfy_bridge.sampler_hooks import encode_located, sigma_range, with_hook
from .shared.inputs import CATEGORY_ATTENTION
from .shared.progress import check_interrupt
from .shared.types import ERASE_ATTENTION

BLOCKS_HELP = "dual, single or all; or some by number, as in: dual 0-5, single 3"


def prompt_inputs(model: str, concepts: str) -> list[io.Input]:
    """The prompt that is sampled, and the words in it that are meant.

    Args:
        model: the model's tooltip, without its end.
        concepts: the tooltip of the words.
    """
    return [
        io.Model.Input("model", tooltip=f"{model}; LoRAs and other nodes may come before. It stays unchanged."),
        io.Clip.Input("clip", tooltip="The text encoder of the model."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="a photo of a heart",
            tooltip="The prompt to sample. Connect this node's conditioning to the sampler, or encode exactly this.",
        ),
        io.String.Input("concept", default="heart", tooltip=concepts),
    ]


def range_inputs(blocks: str) -> list[io.Input]:
    """Where and when the node acts; `blocks` is the tooltip of the blocks."""
    fraction = {"min": 0.0, "max": 1.0, "step": 0.01}
    return [
        io.String.Input("blocks", default="dual", tooltip=blocks),
        io.Float.Input("start", default=0.0, tooltip="Fraction of the sampling from which it acts.", **fraction),
        io.Float.Input("end", default=1.0, tooltip="Fraction of the sampling up to which it acts.", **fraction),
        io.Boolean.Input(
            "fuzzy",
            default=False,
            tooltip="Also match misspelt words, and words with letters around the concept; the text lists them.",
        ),
    ]


class AttentionProbe(io.ComfyNode):
    """Records where in the image a concept's tokens are attended to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_AttentionProbe",
            display_name="Attention Probe",
            category=CATEGORY_ATTENTION,
            description="Patches a model so that sampling records where a concept's tokens are attended to. Read it "
            "with Attention Maps, after the sampler.",
            search_aliases=["attention map", "heat map", "token attention", "daam"],
            inputs=[
                *prompt_inputs(
                    "A model of a family that the help page lists",
                    "The word or words to look for; several are separated by commas.",
                ),
                *range_inputs(f"Blocks to record: {BLOCKS_HELP}."),
                io.String.Input("heads", default="all", tooltip="Heads to record: all, or numbers such as 0, 3, 5."),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler; it gives the same image as without the probe."),
                io.Conditioning.Output(tooltip="The encoded prompt, for the sampler's positive input."),
                ERASE_ATTENTION.Output(display_name="attention", tooltip="For Attention Maps."),
                io.String.Output(display_name="tokens", tooltip="The concepts' token positions, in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        concept: str,
        blocks: str,
        start: float,
        end: float,
        fuzzy: bool,
        heads: str,
    ) -> io.NodeOutput:
        chosen = Blocks(blocks)
        model_layout = layout(model)
        sound = refused.REASONS.get(class_name(diffusion_model(model)))
        if sound:
            raise ValueError(f"the MODEL is of {family(model)}: {sound}; load one that makes pictures")
        chosen.check(model_layout.reporter.dual, model_layout.reporter.single)
        located, conditioning = encode_located(model, model_layout, clip, prompt, concept, fuzzy)
        sigmas = sigma_range(model, start, end)
        if is_flux_1(model.model):
            hook = ProbeHook(located, sigmas, chosen, parse_heads(heads))
        else:
            cell = model.model.latent_format.spacial_downscale_ratio
            hook = FamilyProbeHook(located, sigmas, chosen, parse_heads(heads), model_layout, cell)
        tokens = located.table()
        return io.NodeOutput(with_hook(model, hook), conditioning, hook, tokens, ui=ui.PreviewText(tokens))


class AttentionMaps(io.ComfyNode):
    """Shows what a probe recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_AttentionMaps",
            display_name="Attention Maps",
            category=CATEGORY_ATTENTION,
            description="Shows what Attention Probe recorded: heat maps, masks, and each token's share.",
            inputs=[
                ERASE_ATTENTION.Input("attention", tooltip="From Attention Probe."),
                io.Latent.Input("samples", tooltip="What the sampler made with the probe's model."),
                io.Combo.Input(
                    "split",
                    options=list(VIEWS),
                    default="all",
                    tooltip="One map for each concept (all), or one for every block, step or head.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The mask is 1 where the map, stretched to 0 to 1, reaches this; 0 leaves it soft.",
                ),
                io.Image.Input("image", optional=True, tooltip="The decoded samples, to draw the maps over."),
            ],
            outputs=[
                io.Image.Output(display_name="maps", tooltip="A heat map of every concept in every image."),
                io.Mask.Output(tooltip="The same maps as masks, at the size of the image."),
                io.Image.Output(display_name="shares", tooltip="A bar for every token of the prompt."),
                io.String.Output(display_name="table", tooltip="Every token with its share of the image's attention."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, attention: ProbeHook, samples: dict[str, Any], split: str, threshold: float, image: Any = None
    ) -> io.NodeOutput:
        latents = samples["samples"]
        recording = attention.recording(latents)
        if image is not None and len(image) != len(latents):
            raise ValueError(f"{len(image)} images for {len(latents)} samples: decode these samples")
        if image is None:
            images = [None] * len(latents)
            height = attention.cell * latents.shape[-2]
            width = attention.cell * latents.shape[-1]
        else:
            images = list(image.cpu())
            height, width = image.shape[1:3]
        maps = heat_maps.recorded_maps(recording, split, images, check_interrupt)
        masks = heat_maps.recorded_masks(recording, height, width, threshold, check_interrupt)
        shares = heat_maps.bars(recording.named_shares())[None]
        table = recording.table()
        shown = ui.PreviewText(table).as_dict() | ui.PreviewImage(maps, cls=cls).as_dict()
        return io.NodeOutput(maps, masks, shares, table, ui=shown)


class AttentionErase(io.ComfyNode):
    """The paper's training-free eraser."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_AttentionErase",
            display_name="Attention Erase",
            category=CATEGORY_ATTENTION,
            description="Scales the attention that a concept's tokens get, without training. It needs the word itself: "
            "misspellings and synonyms get past it.",
            search_aliases=["attention map erasure", "concept erasure", "delete attention"],
            inputs=[
                *prompt_inputs(
                    "A model of Flux, Stable Diffusion or another family that the help page lists",
                    "The word or words whose columns are scaled; several are separated by commas.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="What is left of the columns: 0 deletes them, 1 changes nothing.",
                ),
                *range_inputs(f"Blocks to change: {BLOCKS_HELP}."),
                io.Boolean.Input(
                    "renormalise", default=False, tooltip="Scale the rest of each row up, so that it sums to 1 again."
                ),
                io.Combo.Input(
                    "queries",
                    options=["all", "image"],
                    default="all",
                    tooltip="Which queries lose the columns: all, as in the paper, or only the image's.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler."),
                io.Conditioning.Output(tooltip="The encoded prompt, for the sampler's positive input."),
                io.String.Output(display_name="tokens", tooltip="The concepts' token positions, in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        concept: str,
        strength: float,
        blocks: str,
        start: float,
        end: float,
        fuzzy: bool,
        renormalise: bool,
        queries: str,
    ) -> io.NodeOutput:
        config = MapErasure(strength, renormalise, Blocks(blocks), queries == "image")
        model_layout = layout(model)
        config.blocks.check(model_layout.reporter.dual, model_layout.reporter.single)
        located, conditioning = encode_located(model, model_layout, clip, prompt, concept, fuzzy)
        hook = EraseHook(located, sigma_range(model, start, end), config, model_layout)
        tokens = located.table()
        return io.NodeOutput(with_hook(model, hook), conditioning, tokens, ui=ui.PreviewText(tokens))


NODES = [AttentionProbe, AttentionMaps, AttentionErase]
