"""The slices of a loaded model's linears that a role names, and what a LoRA's file calls them."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import comfy.lora
from torch import nn

from ...lora.keys import TRANSFORMER, UNET, WHOLE, LinearSlice
from ...lora.roles import ROLES, Role, Tokens, role_name
from . import class_name
from .linears import TRAINED, Linears
from .unconditional import UNCONDITIONAL

WEIGHT = "diffusion_model.{}.weight"  # of a linear, in ComfyUI's BaseModel
# ComfyUI calls a U-Net's blocks input, middle and output, and knows both of their names in kohya's style.
UNET_BLOCKS = re.compile(f"{UNET}(down|mid|up)_block")


class Rows(NamedTuple):
    """Rows of a linear and what they make: `q`, `k` or `v`; empty is neither."""

    part: str
    start: int
    size: int


def role_slices(base: Any, module: nn.Module, targets: str | tuple[str, ...]) -> list[LinearSlice]:
    """The slices of a model that a role names, in the order of the family's table and of the blocks.

    Args:
        base: ComfyUI's BaseModel, for the names in a file.
        module: the diffusion model.
        targets: the name of a role; a tuple of FLUX.1's targets is none.

    Raises:
        ValueError: the family does not have the role; the message says which it has.
    """
    name = role_name(targets if isinstance(targets, str) else "+".join(targets))
    found = _found(module, ROLES[name])
    if not found:
        have = [other for other, role in ROLES.items() if _found(module, role)]
        raise ValueError(
            f"a MODEL of {type(base.model_config).__name__} has no linears for {name!r}: take one of {'; '.join(have)}"
        )
    names = file_names(base)
    return [_named(path, linear, rows, names) for path, linear, rows in found]


def embedders(module: nn.Module) -> list[str]:
    """The paths of the linears that bring a text into the model."""
    return _paths(module, "embedder")


def text_linears(module: nn.Module) -> list[str]:
    """The paths of the linears of the text's own stream; none where it has none."""
    return _paths(module, "text")


def _paths(module: nn.Module, tokens: Tokens) -> list[str]:
    entries = [entry for entry in TRAINED.get(class_name(module), ()) if entry.tokens == tokens]
    return [path for entry in entries for path, _ in linears_at(module, entry.path)]


def _found(module: nn.Module, role: Role) -> list[tuple[str, nn.Module, Rows]]:
    """The rows of linears that a role names: of the first kind of tokens that is there, or of all where it says so."""
    name = class_name(module)
    table = (*TRAINED[name], *UNCONDITIONAL.get(name, ()))
    chosen: list[tuple[str, nn.Module, Rows]] = []
    for tokens in role.tokens:
        for entry in table:
            if entry.tokens == tokens:
                chosen += _rows_of(module, entry, role.parts)
        if chosen and not role.every:
            break
    return chosen


def _rows_of(module: nn.Module, entry: Linears, parts: str) -> Iterator[tuple[str, nn.Module, Rows]]:
    for path, linear in linears_at(module, entry.path):
        for rows in _divided(linear, entry.holds):
            # An embedder is neither q, k nor v, and is meant as a whole.
            if not rows.part or rows.part in parts:
                yield path, linear, rows


def linears_at(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The linears of a model whose paths fit; `*` stands for a number or a part of a name."""
    pattern = re.compile(re.escape(path).replace(r"\*", r"[^.]+"))
    return [(name, linear) for name, linear in module.named_modules() if pattern.fullmatch(name)]


def _divided(linear: Any, holds: str) -> list[Rows]:
    """The rows of a linear by what they make; see `Linears.holds`."""
    rows, columns = linear.out_features, linear.in_features
    if holds == "grouped qkv":
        # Fewer heads of k and v than of q, which each serve several.
        shared = (rows - columns) // 2
        return [Rows("q", 0, columns), Rows("k", columns, shared), Rows("v", columns + shared, shared)]
    if holds == "+mlp":
        return [Rows("", 3 * columns, rows - 3 * columns)]
    if holds == "qkv+":
        return [Rows(part, i * columns, columns) for i, part in enumerate("qkv")]
    if len(holds) > 1:
        share = rows // len(holds)
        return [Rows(part, i * share, share) for i, part in enumerate(holds)]
    return [Rows(holds, 0, rows)]


def file_names(base: Any) -> dict[tuple[str, int, int], str]:
    """diffusers' names that the stock loader knows, by the weight, the first row and the number of rows (0: all)."""
    names: dict[tuple[str, int, int], str] = {}
    for name, target in comfy.lora.model_lora_keys_unet(base, {}).items():
        if not name.startswith(TRANSFORMER) and not UNET_BLOCKS.match(name):
            continue
        weight, rows, *conversion = (target, None) if isinstance(target, str) else target
        axis, start, count = rows or (0, 0, 0)
        # No slice here is of columns, or has its rows in another order than the file.
        if axis != 0 or conversion:
            continue
        names.setdefault((weight, start, count), name.removeprefix(TRANSFORMER))
    return names


def _named(path: str, linear: Any, rows: Rows, names: dict[tuple[str, int, int], str]) -> LinearSlice:
    weight = WEIGHT.format(path)
    whole = rows.size == linear.out_features
    known = names.get((weight, 0, 0)) if whole else names.get((weight, rows.start, rows.size))
    if known is not None:
        return LinearSlice(known, path, rows.start, rows.size, linear.in_features)
    # The stock loader takes any linear under ComfyUI's own name, as a whole.
    return LinearSlice(f"{WHOLE}{path}", path, rows.start, rows.size, linear.in_features, linear.out_features)
