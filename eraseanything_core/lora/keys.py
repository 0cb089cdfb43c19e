"""LoRAs in the key styles that Flux users meet, read into one form: factors under diffusers' names.

kohya (`lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight`), OneTrainer (`lora_transformer_...`), LyCORIS
(`lycoris_...`), diffusers and ai-toolkit (`transformer.transformer_blocks.0.attn.to_q.lora_A.weight`), peft
(`base_model.model....lora_A.default.weight`) and ComfyUI (`diffusion_model....lora_up.weight`). Weights that ComfyUI
fuses are cut into diffusers' slices, which changes no value: the rows of B are dealt out, A is shared.
"""

import json
import re
from typing import NamedTuple

import torch
from torch import Tensor

# ComfyUI's linear -> the linears of diffusers that it holds, in the order of its rows.
DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
OUTSIDE = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SWAPPED = "norm_out.linear"  # diffusers has its scale before its shift, ComfyUI and an `Eraser` after it
BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}

PREFIX = re.compile(
    r"^(transformer\.|diffusion_model\.|base_model\.model\.|lora_unet_|lora_transformer_|lycoris_(transformer_(?!b))?)"
)
PART = re.compile(r"^(?P<module>.+?)\.(?P<side>lora_A|lora_B|lora_down|lora_up|alpha)(\.default)?(\.weight)?$")
SIDES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "alpha": "alpha"}
OTHERS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT",
    "lora_mid": "a Tucker LoRA", ".diff_b$": "a full bias", ".diff$": "a full weight",
    "lora_te": "of the text encoder", "text_encoder": "of the text encoder",
}  # fmt: skip


class Factors(NamedTuple):
    """One linear's change of weight, up @ down."""

    up: Tensor  # rows rank
    down: Tensor  # rank columns


Eraser = dict[str, Factors]  # by the linear's name in diffusers' transformer, rows as ComfyUI has them


class Place(NamedTuple):
    """Where a linear of diffusers lies in ComfyUI's Flux."""

    module: str
    index: int  # among the slices of a fused linear, each as high as the linear is wide, but for the last


def _places() -> dict[str, Place]:
    """Diffusers' name, with `{}` for the block's number, to its place."""
    found = {}
    for blocks, table in (("double_blocks", DOUBLE), ("single_blocks", SINGLE)):
        for ours, names in table.items():
            for i, name in enumerate(names):
                found[f"{BLOCKS[blocks]}.{{}}.{name}"] = Place(f"{blocks}.{{}}.{ours}", i)
    return found | {name: Place(ours, 0) for ours, (name,) in OUTSIDE.items()}


PLACES = _places()
_FLAT = {name.replace(".", "_"): (name,) for name in PLACES} | {
    place.module.replace(".", "_"): tuple(n for n, p in PLACES.items() if p.module == place.module)
    for place in PLACES.values()
}


def place(key: str, columns: int) -> tuple[str, int]:
    """The ComfyUI module that holds a linear of diffusers, and the first of its rows there."""
    module, index = PLACES[re.sub(r"(?<=\.)\d+(?=\.)", "{}", key, count=1) if "blocks." in key else key]
    number = re.search(r"blocks\.(\d+)\.", key)
    return module.format(number[1] if number else ""), index * columns


def read(tensors: dict[str, Tensor], header: dict[str, str], name: str) -> Eraser:
    """The factors of a LoRA, float32, with alpha / rank in `up`.

    Args:
        tensors: a file's, in any of the styles above.
        header: its metadata; `lora_adapter_metadata` is where newer diffusers and peft keep alpha.
        name: what to call it in errors.

    Raises:
        ValueError: a key that is no LoRA of a Flux.1 linear, by name.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = PART.match(key)
        kind = next((kind for mark, kind in OTHERS.items() if mark in f"{key}$"), None)
        if kind or not match:
            raise ValueError(f"{name}: the key {key} is {kind or 'no LoRA'}, which cannot be combined with other LoRAs")
        parts.setdefault(match["module"], {})[SIDES[match["side"]]] = tensor
    if not parts:
        raise ValueError(f"{name} holds no LoRA")
    eraser: Eraser = {}
    for module, sides in parts.items():
        if not {"up", "down"} <= set(sides):
            raise ValueError(f"{name}: {module} has only {', '.join(sides)}: the file is not whole")
        for key, factors in _cut(module, _scaled(sides, header, name), name).items():
            if key in eraser:
                raise ValueError(f"{name}: {module} changes {key} a second time")
            eraser[key] = factors
    return eraser


def _scaled(sides: dict[str, Tensor], header: dict[str, str], name: str) -> Factors:
    up, down = (sides[side].detach().float() for side in ("up", "down"))
    rank = down.shape[0]
    alpha = float(sides["alpha"]) if "alpha" in sides else _peft_alpha(header, rank, name)
    return Factors(up * (alpha / rank), down)


def _peft_alpha(header: dict[str, str], rank: int, name: str) -> float:
    """alpha as peft's own metadata has it; ComfyUI ignores it, so without it the scale is 1."""
    told = {k.rpartition(".")[2]: v for k, v in json.loads(header.get("lora_adapter_metadata", "{}")).items()}
    if told.get("use_dora") or told.get("use_rslora") or told.get("alpha_pattern") or told.get("rank_pattern"):
        raise ValueError(f"{name} has DoRA, rsLoRA or patterns of alpha or rank in its metadata: merge it in diffusers")
    return told.get("lora_alpha", rank) * rank / told.get("r", rank)


def _cut(module: str, factors: Factors, name: str) -> Eraser:
    """One linear's factors as those of diffusers' linears."""
    flat = PREFIX.sub("", module).replace(".", "_")
    number = re.search(r"(?<=blocks_)\d+(?=_)", flat)
    names = _FLAT.get(re.sub(r"(?<=blocks_)\d+(?=_)", "{}", flat, count=1))
    if names is None:
        raise ValueError(f"{name}: {module} is no linear of Flux.1 that a LoRA can be combined on")
    rows, width = factors.up.shape[0], factors.down.shape[1]
    sizes = [width] * (len(names) - 1) + [rows - width * (len(names) - 1)]
    if factors.up.ndim != 2 or factors.down.ndim != 2 or factors.up.shape[1] != len(factors.down) or sizes[-1] <= 0:
        shapes = f"{tuple(factors.up.shape)} and {tuple(factors.down.shape)}"
        raise ValueError(f"{name}: {module} has factors of shapes {shapes}, which do not fit")
    keys = [n.format(number[0] if number else "") for n in names]
    up = _swapped(factors.up) if flat == SWAPPED.replace(".", "_") else factors.up
    return {key: Factors(part, factors.down) for key, part in zip(keys, up.split(sizes), strict=True)}


def _swapped(up: Tensor) -> Tensor:
    """Both halves of the rows in the other order."""
    return up.roll(len(up) // 2, 0)


def write(eraser: Eraser, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file that the stock LoraLoader and diffusers read; the scale is 1."""
    found = {}
    for key, (up, down) in eraser.items():
        found[f"transformer.{key}.lora_A.weight"] = down.to(dtype).contiguous()
        found[f"transformer.{key}.lora_B.weight"] = (_swapped(up) if key == SWAPPED else up).to(dtype).contiguous()
    return found


def check_fit(erasers: list[Eraser], names: list[str]):
    """Raises ValueError when two LoRAs are of models of different size."""
    seen: dict[str, tuple[tuple, str]] = {}
    for eraser, name in zip(erasers, names, strict=True):
        for key, (up, down) in eraser.items():
            shape = (up.shape[0], down.shape[1])
            other, whose = seen.setdefault(key, (shape, name))
            if shape != other:
                raise ValueError(f"{key} is {shape} in {name} and {other} in {whose}: they are of different models")
