"""LoRAs of any family, by the names that the stock loader knows for it."""

from collections.abc import Mapping
from typing import Any

import comfy.lora
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.factors import Eraser, Factors, check_finite
from ..lora.key_styles import PREFIX, module_factors, read_eraser
from ..lora.keys import TRANSFORMER, UNET, WHOLE
from .families import is_flux_1

WEIGHT = ".weight"


def eraser_for(patcher: Any, tensors: Mapping[str, Tensor], header: Mapping[str, str], name: str) -> Eraser:
    """The factors of a LoRA for a MODEL.

    Args:
        patcher: the MODEL.
        tensors: of a file, in any of the styles that the stock loader takes for this family.
        header: its metadata.
        name: what to call the LoRA in errors.

    Raises:
        ValueError: a key that is no LoRA of a linear of the MODEL.
    """
    if is_flux_1(patcher.model):
        return read_eraser(tensors, header, name)
    return read_whole_linears(patcher.model, patcher.model.diffusion_model, tensors, header, name)


def read_whole_linears(
    base: Any, module: nn.Module, tensors: Mapping[str, Tensor], header: Mapping[str, str], name: str
) -> Eraser:
    """The factors of a LoRA, each on a whole linear of ComfyUI; see `eraser_for`.

    Args:
        base: ComfyUI's BaseModel.
        module: its diffusion model, or a view of it.
        tensors, header, name: see `eraser_for`.
    """
    stems = comfy.lora.model_lora_keys_unet(base, {})
    linears = dict(module.named_modules())
    eraser: Eraser = {}
    for stem, factors in module_factors(tensors, header, name).items():
        target = _known(stems, stem)
        if target is None:
            raise ValueError(f"{name}: {stem} is no linear of a MODEL of {type(base.model_config).__name__}")
        weight, rows = (target, None) if isinstance(target, str) else (target[0], target[1:])
        path = weight.removeprefix(WHOLE).removesuffix(WEIGHT)
        linear: Any = linears.get(path)
        if not hasattr(linear, "in_features"):
            raise ValueError(f"{name}: {stem} is a convolution or a norm, on which no LoRA is combined here")
        whole = _on_all_rows(factors, rows, linear.out_features, name)
        key = f"{WHOLE}{path}"
        eraser[key] = _both(eraser[key], whole) if key in eraser else whole
    check_finite(eraser, name)
    return eraser


def _known(stems: Mapping[str, Any], stem: str) -> Any:
    """What the stock loader has under a name, or under the same name in another writer's style; None is nothing.

    The styles differ in what they put before the name, and in underscores for its dots.
    """
    bare = PREFIX.sub("", stem)
    flat = bare.replace(".", "_")
    for name in (stem, f"{WHOLE}{bare}", f"{TRANSFORMER}{bare}", bare, f"{UNET}{flat}", f"lora_transformer_{flat}"):
        if name in stems:
            return stems[name]
    return None


def _on_all_rows(factors: Factors, rows: Any, count: int, name: str) -> Factors:
    """Factors of some rows of a linear as factors of all `count` of them.

    Args:
        factors: of the rows.
        rows: the stock loader's (axis, first, number) and perhaps a conversion; None is all of them.
    """
    if rows is None:
        return factors
    (axis, first, number), *conversion = rows
    if axis != 0 or conversion:
        raise ValueError(f"{name}: a linear has its rows in another order than ComfyUI, which cannot be combined")
    return Factors(F.pad(factors.up, (0, 0, first, count - first - number)), factors.down)


def _both(one: Factors, other: Factors) -> Factors:
    """Two changes of one linear as one."""
    return Factors(torch.cat((one.up, other.up), dim=1), torch.cat((one.down, other.down)))
