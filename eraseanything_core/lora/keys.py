"""The linears of Flux: their names in diffusers and in ComfyUI, and which of them can be trained.

diffusers keeps q, k and v in linears of their own, and a single block's MLP too. ComfyUI fuses them, so a linear of
diffusers is a range of rows of a ComfyUI module. This table is the one place that knows which rows.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..quoting import quoted
from .roles import ROLES

Size = Literal["width", "mlp", "width + mlp"]


@dataclass(frozen=True)
class FluxLinear:
    """A linear of diffusers' Flux transformer, and where ComfyUI has it.

    Attributes:
        key: its name in diffusers; `{}` stands for the block's number.
        module: the ComfyUI module that holds it.
        position: its number among the linears that this module fuses, in the order of their rows.
        target: the name under which it can be trained; empty where it cannot.
        rows, columns: the shape of its weight, for those that can be trained.
    """

    key: str
    module: str
    position: int = 0
    target: str = ""
    rows: Size = "width"
    columns: Size = "width"


DUAL_BLOCK = (
    FluxLinear("attn.add_q_proj", "txt_attn.qkv", 0, "add_q"),
    FluxLinear("attn.add_k_proj", "txt_attn.qkv", 1, "add_k"),
    FluxLinear("attn.add_v_proj", "txt_attn.qkv", 2, "add_v"),
    FluxLinear("attn.to_q", "img_attn.qkv", 0, "to_q"),
    FluxLinear("attn.to_k", "img_attn.qkv", 1, "to_k"),
    FluxLinear("attn.to_v", "img_attn.qkv", 2, "to_v"),
    FluxLinear("attn.to_out.0", "img_attn.proj", 0, "to_out"),
    FluxLinear("attn.to_add_out", "txt_attn.proj", 0, "to_add_out"),
    FluxLinear("ff.net.0.proj", "img_mlp.0", 0, "ff_in", rows="mlp"),
    FluxLinear("ff.net.2", "img_mlp.2", 0, "ff_out", columns="mlp"),
    FluxLinear("ff_context.net.0.proj", "txt_mlp.0", 0, "add_ff_in", rows="mlp"),
    FluxLinear("ff_context.net.2", "txt_mlp.2", 0, "add_ff_out", columns="mlp"),
    FluxLinear("norm1.linear", "img_mod.lin"),
    FluxLinear("norm1_context.linear", "txt_mod.lin"),
)
SINGLE_BLOCK = (
    FluxLinear("attn.to_q", "linear1", 0, "single_q"),
    FluxLinear("attn.to_k", "linear1", 1, "single_k"),
    FluxLinear("attn.to_v", "linear1", 2, "single_v"),
    FluxLinear("proj_mlp", "linear1", 3, "single_mlp", rows="mlp"),
    FluxLinear("proj_out", "linear2", 0, "single_out", columns="width + mlp"),
    FluxLinear("norm.linear", "modulation.lin"),
)
OUTSIDE_BLOCKS = (
    FluxLinear("x_embedder", "img_in"),
    FluxLinear("context_embedder", "txt_in"),
    FluxLinear("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    FluxLinear("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    FluxLinear("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    FluxLinear("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    FluxLinear("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    FluxLinear("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    FluxLinear("proj_out", "final_layer.linear"),
    FluxLinear("norm_out.linear", "final_layer.adaLN_modulation.1"),
)
# diffusers has the scale before the shift here. ComfyUI, and an `Eraser` with it, has the shift first.
SCALE_FIRST = "norm_out.linear"

DUAL_BLOCKS = "double_blocks.{}"  # what ComfyUI calls them
TRANSFORMER = "transformer."  # what diffusers' names of a transformer's linears begin with in a file
UNET = "lora_unet_"  # and its flat names of a U-Net's, in kohya's style, which the stock loader and diffusers both read
WHOLE = "diffusion_model."  # what the key of a whole ComfyUI linear begins with, in an `Eraser` and in a file


def _in_blocks(linears: Iterable[FluxLinear], key: str, module: str) -> list[FluxLinear]:
    return [dataclasses.replace(each, key=f"{key}.{each.key}", module=f"{module}.{each.module}") for each in linears]


LINEARS = (
    *_in_blocks(DUAL_BLOCK, "transformer_blocks.{}", DUAL_BLOCKS),
    *_in_blocks(SINGLE_BLOCK, "single_transformer_blocks.{}", "single_blocks.{}"),
    *OUTSIDE_BLOCKS,
)
BY_KEY = {linear.key: linear for linear in LINEARS}
TRAINABLE = {linear.target: linear for linear in LINEARS if linear.target}

# Sets of targets under one name. The paper trains the text stream's queries and keys.
TARGETS = {
    "paper": ("add_q", "add_k"),
    "text_qkv": ("add_q", "add_k", "add_v"),
    "dual_qk": ("add_q", "add_k", "to_q", "to_k"),
    "dual_qkv": ("add_q", "add_k", "add_v", "to_q", "to_k", "to_v"),
    "text_kv": ("add_k", "add_v"),
    "all_kv": ("add_k", "add_v", "to_k", "to_v", "single_k", "single_v"),
    "all_qkv": ("add_q", "add_k", "add_v", "to_q", "to_k", "to_v", "single_q", "single_k", "single_v"),
}

# The sets that are named by roles; see `roles`.
OF_ROLES = {
    "text k,v": "text_kv",
    "text q,k": "paper",
    "text q,k,v": "text_qkv",
    "image k,v": "to_k+to_v",
    "all": "all_qkv",
    "text and image k,v": "add_k+add_v+to_k+to_v",
    "text and image q,k": "dual_qk",
    "unconditional": "ff_in+ff_out+add_ff_in+add_ff_out+single_mlp+single_out",
}

BLOCK_NUMBER = re.compile(r"(?<=blocks\.)\d+(?=\.)")


def file_keys(stem: str) -> tuple[str, str]:
    """The keys of A and B in a file, for what stands in front of both."""
    down, up = ("lora_down", "lora_up") if stem.startswith(UNET) else ("lora_A", "lora_B")
    return f"{stem}.{down}.weight", f"{stem}.{up}.weight"


def module_slice(key: str, columns: int) -> tuple[str, int]:
    """Where ComfyUI has a linear of diffusers.

    Args:
        key: the linear's name, such as `transformer_blocks.0.attn.to_k`, or that of a whole ComfyUI linear.
        columns: of its weight. All linears of a fused module read the same input, and all but the last one have as
            many rows as that is wide.

    Returns:
        The module, and the first row of the linear in it.

    Raises:
        KeyError: Flux has no such linear.
    """
    if key.startswith(WHOLE):
        return key.removeprefix(WHOLE), 0
    number = BLOCK_NUMBER.search(key)
    linear = BY_KEY[BLOCK_NUMBER.sub("{}", key, count=1)]
    module = linear.module.format(number[0]) if number else linear.module
    return module, linear.position * columns


@dataclass(frozen=True)
class LinearSlice:
    """The rows of a ComfyUI linear that are trained by themselves; in FLUX.1 they are one linear of diffusers.

    Attributes:
        key: its name in diffusers' transformer, or `diffusion_model.` and the module where no file has such a name.
        module: the ComfyUI module.
        start, rows: it is the rows `start` to `start + rows` of the module's output.
        columns: features of the input.
        whole_rows: of the module, where a file holds it as a whole; 0 where it holds the slice alone.
    """

    key: str
    module: str
    start: int
    rows: int
    columns: int
    whole_rows: int = 0

    @property
    def file_key(self) -> str:
        """What stands in front of `.lora_A.weight` in a file."""
        own = self.whole_rows or self.key.startswith(UNET)
        return self.key if own else f"{TRANSFORMER}{self.key}"


def target_names(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    """Target names, each once, in order.

    Args:
        targets: a name of `TARGETS` or of `OF_ROLES`, or names of `TRAINABLE` joined by `+` or as a tuple.

    Raises:
        ValueError: a name that does not exist.
    """
    if isinstance(targets, str):
        targets = OF_ROLES.get(targets, targets)
    if targets in ROLES:
        raise ValueError(f"FLUX.1 has no linears for {quoted(str(targets))}: take one of {'; '.join(OF_ROLES)}")
    if isinstance(targets, str):
        targets = TARGETS.get(targets) or tuple(name.strip() for name in targets.split("+"))
    for name in targets:
        if name not in TRAINABLE:
            known = ", ".join((*TARGETS, *TRAINABLE))
            raise ValueError(f"there is no target {quoted(name)}; known: {known}")
    return tuple(dict.fromkeys(targets))


def check_targets(targets: str) -> None:
    """Raises ValueError for a target that no family has; a role that FLUX.1 lacks may be another family's."""
    if targets not in ROLES:
        target_names(targets)


def target_slices(
    targets: str | tuple[str, ...], width: int, dual: int, single: int, mlp_ratio: float
) -> list[LinearSlice]:
    """The slices that targets name in a Flux of some shape, block by block for each target.

    Args:
        targets: see `target_names`.
        width: features of a token.
        dual, single: how many blocks of either kind there are.
        mlp_ratio: features of a single block's MLP, in widths.

    Raises:
        ValueError: a target that does not exist.
    """
    mlp = int(width * mlp_ratio)  # as ComfyUI's Flux rounds it
    sizes: dict[Size, int] = {"width": width, "mlp": mlp, "width + mlp": width + mlp}
    slices = []
    # Targets outside, blocks inside: a seed's factors depend on this order.
    for name in target_names(targets):
        linear = TRAINABLE[name]
        blocks = dual if linear.module.startswith(DUAL_BLOCKS) else single
        for number in range(blocks):
            one = LinearSlice(
                key=linear.key.format(number),
                module=linear.module.format(number),
                # All linears before this one in the fused module are as high as the model is wide.
                start=linear.position * width,
                rows=sizes[linear.rows],
                columns=sizes[linear.columns],
            )
            slices.append(one)
    return slices
