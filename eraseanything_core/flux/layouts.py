"""Where the text stands among the keys of each attention, for the models of ComfyUI whose code makes it certain."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from comfy.ldm.aura.mmdit import MMDiT as AuraMMDiT
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.chroma_radiance.model import ChromaRadiance
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanModel
from torch import Tensor

from ..attention import Place, Placer


@dataclass(frozen=True)
class Joint:
    """Attention over one sequence of text and then image.

    Attributes:
        dual, single: number of blocks of each kind.
        features: of a text token as the model takes it.
        patch: latent pixels a side of an image token.
        before: tokens of the model's own in front of the text.
        multiple: text and image are each padded to a multiple of it.
        tells: whether the model tells its attention in which block it is; if not, patches of the blocks do.
    """

    dual: int
    single: int
    features: int
    patch: int
    before: int = 0
    multiple: int = 1
    tells: bool = True

    def begin(self, options: dict, x: Tensor, context: Tensor) -> tuple[dict, Placer]:
        """The transformer options of a forward of latents x [b, c, ..., h, w] and context [b, text, features]."""
        sides = (-(-side // self.patch) for side in x.shape[-2:])
        image, text = (
            math.ceil(count / self.multiple) * self.multiple
            for count in (math.prod((*x.shape[2:-2], *sides)), context.shape[1])
        )
        first_image = self.before + text

        def place(rows: int, keys: int, options: dict) -> Place | None:
            if "block_index" not in options or keys == image:
                return None  # what refines text and image alone, and the image's own attention in SD 3.5
            count = first_image + image + sum(options.get("reference_image_num_tokens", ()))
            _expect((rows, keys), (len(context), count))
            return Place((options["block_type"], options["block_index"]), self.before, first_image)

        return options if self.tells else self.telling(options), place

    def telling(self, options: dict) -> dict:
        replaced = options.get("patches_replace", {})
        blocks = dict(replaced.get("dit", {}))
        for kind, count in (("double", self.dual), ("single", self.single)):
            for i in range(count):
                name = (f"{kind}_block", i)
                blocks[name] = partial(_told, {"block_type": kind, "block_index": i}, blocks.get(name))
        return {**options, "patches_replace": {**replaced, "dit": blocks}}


def _told(place: dict, before: Callable | None, inputs: dict, original: dict) -> dict:
    inputs = {**inputs, "transformer_options": {**inputs["transformer_options"], **place}}
    return before(inputs, original) if before else original["original_block"](inputs)


class Cross:
    """Cross-attention of a U-Net, whose keys are the text alone; its blocks count as dual, in the order they run."""

    def __init__(self, unet: UNetModel):
        found = []
        for part in ("input", "output"):
            for i, layers in enumerate(getattr(unet, f"{part}_blocks")):
                found += [(part, i, depth) for layer in layers for depth in _depths(layer)]
            if part == "input":
                found += [("middle", 0, depth) for layer in unet.middle_block or () for depth in _depths(layer)]
        self.numbers = {block: i for i, block in enumerate(found)}
        self.dual, self.single = len(found), 0
        inner = next((module for module in unet.modules() if _depths(module)), None)
        self.features = inner.transformer_blocks[0].attn2.to_k.in_features if inner else 0

    def begin(self, options: dict, x: Tensor, context: Tensor) -> tuple[dict, Placer]:
        """See `Joint.begin`; a patch before each cross-attention tells it from the image's own attention."""
        coming = set()

        def before(queries, keys, values, extra):
            coming.add((*extra["block"], extra["block_index"]))
            return queries, keys, values

        def after(output, extra):
            if coming:
                raise ValueError(
                    f"block {' '.join(map(str, extra['block']))} computes its cross-attention past ComfyUI's own, as "
                    "image prompt adapters do: use AttentionErase without them"
                )
            return output

        def place(rows: int, keys: int, options: dict) -> Place | None:
            block = (*options["block"], options["block_index"])
            if block not in coming:
                return None
            coming.remove(block)
            _expect((rows, keys), tuple(context.shape[:2]))
            return Place(("double", self.numbers[block]), 0, 0)

        patches = dict(options.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), before]
        patches["attn2_output_patch"] = [after, *patches.get("attn2_output_patch", ())]
        return {**options, "patches": patches}, place


@dataclass(frozen=True)
class Lengths:
    """Cross-attention whose keys are the text alone, told from the image's own by their number.

    Attributes: see `Joint`.
    """

    dual: int
    features: int
    single: int = 0

    def begin(self, options: dict, x: Tensor, context: Tensor) -> tuple[dict, Placer]:
        """See `Joint.begin`."""
        met = set()

        def place(rows: int, keys: int, options: dict) -> Place | None:
            if keys != context.shape[1]:
                return None
            block = (options["block_type"], options["block_index"])
            if block in met:
                raise ValueError(f"text and image both have {keys} tokens and cannot be told apart: take another size")
            met.add(block)
            _expect((rows, keys), tuple(context.shape[:2]))
            return Place(block, 0, 0)

        return options, place


def _depths(layer) -> range:
    return range(len(layer.transformer_blocks)) if type(layer) is SpatialTransformer else range(0)


def _expect(found: tuple[int, int], expected: tuple[int, int]):
    if found != expected:
        raise ValueError(
            f"the attention has {found[1]} keys in {found[0]} rows where {expected[1]} in {expected[0]} were expected: "
            "another node adds tokens or rows, and where the text stands is not certain; use AttentionErase without it"
        )


def _flux(model) -> Joint:
    return Joint(len(model.double_blocks), len(model.single_blocks), model.txt_in.in_features, model.patch_size)


def _qwen_image(model) -> Joint:
    return Joint(len(model.transformer_blocks), 0, model.txt_in.in_features, model.patch_size)


def _lumina(model) -> Joint:
    features, multiple = model.cap_embedder[1].in_features, model.pad_tokens_multiple or 1
    return Joint(len(model.layers), 0, features, model.patch_size, multiple=multiple)


def _sd3(model) -> Joint:
    features, before = model.context_embedder.in_features, model.register_length
    return Joint(len(model.joint_blocks), 0, features, model.patch_size, before, tells=False)


def _aura(model) -> Joint:
    features, before = model.cond_seq_linear.in_features, model.register_tokens.shape[1]
    return Joint(len(model.double_layers), len(model.single_layers), features, model.patch_size, before, tells=False)


def _wan(model) -> Lengths:
    return Lengths(len(model.blocks), model.text_embedding[0].in_features)


LAYOUTS = {
    Flux: _flux,
    Chroma: _flux,
    ChromaRadiance: _flux,
    QwenImageTransformer2DModel: _qwen_image,
    NextDiT: _lumina,
    OpenAISignatureMMDITWrapper: _sd3,
    AuraMMDiT: _aura,
    WanModel: _wan,
    UNetModel: Cross,
}
KNOWN = "Flux, Chroma, Qwen-Image, Lumina 2, Z-Image, AuraFlow, Wan, or Stable Diffusion 1, 2, XL and 3"


def family(model) -> str:
    """What ComfyUI calls the family of a MODEL, such as SD15."""
    return type(model.model.model_config).__name__


def layout(model) -> Joint | Cross | Lengths:
    """How a MODEL's attention is laid out.

    Raises:
        ValueError: it is of a class whose text cannot be told apart.
    """
    inner = model.get_model_object("diffusion_model")
    if type(inner) not in LAYOUTS:
        raise ValueError(f"where the text stands in a MODEL of {family(model)} is not certain: use {KNOWN}")
    found = LAYOUTS[type(inner)](inner)
    if not found.dual:
        raise ValueError(f"a MODEL of {family(model)} has no cross-attention to a text: use {KNOWN}")
    return found
