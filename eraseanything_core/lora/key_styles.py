"""LoRAs in the key styles that Flux users meet, read into one form: factors under diffusers' names.

| Writer | Key |
| --- | --- |
| kohya | `lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight` |
| OneTrainer | `lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight` |
| LyCORIS | `lycoris_transformer_blocks_0_attn_to_q.lora_down.weight` |
| diffusers, ai-toolkit | `transformer.transformer_blocks.0.attn.to_q.lora_A.weight` |
| peft | `base_model.model.transformer_blocks.0.attn.to_q.lora_A.default.weight` |
| ComfyUI | `diffusion_model.double_blocks.0.txt_attn.qkv.lora_up.weight` |

Weights that ComfyUI fuses are cut into diffusers' linears. That changes no value: the rows of B are dealt out, and A is
the same for all of them.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..quoting import SHORT, escaped, quoted
from .factors import Eraser, Factors, check_finite
from .headers import header_value
from .keys import LINEARS, SCALE_FIRST, WHOLE

# What a style puts before a module's name. LyCORIS may have `transformer_` too; that of `transformer_blocks` stays.
PREFIX = re.compile(
    r"^(transformer\.|diffusion_model\.|base_model\.model\.|lora_unet_|lora_transformer_|lycoris_(transformer_(?!b))?)"
)
PART = re.compile(r"^(?P<module>.+?)\.(?P<side>lora_A|lora_B|lora_down|lora_up|alpha)(\.default)?(\.weight)?$")
SIDES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "alpha": "alpha"}

# What stands in the keys of other kinds of adapters, and what those are; `$` is the end of the key.
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_mid": "a Tucker LoRA",
    # A full control LoRA also changes biases, norms and the number of input channels.
    "lora_B.bias$": "a control LoRA",
    "_norm.scale$": "a control LoRA",
    "reshape_weight": "a control LoRA",
    ".diff$": "a full weight",
}
# What a file may hold besides the transformer's LoRA. It is left out, since no model here takes it.
LEFT_OUT = {
    "lora_te": "the text encoder",
    "text_encoder": "the text encoder",
    "clip_l.": "the text encoder",
    "t5xxl.": "the text encoder",
    ".diff_b$": "full biases",
    "bundle_emb": "an embedding",
    "emb_params": "an embedding",
    "string_to_param": "an embedding",
}
LARGEST_ALPHA = 1e9  # and rank that are believed of metadata
FLAT_NUMBER = re.compile(r"(?<=blocks_)\d+(?=_)")


def _flat(name: str) -> str:
    """A name with underscores for dots, as kohya has it; dotted names are brought to it too."""
    return name.replace(".", "_")


def _linears_by_flat_name() -> dict[str, tuple[str, ...]]:
    """Every flat name of a linear, diffusers' and ComfyUI's, to diffusers' linears in the order of their rows."""
    linears = {}
    for linear in LINEARS:
        fused = [other for other in LINEARS if other.module == linear.module]
        fused.sort(key=lambda other: other.position)
        linears[_flat(linear.module)] = tuple(other.key for other in fused)
        linears[_flat(linear.key)] = (linear.key,)
    return linears


LINEARS_BY_FLAT_NAME = _linears_by_flat_name()


def read_eraser(tensors: Mapping[str, Tensor], header: Mapping[str, str], name: str) -> Eraser:
    """The factors of a LoRA, float32, with alpha / rank in `up`.

    Args:
        tensors: of a file, in any of the styles above.
        header: its metadata; newer diffusers and peft keep alpha there, in `lora_adapter_metadata`.
        name: what to call the LoRA in errors.

    Raises:
        ValueError: a key that is no LoRA of a Flux.1 linear, or a number that is not finite, which the error names.
    """
    eraser: Eraser = {}
    for module, factors in module_factors(tensors, header, name).items():
        for key, part in _cut(module, factors, name).items():
            # Two styles in one file: whether both are meant, or one is a copy, nobody can know.
            if key in eraser:
                raise ValueError(f"{name}: {module} changes {key} a second time")
            eraser[key] = part
    check_finite(eraser, name)
    return eraser


def module_factors(tensors: Mapping[str, Tensor], header: Mapping[str, str], name: str) -> dict[str, Factors]:
    """The factors of a LoRA, float32, with alpha / rank in `up`, by the modules' names as they stand in the file.

    Args:
        tensors, header, name: see `read_eraser`.

    Raises:
        ValueError: a key that is no LoRA, or factors that have no product.
    """
    # A module's A, B and alpha may stand anywhere in the file.
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if _left_out_part(key):
            continue
        module, side = _module_and_side(key, name)
        sides = modules.setdefault(module, {})
        if side in sides:
            raise ValueError(f"{name}: the key {escaped(key, SHORT)} is there a second time in another spelling")
        sides[side] = _matrix(tensor)
    if not modules:
        raise ValueError(f"{name} holds no LoRA of the transformer{_only_parts(tensors)}: choose another file")
    factors = {}
    for module, sides in modules.items():
        if "up" not in sides or "down" not in sides:
            raise ValueError(f"{name}: {module} has only {', '.join(sides)}: the file is not whole")
        _check_factors(module, sides["up"], sides["down"], name)
        factors[module] = _scaled(sides, header, name)
    return factors


def left_out_note(tensors: Mapping[str, Tensor], name: str) -> str:
    """A sentence on the keys of a file that `read_eraser` leaves out; empty where it takes all of them."""
    parts = [part for key in tensors if (part := _left_out_part(key))]
    if not parts:
        return ""
    kinds = " and ".join(dict.fromkeys(parts))
    return f"{name}: only its transformer's part is used; tensors of {kinds} are left out ({len(parts)})"


def _left_out_part(key: str) -> str:
    """Which part of a model besides the transformer a key is of; empty for the transformer's own."""
    for mark, part in LEFT_OUT.items():
        if mark in f"{key}$":
            return part
    return ""


def _only_parts(tensors: Mapping[str, Tensor]) -> str:
    """Which other parts a file without a transformer's LoRA has, for the error."""
    parts = dict.fromkeys(_left_out_part(key) for key in tensors)
    return f", only keys of {' and '.join(parts)}" if parts else ""


def _module_and_side(key: str, name: str) -> tuple[str, str]:
    """The module that a file key belongs to, and which part of its LoRA the key is: `up`, `down` or `alpha`."""
    problem = f"{name}: the key {escaped(key, SHORT)}"
    # Before the pattern: some of the other kinds have `lora_A` in their keys as well.
    for mark, kind in OTHER_KINDS.items():
        if mark in f"{key}$":
            raise ValueError(f"{problem} is {kind}, which cannot be combined: choose another file")
    match = PART.match(key)
    if match is None:
        raise ValueError(f"{problem} is no LoRA, which cannot be combined: choose another file")
    return match["module"], SIDES[match["side"]]


def _matrix(tensor: Tensor) -> Tensor:
    """A factor as a matrix: some tools write a linear's as that of a convolution of one pixel, [rows, rank, 1, 1]."""
    return tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _check_factors(module: str, up: Tensor, down: Tensor, name: str) -> None:
    """Raises ValueError when up [rows, rank] and down [rank, columns] are no numbers, or have no product."""
    for factor in (up, down):
        # Whole numbers are codes of a quantised LoRA, and what they stand for is not in the file.
        if not factor.is_floating_point():
            problem = f"{name}: {module} has factors of {factor.dtype}, which cannot be read"
            raise ValueError(f"{problem}: choose another file")
    matrices = up.ndim == 2 and down.ndim == 2
    if not matrices or up.shape[1] != down.shape[0] or 0 in (*up.shape, *down.shape):
        raise ValueError(_misfit(module, up, down, name))


def _misfit(module: str, up: Tensor, down: Tensor, name: str) -> str:
    return f"{name}: {module} has factors of shapes {tuple(up.shape)} and {tuple(down.shape)}, which do not fit"


def _scaled(sides: Mapping[str, Tensor], header: Mapping[str, str], name: str) -> Factors:
    # float32 whatever the file has: torch computes nothing in the 8-bit types, and bf16 rounds small changes away.
    up = sides["up"].detach().float()
    down = sides["down"].detach().float()
    rank = down.shape[0]
    if "alpha" not in sides:
        alpha = _peft_alpha(header, rank, name)
    elif sides["alpha"].numel() == 1:
        alpha = float(sides["alpha"])
    else:
        raise ValueError(f"{name}: an alpha has {sides['alpha'].numel()} numbers and not one: the file is damaged")
    return Factors(up * (alpha / rank), down)


def _peft_alpha(header: Mapping[str, str], rank: int, name: str) -> float:
    """alpha from peft's own metadata. A file without any has the scale 1, as ComfyUI reads it."""
    metadata = header_value(header, "lora_adapter_metadata", {}, name)
    settings = {key.rpartition(".")[2]: value for key, value in metadata.items()}
    if any(settings.get(kind) for kind in ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern")):
        raise ValueError(f"{name} has DoRA, rsLoRA or patterns of alpha or rank in its metadata: merge it in diffusers")
    # Either may be missing; a LoRA without them is meant as it is.
    alpha = settings.get("lora_alpha", rank)
    peft_rank = settings.get("r") or rank
    for value in (alpha, peft_rank):
        # Whole numbers of JSON have no end, and a float has.
        if not isinstance(value, (int, float)) or not abs(value) <= LARGEST_ALPHA:
            raise ValueError(
                f"{name} has {quoted(str(value))} for lora_alpha or r in its metadata: write numbers there"
            )
    return float(alpha * rank / peft_rank)


def _cut(module: str, factors: Factors, name: str) -> Eraser:
    """One module's factors as those of diffusers' linears."""
    flat = _flat(PREFIX.sub("", module))
    keys = LINEARS_BY_FLAT_NAME.get(FLAT_NUMBER.sub("{}", flat, count=1))
    if keys is None:
        raise ValueError(f"{name}: {module} is no linear of Flux.1 that a LoRA can be combined on")
    up, down = factors
    width = down.shape[1]
    # Every slice of a fused linear has as many rows as the linear is wide, but for the last one, which has the rest.
    sizes = [width] * (len(keys) - 1)
    sizes.append(len(up) - sum(sizes))
    if sizes[-1] <= 0:
        raise ValueError(_misfit(module, up, down, name))
    if flat == _flat(SCALE_FIRST):
        up = _swap_halves(up)
    number = FLAT_NUMBER.search(flat)
    eraser = {}
    for key, part in zip(keys, up.split(sizes), strict=True):
        eraser[key.format(number[0]) if number else key] = Factors(part, down)
    return eraser


def _swap_halves(up: Tensor) -> Tensor:
    """Both halves of the rows in the other order; see `keys.SCALE_FIRST`."""
    return up.roll(len(up) // 2, 0)


def eraser_tensors(eraser: Eraser, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file that the stock LoraLoader and diffusers read; the scale is 1, so there is no alpha."""
    tensors = {}
    for key, (up, down) in eraser.items():
        rows = _swap_halves(up) if key == SCALE_FIRST else up
        rows, down = _fitting(rows, down, dtype)
        stem = key if key.startswith(WHOLE) else f"transformer.{key}"
        tensors[f"{stem}.lora_A.weight"] = down.to(dtype).contiguous()
        tensors[f"{stem}.lora_B.weight"] = rows.to(dtype).contiguous()
    return tensors


def _fitting(up: Tensor, down: Tensor, dtype: torch.dtype) -> Factors:
    """The factors, of like size where the dtype would lose one of them: a weight of 0.0001 leaves little of float16."""
    if _is_kept(up, dtype) and _is_kept(down, dtype):
        return Factors(up, down)
    # A power of two, which changes no digit. The logarithms are taken apart: a quotient could overflow.
    exponent = float((_largest(down).log2() - _largest(up).log2()) / 2)
    if not math.isfinite(exponent):
        return Factors(torch.zeros_like(up), torch.zeros_like(down))  # one of them is 0, and so is the change
    return Factors(torch.ldexp(up, torch.tensor(round(exponent))), torch.ldexp(down, torch.tensor(-round(exponent))))


def _largest(factor: Tensor) -> Tensor:
    return factor.abs().max()


def _is_kept(factor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a dtype holds a factor to its precision; below its range it rounds to 0, and above it to infinity."""
    # Of the largest entry and not of a norm, whose squares leave float32's own range.
    error = _largest(factor.to(dtype).float() - factor.float())
    return bool(error <= torch.finfo(dtype).eps * _largest(factor.float()))


def widest_dtype(loras: Sequence[Mapping[str, Tensor]]) -> torch.dtype:
    """The dtype that holds every value of these LoRAs, bfloat16 at least for the 8-bit types.

    A combined LoRA is written in it: sums of 8-bit factors are no 8-bit numbers, and torch promotes none of them.
    """
    widest: torch.dtype | None = None
    for lora in loras:
        for key, tensor in lora.items():
            if _left_out_part(key):
                continue
            eight_bit = tensor.is_floating_point() and tensor.itemsize == 1
            dtype = torch.bfloat16 if eight_bit else tensor.dtype
            widest = dtype if widest is None else torch.promote_types(widest, dtype)
    if widest is None:
        raise ValueError("there is no LoRA to take the dtype of")
    return widest
