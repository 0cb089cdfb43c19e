"""Models of other families at their true size, as shapes only: the trainer's own model on tensors without data.

Sizes are those of the published checkpoints, which `tests/comfy/families/test_family_costs.py` holds against their
numbers of parameters.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import comfy.ops
import comfy.supported_models
import comfy.text_encoders.llama as llama
import torch
from torch import Tensor

from eraseanything_core.comfy_bridge.any_model import AnyModel, ViewPatcher
from eraseanything_core.comfy_bridge.families import class_name
from eraseanything_core.comfy_bridge.families.table import LAYOUTS
from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.road import Road
from eraseanything_core.protocols import Conditioning
from lab.bench.true_size import Shapes, counted, t5_flops

BF16 = torch.bfloat16
FEW = 2  # blocks of a kind in what is counted; the first one's input needs no gradient
FLUX2 = {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip


class TrueSize(NamedTuple):
    """A published model.

    Attributes:
        family: ComfyUI's name for its family.
        small: the small random model of the tests that is of the same class.
        config: of its diffusion model.
        parameters: of its diffusion model.
        features: of a token of its text.
        tokens: of a prompt of the trainer as the model is given it.
        encoder: ComfyUI's class of its text encoder; None is T5-XXL's size.
        layers: of the text encoder that run.
        read: tokens that the text encoder reads for such a prompt, template and padding included.
        depths: entries of `config` that say how many blocks of a kind there are, all alike.
    """

    family: str
    small: str
    config: dict[str, Any]
    parameters: float
    features: int
    tokens: int
    encoder: type | None
    layers: int
    read: int
    depths: tuple[str, ...]


SIZES = {
    "FLUX.2 Klein 4B": TrueSize(
        "Flux2",
        "Flux2",
        FLUX2 | {
            "hidden_size": 3072, "num_heads": 24, "depth": 5, "depth_single_blocks": 20, "context_in_dim": 7680,
            "guidance_embed": False,
        },
        3.88e9, 7680, 512, llama.Qwen3_4B, 27, 512, ("depth", "depth_single_blocks"),
    ),
    "FLUX.2 dev": TrueSize(
        "Flux2",
        "Flux2",
        FLUX2 | {
            "hidden_size": 6144, "num_heads": 48, "depth": 8, "depth_single_blocks": 48, "context_in_dim": 15360,
            "guidance_embed": True,
        },
        32.2e9, 15360, 96, llama.Mistral3Small24B, 30, 96, ("depth", "depth_single_blocks"),
    ),
    "Z-Image": TrueSize(
        "ZImage",
        "Lumina2",
        {
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "n_layers": 30,
            "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "qk_norm": True,
            "cap_feat_dim": 2560, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
        },
        6.15e9, 2560, 32, llama.Qwen3_4B, 35, 32, ("n_layers",),
    ),
    "Qwen-Image": TrueSize(
        "QwenImage",
        "QwenImage",
        {"image_model": "qwen_image", "num_layers": 60, "joint_attention_dim": 3584},
        20.4e9, 3584, 32, llama.Qwen25_7BVLI, 28, 66, ("num_layers",),
    ),
    "Krea 2": TrueSize(
        "Krea2",
        "Krea2",
        {"image_model": "krea2", "layers": 28},
        12.8e9, 12 * 2560, 32, llama.Qwen3_4B, 36, 66, ("layers",),
    ),
    "Wan 2.2 5B": TrueSize(
        "WAN22_T2V",
        "WAN21_T2V",
        {
            "image_model": "wan2.1", "model_type": "t2v", "dim": 3072, "ffn_dim": 14336, "num_heads": 24,
            "num_layers": 30, "in_dim": 48, "out_dim": 48, "patch_size": (1, 2, 2),
        },
        5.0e9, 4096, 512, None, 24, 512, ("num_layers",),
    ),
}  # fmt: skip


class ShapedModel(AnyModel):
    """A model of any class whose prompts have no contents: their words are looked for nowhere."""

    def _columns(self, encodings: Any, conditions: Any, given: Any, capture: Any) -> list[Tensor]:
        texts = self.layout.texts.of_forward(given.get("c_crossattn"), given)
        tokens = sum(text.shape[1] for text in texts)
        rows = len(capture.select)
        return [torch.zeros(rows, tokens, device=self.device) for _ in range(capture.select.shape[2])]


Blocks = Mapping[str, int]  # numbers of blocks, by the entries of `TrueSize.depths`


def true_model(
    name: str,
    blocks: Blocks,
    dtype: torch.dtype = BF16,
    operations: Any = None,
    device: str = "meta",
) -> ShapedModel:
    """The seam over a published model, or over one of as many blocks; no `blocks` are all of them."""
    size = SIZES[name]
    entries = {**size.config, **blocks}
    config = getattr(comfy.supported_models, size.family)(dict(entries))
    config.unet_config.update(entries)
    config.set_inference_dtype(dtype, BF16)
    config.custom_operations = operations or comfy.ops.disable_weight_init
    base = config.get_model({}, "", device)
    road = Road(base, frozen_view(base.diffusion_model, BF16), base.model_sampling, device, BF16)
    layout = LAYOUTS[class_name(road.base.diffusion_model)](road.base.diffusion_model)
    layout.reporter.patch(ViewPatcher(road.base))
    return ShapedModel(road, layout, device, BF16)


class FamilyShapes(Shapes):
    """The text encoder's results without their contents; counts what was encoded."""

    def __init__(self, name: str):
        super().__init__(SIZES[name].tokens)
        # One for all prompts, as they are of one shape: hundreds of FLUX.2's would take 6 GB.
        self.encoding = Conditioning(torch.zeros(1, self.tokens, SIZES[name].features), torch.zeros(1, 0), {})

    def encode(self, text: str) -> Conditioning:
        self.encoded += 1
        return self.encoding


@cache
def text_flops(name: str) -> int:
    """One prompt through the family's text encoder."""
    size = SIZES[name]
    if size.encoder is None:
        return t5_flops(size.read)
    encoder = size.encoder({"num_hidden_layers": size.layers}, BF16, "meta", comfy.ops.disable_weight_init)
    ids = torch.zeros(1, size.read, dtype=torch.long, device="meta")
    with torch.no_grad():
        return counted(lambda: encoder.model(ids, dtype=BF16))


def parameters(name: str) -> int:
    """Of the diffusion model."""
    return sum(parameter.numel() for parameter in true_model(name, {}).module.parameters())


def at_full_depth(name: str, measure: Callable[[Blocks], dict[str, float]]) -> dict[str, float]:
    """What a model of all blocks takes, from models of two and three of a kind.

    Every block of a kind takes what the others take, so cost and memory are straight lines in their number. Counting
    60 blocks would take minutes; a test counts one model whole.

    Args:
        name: of the published model.
        measure: what a model of so many blocks takes.
    """
    size = SIZES[name]
    few = dict.fromkeys(size.depths, FEW)
    start = measure(few)
    total = dict(start)
    for kind in size.depths:
        more = measure({**few, kind: FEW + 1})
        for what, value in start.items():
            total[what] += (size.config[kind] - FEW) * (more[what] - value)
    return total
