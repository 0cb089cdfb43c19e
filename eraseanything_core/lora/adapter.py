"""A LoRA on slices of Flux's fused linears, under the names that diffusers and the stock LoraLoader read.

ComfyUI fuses q, k and v into one linear; diffusers keeps them apart. An adapter here adds `B A x` to a range of
rows of the fused output, so it is the same LoRA in both. alpha equals the rank: the scale is 1 and no alpha is stored.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .. import files

VERSION = "0.1.0"

PRESETS = {
    "paper": ("add_q", "add_k"),
    "text_qkv": ("add_q", "add_k", "add_v"),
    "dual_qk": ("add_q", "add_k", "to_q", "to_k"),
    "dual_qkv": ("add_q", "add_k", "add_v", "to_q", "to_k", "to_v"),
    "text_kv": ("add_k", "add_v"),
    "all_kv": ("add_k", "add_v", "to_k", "to_v", "single_k", "single_v"),
    "all_qkv": ("add_q", "add_k", "add_v", "to_q", "to_k", "to_v", "single_q", "single_k", "single_v"),
}

# name: (diffusers name, ComfyUI module, first row, rows, columns), the last three in widths; m is the MLP's ratio.
DUAL = {
    "add_q": ("attn.add_q_proj", "txt_attn.qkv", 0, 1, 1),
    "add_k": ("attn.add_k_proj", "txt_attn.qkv", 1, 1, 1),
    "add_v": ("attn.add_v_proj", "txt_attn.qkv", 2, 1, 1),
    "to_q": ("attn.to_q", "img_attn.qkv", 0, 1, 1),
    "to_k": ("attn.to_k", "img_attn.qkv", 1, 1, 1),
    "to_v": ("attn.to_v", "img_attn.qkv", 2, 1, 1),
    "to_out": ("attn.to_out.0", "img_attn.proj", 0, 1, 1),
    "to_add_out": ("attn.to_add_out", "txt_attn.proj", 0, 1, 1),
}
SINGLE = {
    "single_q": ("attn.to_q", "linear1", 0, 1, 1),
    "single_k": ("attn.to_k", "linear1", 1, 1, 1),
    "single_v": ("attn.to_v", "linear1", 2, 1, 1),
    "single_mlp": ("proj_mlp", "linear1", 3, "m", 1),
    "single_out": ("proj_out", "linear2", 0, 1, "1+m"),
}


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `start + rows` of the output of one linear."""

    key: str  # in diffusers' transformer
    module: str  # in ComfyUI's Flux
    start: int
    rows: int
    columns: int


def target_names(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    """Target names from a preset, or from names joined by `+` or given as a tuple.

    Raises:
        ValueError: a name that does not exist.
    """
    if isinstance(targets, str):
        targets = PRESETS.get(targets) or tuple(name.strip() for name in targets.split("+"))
    for name in targets:
        if name not in DUAL and name not in SINGLE:
            known = ", ".join((*PRESETS, *DUAL, *SINGLE))
            raise ValueError(f"there is no target {name!r}; known: {known}")
    return tuple(dict.fromkeys(targets))


def slices(targets: str | tuple[str, ...], width: int, dual: int, single: int, mlp_ratio: float) -> list[Slice]:
    """The slices of a Flux of this shape: `width` features, `dual` and `single` blocks."""
    size = {"m": int(width * mlp_ratio), "1+m": width + int(width * mlp_ratio)} | {n: n * width for n in range(4)}
    found = []
    for name in target_names(targets):
        table, count, theirs, ours = (
            (DUAL, dual, "transformer_blocks", "double_blocks")
            if name in DUAL
            else (SINGLE, single, "single_transformer_blocks", "single_blocks")
        )
        key, module, start, rows, columns = table[name]
        found += [
            Slice(f"{theirs}.{i}.{key}", f"{ours}.{i}.{module}", size[start], size[rows], size[columns])
            for i in range(count)
        ]
    return found


class Lora(nn.Module):
    """Trainable float32 factors of a set of slices; B starts at zero, so the model starts unchanged."""

    def __init__(self, parts: list[Slice], rank: int, generator: torch.Generator | None = None, device="cpu"):
        super().__init__()
        self.parts, self.rank = parts, rank
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for part in parts:
            down = torch.empty(rank, part.columns)
            down.normal_(0, 1 / rank, generator=generator)
            self.down.append(down.to(device))
            self.up.append(torch.zeros(part.rows, rank, device=device))

    def by_module(self) -> dict[str, list[int]]:
        """The numbers of the slices of each linear, in the order of their rows."""
        found: dict[str, list[int]] = {}
        for i in sorted(range(len(self.parts)), key=lambda i: self.parts[i].start):
            found.setdefault(self.parts[i].module, []).append(i)
        return found

    def add(self, indices: list[int], x: Tensor, y: Tensor) -> Tensor:
        """The linear's output y with B A x added to the rows of each slice.

        Args:
            indices: the linear's slices, as `by_module` gives them.
            x: [..., columns], the linear's input.
            y: [..., rows of the whole linear].
        """
        pieces, end = [], 0
        for i in indices:
            part = self.parts[i]
            delta = (x @ self.down[i].to(x.dtype).T) @ self.up[i].to(x.dtype).T
            pieces += [y[..., end : part.start], y[..., part.start : part.start + part.rows] + delta]
            end = part.start + part.rows
        return torch.cat((*pieces, y[..., end:]), dim=-1)

    def tensors(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        """The LoRA under its file keys, detached, on the CPU (meta stays meta)."""
        return {key: _plain(p, dtype) for key, p in self._named()}

    def load(self, tensors: dict[str, Tensor]):
        """Takes over the factors of `tensors`; raises KeyError when one is missing."""
        with torch.no_grad():
            for key, parameter in self._named():
                parameter.copy_(tensors[key])

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for part, down, up in zip(self.parts, self.down, self.up, strict=True):
            yield f"transformer.{part.key}.lora_A.weight", down
            yield f"transformer.{part.key}.lora_B.weight", up


def _plain(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = parameter.detach().to(dtype, copy=True)
    return tensor if tensor.is_meta else tensor.cpu().contiguous()


def save_lora(tensors: dict[str, Tensor], path: Path, metadata: dict) -> Path:
    """Writes the file under a temporary name and renames it, so that it is whole or not there.

    Args:
        tensors: as `Lora.tensors` gives them.
        path: where to; the folder must exist.
        metadata: the header; values that are no strings are written as JSON.

    Raises:
        OSError: the folder cannot be written to.
    """
    return files.replace(path, save(tensors, metadata={"format": "pt", **strings(metadata)}))


def strings(metadata: dict) -> dict[str, str]:
    """A header as files hold it: values that are no strings become JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}


class LoraModel(dict):
    """Tensors under their file keys, which is ComfyUI's LORA_MODEL, with the header that belongs to them."""

    def __init__(self, tensors: dict[str, Tensor], header: dict[str, str]):
        super().__init__(tensors)
        self.header = header


def load_lora(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a LoRA file and its header.

    Args:
        path: the file.
        mapped: leave the tensors in the file, which Windows then neither replaces nor removes while they live.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) if mapped else file.get_tensor(key).clone() for key in file.keys()}
        return tensors, file.metadata() or {}


def title(concept: str) -> dict[str, str]:
    """The part of the header that other programs read."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.title": f"erases {concept}" if concept else "eraser",
        "eraseanything.version": VERSION,
    }


def header(config, base_model: str, method: str = "eraseanything") -> dict:
    """The whole header: what was erased, how, from which model and by which version.

    Args:
        config: the dataclass of the run; every field is kept.
        base_model: a fingerprint of the model that was trained on.
        method: name of the eraser.
    """
    settings = dataclasses.asdict(config)
    return {
        **title(config.concept),
        "eraseanything.method": method,
        "eraseanything.base_model": base_model,
        **{f"eraseanything.{name}": value for name, value in settings.items()},
    }
