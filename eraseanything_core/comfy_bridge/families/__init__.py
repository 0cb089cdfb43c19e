"""Where the text stands among the keys of each attention, for the models of ComfyUI whose code makes it certain."""

from typing import Any

import comfy.model_base
from comfy.ldm.flux.model import Flux
from comfy.model_patcher import ModelPatcher
from torch import nn

from .table import LAYOUTS, Layout

NO_TEXT = "it takes no text"
REFUSED = {  # names of ComfyUI's classes, and why
    "Hunyuan3Dv2": NO_TEXT,
    "HunYuanDiTPlain": NO_TEXT,
    "LatentSeqMMFlowModel": NO_TEXT,
    "NaDiT": NO_TEXT,
    "StageB": "only the pooled text enters it",
}


def family(model: ModelPatcher) -> str:
    """What ComfyUI calls the family of a MODEL, such as SD15."""
    return type(model.model.model_config).__name__


def is_flux(model: ModelPatcher) -> bool:
    """Whether a MODEL runs ComfyUI's Flux."""
    return isinstance(diffusion_model(model), Flux)


def is_flux_1(base: Any) -> bool:
    """Whether ComfyUI's BaseModel is FLUX.1, and none of the models that share its class."""
    inner = base.diffusion_model
    # Chroma and FLUX.2 are subclasses; Ovis is of the same class and takes no pooled text.
    return type(base) is comfy.model_base.Flux and isinstance(inner, Flux) and inner.params.vec_in_dim is not None


def diffusion_model(model: ModelPatcher) -> nn.Module:
    """The diffusion model of a MODEL, also where a node has put torch.compile's wrapper in its place."""
    inner = model.get_model_object("diffusion_model")
    return getattr(inner, "_orig_mod", inner)


def class_name(inner: nn.Module) -> str:
    """The class of a diffusion model as the tables of families have it."""
    return f"{type(inner).__module__}.{type(inner).__qualname__}".removeprefix("comfy.ldm.")


def layout(model: ModelPatcher) -> Layout:
    """How a MODEL's attention is laid out.

    Raises:
        ValueError: its class is not in the table, or it takes no text.
    """
    inner = diffusion_model(model)
    name = class_name(inner)
    if name in LAYOUTS:
        attention = LAYOUTS[name](inner)
        # A U-Net without cross-attention is known but has no features of text, see `cross_families.unet`.
        if attention.texts.features:
            return attention
        reason = "it has no cross-attention to a text"
    else:
        reason = REFUSED.get(type(inner).__name__, f"its class {name} is not known")
    raise ValueError(f"AttentionErase cannot erase in a MODEL of {family(model)}: {reason}; its help says what works")
