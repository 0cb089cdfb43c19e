"""Nodes that need no training: where a concept stands in the attention, and its columns scaled away."""

import comfy.patcher_extension
import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.attention import heat_maps
from ..eraseanything_core.attention.columns import Blocks
from ..eraseanything_core.attention.erase import MapErasure
from ..eraseanything_core.attention.hooks import EraseHook, Hook, ProbeHook, Prompt, read_prompt
from ..eraseanything_core.attention.probe import VIEWS, parse_heads
from ..eraseanything_core.comfy_bridge.families import family, is_flux, layout
from ..eraseanything_core.comfy_bridge.text import context_pieces
from ..eraseanything_core.concepts.prompts import words_of

CATEGORY = "EraseAnything/attention"
ATTENTION = io.Custom("ERASE_ATTENTION")


def encoded(model, layout, clip, prompt: str, concepts: str, fuzzy: bool) -> tuple[Prompt, list]:
    """A prompt with the places of the concepts in it, and its CONDITIONING.

    Raises:
        ValueError: the MODEL takes other features a token, or see `context_pieces` and `hooks.read_prompt`.
    """
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    width = conditioning[0][0].shape[2]
    if width != layout.texts.features:
        raise ValueError(
            f"this CLIP makes {width} features a token and the MODEL takes {layout.texts.features}: connect the "
            "model's own CLIP"
        )
    contexts = [layout.texts.known(model, *entry) for entry in conditioning]
    pieces = context_pieces(clip, prompt, conditioning[0][0].shape[1], [c.shape[1] for c in contexts[0]])
    return read_prompt(pieces, words_of(concepts), fuzzy, contexts, layout.texts.quoted), conditioning


def sigmas(model, start: float, end: float) -> tuple[float, float]:
    """(highest, lowest) noise level of a range that is given as fractions of the sampling."""
    if start >= end:
        raise ValueError(f"start {start:g} is not before end {end:g}: no step lies between them")
    sampling = model.get_model_object("model_sampling")
    return tuple(float(sampling.percent_to_sigma(percent)) for percent in (start, end))


def hooked(model, hook: Hook):
    """A clone of the MODEL with the hook's wrappers."""
    clone, kinds = model.clone(), comfy.patcher_extension.WrappersMP
    hook.patch(clone)
    clone.add_wrapper_with_key(kinds.OUTER_SAMPLE, "eraseanything", hook.outer_sample)
    clone.add_wrapper_with_key(kinds.APPLY_MODEL, "eraseanything", hook.apply_model)
    return clone


def _prompt_inputs(model: str, concepts: str) -> list:
    return [
        io.Model.Input("model", tooltip=f"{model}; LoRAs and other nodes may come before. It is left as it is."),
        io.Clip.Input("clip", tooltip="The text encoder that the prompt is encoded with."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="a photo of a heart",
            tooltip="The prompt to sample. Connect this node's conditioning to the sampler, or encode exactly this.",
        ),
        io.String.Input("concept", default="heart", tooltip=concepts),
    ]


def _range_inputs(blocks: str) -> list:
    fraction = {"min": 0.0, "max": 1.0, "step": 0.01}
    return [
        io.String.Input("blocks", default="dual", tooltip=blocks),
        io.Float.Input("start", default=0.0, tooltip="Fraction of the sampling from which it acts.", **fraction),
        io.Float.Input("end", default=1.0, tooltip="Fraction of the sampling up to which it acts.", **fraction),
        io.Boolean.Input(
            "fuzzy",
            default=False,
            tooltip="Also take misspelt words for the concept, and words with letters around it; the text says which.",
        ),
    ]


CHOICE = "dual, single or all; or some by number, as in: dual 0-5, single 3"


class AttentionProbe(io.ComfyNode):
    """Records where in the image a concept's tokens are attended to."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_AttentionProbe",
            display_name="Attention Probe",
            category=CATEGORY,
            description="Patches a model so that sampling records where a concept's tokens are attended to. Read it "
            "with Attention Maps, after the sampler.",
            search_aliases=["attention map", "heat map", "token attention", "daam"],
            inputs=[
                *_prompt_inputs("A Flux model", "The word or words to look for; several are separated by commas."),
                *_range_inputs(f"Blocks to record: {CHOICE}."),
                io.String.Input("heads", default="all", tooltip="Heads to record: all, or numbers such as 0, 3, 5."),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler; it gives the same image as without the probe."),
                io.Conditioning.Output(tooltip="The encoded prompt, for the sampler's positive input."),
                ATTENTION.Output(display_name="attention", tooltip="For Attention Maps."),
                io.String.Output(display_name="tokens", tooltip="The concepts' token positions, in words."),
            ],
        )

    @classmethod
    def execute(cls, model, clip, prompt, concept, blocks, start, end, fuzzy, heads) -> io.NodeOutput:
        if not is_flux(model):
            raise ValueError(f"the MODEL is of {family(model)}: AttentionProbe reads only Flux")
        chosen = Blocks(blocks)
        family_layout = layout(model)
        chosen.check(family_layout.tells.dual, family_layout.tells.single)
        found, conditioning = encoded(model, family_layout, clip, prompt, concept, fuzzy)
        hook = ProbeHook(found, sigmas(model, start, end), chosen, parse_heads(heads))
        return io.NodeOutput(hooked(model, hook), conditioning, hook, found.table(), ui=ui.PreviewText(found.table()))


class AttentionMaps(io.ComfyNode):
    """Shows what a probe recorded."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_AttentionMaps",
            display_name="Attention Maps",
            category=CATEGORY,
            description="Shows what Attention Probe recorded: heat maps, masks, and each token's share.",
            inputs=[
                ATTENTION.Input("attention", tooltip="From Attention Probe."),
                io.Latent.Input("samples", tooltip="What the sampler made with the probe's model."),
                io.Combo.Input(
                    "split",
                    options=list(VIEWS),
                    default="all",
                    tooltip="One map a concept (all), or one for every block, step or head.",
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
    def execute(cls, attention, samples, split, threshold, image=None) -> io.NodeOutput:
        recording = attention.recording(samples["samples"])
        images = [None] * len(samples["samples"]) if image is None else image.cpu()
        if len(images) != len(samples["samples"]):
            raise ValueError(f"{len(images)} images for {len(samples['samples'])} samples: decode these samples")
        size = [8 * side for side in samples["samples"].shape[-2:]] if image is None else image.shape[1:3]
        views, concepts = recording.grids(split), list(recording.spans)
        pictures = torch.stack(
            [
                heat_maps.heat_map(concept, {label: m[i, c] for label, m in views.items()}, shown)
                for i, shown in enumerate(images)
                for c, concept in enumerate(concepts)
            ]
        )
        whole = recording.grids()["all"].flatten(0, 1)
        masks = heat_maps.masks(heat_maps.resized(whole, *size), threshold)
        bars, table = heat_maps.bars(recording.named_shares())[None], recording.table()
        shown = ui.PreviewText(table).as_dict() | ui.PreviewImage(pictures, cls=cls).as_dict()
        return io.NodeOutput(pictures, masks, bars, table, ui=shown)


class AttentionErase(io.ComfyNode):
    """The paper's training-free eraser."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_AttentionErase",
            display_name="Attention Erase",
            category=CATEGORY,
            description="Scales the attention that a concept's tokens get, without training. It needs the word itself: "
            "misspellings and synonyms get past it.",
            search_aliases=["attention map erasure", "concept erasure", "delete attention"],
            inputs=[
                *_prompt_inputs(
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
                *_range_inputs(f"Blocks to change: {CHOICE}."),
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
        cls, model, clip, prompt, concept, strength, blocks, start, end, fuzzy, renormalise, queries
    ) -> io.NodeOutput:
        config = MapErasure(strength, renormalise, Blocks(blocks), queries == "image")
        family_layout = layout(model)
        config.blocks.check(family_layout.tells.dual, family_layout.tells.single)
        found, conditioning = encoded(model, family_layout, clip, prompt, concept, fuzzy)
        hook = EraseHook(found, sigmas(model, start, end), config, family_layout)
        return io.NodeOutput(hooked(model, hook), conditioning, found.table(), ui=ui.PreviewText(found.table()))


NODES = [AttentionProbe, AttentionMaps, AttentionErase]
