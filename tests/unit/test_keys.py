"""Files of LoRAs: every key style against the same LoRA, and what cannot be read is named."""

import json

import pytest
import torch

from eraseanything_core.lora import keys
from eraseanything_core.lora.keys import Factors

Q = "transformer_blocks.0.attn.add_q_proj"


def factors(rank, seed, rows=12, columns=12):
    g = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rows, rank, generator=g), torch.randn(rank, columns, generator=g))


def split(style):
    """One LoRA of add_q, add_k and add_v as a file of a style, and its change of the fused weight."""
    f = factors(2, 0, rows=36)
    fused = {
        "kohya": ("lora_unet_double_blocks_0_txt_attn_qkv", "lora_down.weight", "lora_up.weight"),
        "comfyui": ("diffusion_model.double_blocks.0.txt_attn.qkv", "lora_down.weight", "lora_up.weight"),
        "comfyui peft": ("diffusion_model.double_blocks.0.txt_attn.qkv", "lora_A.weight", "lora_B.weight"),
    }
    if style in fused:
        module, down, up = fused[style]
        return {f"{module}.{down}": f.down, f"{module}.{up}": f.up}, f
    dotted = "transformer_blocks.0.attn.{}"
    module, down, up = {
        "diffusers, ai-toolkit": (f"transformer.{dotted}", "lora_A.weight", "lora_B.weight"),
        "without prefix": (dotted, "lora_A.weight", "lora_B.weight"),
        "peft": (f"base_model.model.{dotted}", "lora_A.default.weight", "lora_B.default.weight"),
        "onetrainer": ("lora_transformer_transformer_blocks_0_attn_{}", "lora_down.weight", "lora_up.weight"),
        "lycoris": ("lycoris_transformer_blocks_0_attn_{}", "lora_down.weight", "lora_up.weight"),
    }[style]
    names = [module.format(n) for n in ("add_q_proj", "add_k_proj", "add_v_proj")]
    made = {f"{n}.{down}": f.down for n in names}
    return made | {f"{n}.{up}": part for n, part in zip(names, f.up.split(12), strict=True)}, f


STYLES = (
    "kohya",
    "comfyui",
    "comfyui peft",
    "diffusers, ai-toolkit",
    "without prefix",
    "peft",
    "onetrainer",
    "lycoris",
)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("alpha", (None, 1.0))
def test_styles(style, alpha):
    tensors, f = split(style)
    if alpha:
        tensors |= {f"{key.partition('.lora_')[0]}.alpha": torch.tensor(alpha) for key in list(tensors)}
    eraser = keys.read({k: t.half() for k, t in tensors.items()}, {}, "x")
    fused = torch.zeros(36, 12)
    for key, (up, down) in eraser.items():
        module, start = keys.place(key, 12)
        assert module == "double_blocks.0.txt_attn.qkv" and up.dtype == torch.float32
        fused[start : start + len(up)] += up @ down
    assert torch.allclose(fused, (f.up @ f.down) * ((alpha or 2.0) / 2), atol=2e-2)
    again = keys.read(keys.write(eraser, torch.float32), {}, "y")
    assert all(torch.equal(a, b) for key in eraser for a, b in zip(eraser[key], again[key], strict=True))


def test_single_blocks_are_cut_into_q_k_v_and_mlp():
    f = factors(2, 0, rows=36 + 48)
    name = "lora_unet_single_blocks_7_linear1"
    eraser = keys.read({f"{name}.lora_down.weight": f.down, f"{name}.lora_up.weight": f.up}, {}, "x")
    rows = {key.rpartition(".")[2]: (keys.place(key, 12)[1], len(up)) for key, (up, _) in eraser.items()}
    assert rows == {"to_q": (0, 12), "to_k": (12, 12), "to_v": (24, 12), "proj_mlp": (36, 48)}


def test_the_last_modulation_has_its_halves_swapped_in_diffusers():
    f, parts = factors(2, 0, rows=24), ("lora_A", "lora_B")
    ours = {f"diffusion_model.final_layer.adaLN_modulation.1.{p}.weight": t for p, t in zip(parts, f[::-1])}
    eraser = keys.read(ours, {}, "x")
    ((key, (up, _)),) = eraser.items()
    assert keys.place(key, 12) == ("final_layer.adaLN_modulation.1", 0) and torch.equal(up, f.up)
    theirs = keys.write(eraser, torch.float32)
    assert torch.equal(theirs["transformer.norm_out.linear.lora_B.weight"], torch.cat(f.up.chunk(2)[::-1]))
    assert torch.equal(keys.read(theirs, {}, "y")[key].up, f.up)


def test_alpha_of_peft_metadata():
    tensors, f = split("diffusers, ai-toolkit")
    told = {"transformer.r": 2, "transformer.lora_alpha": 6}
    eraser = keys.read(tensors, {"lora_adapter_metadata": json.dumps(told)}, "x")
    assert torch.allclose(eraser[Q].up, 3 * f.up[:12])
    with pytest.raises(ValueError, match="^x has DoRA, rsLoRA"):
        keys.read(tensors, {"lora_adapter_metadata": json.dumps(told | {"transformer.use_rslora": True})}, "x")


BLOCK = "transformer.transformer_blocks.0.attn.to_q"
BAD = {
    "DoRA": ({f"{BLOCK}.dora_scale": torch.ones(1)}, "x: the key .*dora_scale is DoRA"),
    "LoKr": ({"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(1)}, "lokr_w1 is LoKr"),
    "LoHa": ({"lycoris_transformer_blocks_0_attn_to_q.hada_w1_a": torch.ones(1)}, "is LoHa"),
    "full weight": ({"diffusion_model.double_blocks.0.txt_attn.qkv.diff": torch.ones(1)}, "is a full weight"),
    "text encoder": ({"lora_te1_text_model_encoder.lora_down.weight": torch.ones(1)}, "of the text encoder"),
    "another model": (
        {f"lora_unet_input_blocks_1_1_proj_in.{s}.weight": torch.ones(2, 2) for s in ("lora_down", "lora_up")},
        "lora_unet_input_blocks_1_1_proj_in is no linear of Flux.1",
    ),
    "not a LoRA": ({"weight": torch.ones(1)}, "the key weight is no LoRA"),
    "half": ({f"{BLOCK}.lora_A.weight": torch.ones(2, 4)}, "has only down: the file is not whole"),
    "shapes": ({f"{BLOCK}.lora_A.weight": torch.ones(2, 4), f"{BLOCK}.lora_B.weight": torch.ones(4, 3)}, "do not fit"),
    "nothing": ({}, "x holds no LoRA"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_combined_is_named(name):
    tensors, words = BAD[name]
    with pytest.raises(ValueError, match=words) as caught:
        keys.read(tensors, {}, "x")
    assert "\n" not in str(caught.value)


def test_loras_of_different_models():
    with pytest.raises(ValueError, match=r"is \(12, 12\) in b and \(16, 12\) in a"):
        keys.check_fit([{Q: factors(1, 0, rows=16)}, {Q: factors(1, 0)}], ["a", "b"])
