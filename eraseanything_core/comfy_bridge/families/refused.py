"""Which models are not trained, and why."""

from typing import Any

import comfy.model_sampling
from comfy.ldm.chroma_radiance.layers import NerfEmbedder
from comfy.ldm.flux.model import Flux
from torch import nn

from . import NO_TEXT, REFUSED, class_name
from .linears import TRAINED

SOUND = "it makes sound, and what is trained here is pictures"
REASONS = {  # by the class's name in comfy.ldm
    "ace.ace_step15.AceStepConditionGenerationModel": SOUND,
    "ace.model.ACEStepTransformer2DModel": SOUND,
    "audio.dit.AudioDiffusionTransformer": SOUND,
    "lightricks.av_model.LTXAVModel": "it makes sound together with its video",
    "minimax.model.MiniMaxH3Model": "it makes sound together with its video",
}

# They read one picture and predict another.
OTHER_PICTURES = (comfy.model_sampling.IMG_TO_IMG, comfy.model_sampling.IMG_TO_IMG_FLOW)


def untrainable(base: Any) -> str:
    """Why a model cannot be trained; empty where it can.

    Args:
        base: ComfyUI's BaseModel.
    """
    inner = getattr(base, "diffusion_model", base)
    name = class_name(inner)
    if name not in TRAINED:
        return REASONS.get(name) or REFUSED.get(type(inner).__name__) or f"its class {name} is not known"
    if isinstance(base.model_sampling, OTHER_PICTURES):
        return "it turns a picture into another one"
    if isinstance(inner, Flux) and inner.in_channels != inner.out_channels:
        return "it paints from an image (Fill, Canny, Depth): load a text-to-image one"
    if any(map(_embeds_in_few_bits, inner.modules())):
        return "ComfyUI computes where its pixels are in the weights' own type, which fails in 8 bits: load it as bf16"
    if name.endswith("UNetModel") and not any(hasattr(module, "attn2") for module in inner.modules()):
        return NO_TEXT
    return ""


def _embeds_in_few_bits(module: nn.Module) -> bool:
    # It makes positions by `torch.linspace` in this type, of which there is none in 8 bits; quantised files keep bf16.
    return isinstance(module, NerfEmbedder) and module.dtype is not None and module.dtype.itemsize < 2
