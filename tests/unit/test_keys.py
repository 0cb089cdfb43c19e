"""Files of LoRAs: every key style against the same LoRA, and what cannot be read is named."""

import json

import pytest
import torch

from eraseanything_core.lora.factors import Factors, RowFactors, add_to_output, add_to_weight, check_same_model
from eraseanything_core.lora.key_styles import eraser_tensors, left_out_note, read_eraser, widest_dtype
from eraseanything_core.lora.keys import BY_KEY, LINEARS, TRAINABLE, module_slice, target_slices

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
    eraser = read_eraser({k: t.half() for k, t in tensors.items()}, {}, "x")
    fused = torch.zeros(36, 12)
    for key, (up, down) in eraser.items():
        module, start = module_slice(key, 12)
        assert module == "double_blocks.0.txt_attn.qkv" and up.dtype == torch.float32
        fused[start : start + len(up)] += up @ down
    assert torch.allclose(fused, (f.up @ f.down) * ((alpha or 2.0) / 2), atol=2e-2)
    again = read_eraser(eraser_tensors(eraser, torch.float32), {}, "y")
    assert all(torch.equal(a, b) for key in eraser for a, b in zip(eraser[key], again[key], strict=True))


def test_single_blocks_are_cut_into_q_k_v_and_mlp():
    f = factors(2, 0, rows=36 + 48)
    name = "lora_unet_single_blocks_7_linear1"
    eraser = read_eraser({f"{name}.lora_down.weight": f.down, f"{name}.lora_up.weight": f.up}, {}, "x")
    rows = {key.rpartition(".")[2]: (module_slice(key, 12)[1], len(up)) for key, (up, _) in eraser.items()}
    assert rows == {"to_q": (0, 12), "to_k": (12, 12), "to_v": (24, 12), "proj_mlp": (36, 48)}


def test_the_last_modulation_has_its_halves_swapped_in_diffusers():
    f, parts = factors(2, 0, rows=24), ("lora_A", "lora_B")
    ours = {f"diffusion_model.final_layer.adaLN_modulation.1.{p}.weight": t for p, t in zip(parts, f[::-1])}
    eraser = read_eraser(ours, {}, "x")
    ((key, (up, _)),) = eraser.items()
    assert module_slice(key, 12) == ("final_layer.adaLN_modulation.1", 0) and torch.equal(up, f.up)
    theirs = eraser_tensors(eraser, torch.float32)
    assert torch.equal(theirs["transformer.norm_out.linear.lora_B.weight"], torch.cat(f.up.chunk(2)[::-1]))
    assert torch.equal(read_eraser(theirs, {}, "y")[key].up, f.up)


def test_alpha_of_peft_metadata():
    tensors, f = split("diffusers, ai-toolkit")
    told = {"transformer.r": 2, "transformer.lora_alpha": 6}
    eraser = read_eraser(tensors, {"lora_adapter_metadata": json.dumps(told)}, "x")
    assert torch.allclose(eraser[Q].up, 3 * f.up[:12])
    with pytest.raises(ValueError, match="^x has DoRA, rsLoRA"):
        read_eraser(tensors, {"lora_adapter_metadata": json.dumps(told | {"transformer.use_rslora": True})}, "x")


BLOCK = "transformer.transformer_blocks.0.attn.to_q"
BAD = {
    "DoRA": ({f"{BLOCK}.dora_scale": torch.ones(1)}, "x: the key .*dora_scale is DoRA"),
    "LoKr": ({"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(1)}, "lokr_w1 is LoKr"),
    "LoHa": ({"lycoris_transformer_blocks_0_attn_to_q.hada_w1_a": torch.ones(1)}, "is LoHa"),
    "full weight": ({"diffusion_model.double_blocks.0.txt_attn.qkv.diff": torch.ones(1)}, "is a full weight"),
    "text encoder": ({"lora_te1_text_model_encoder.lora_down.weight": torch.ones(1)}, "of the text encoder"),
    "control LoRA": ({"double_blocks.0.img_attn.proj.lora_B.bias": torch.ones(1)}, "lora_B.bias is a control LoRA"),
    "norms": ({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(1)}, "is a control LoRA"),
    "NaN": (
        {f"{BLOCK}.lora_{s}.weight": torch.full((2, 2), torch.nan) for s in "AB"},
        "x holds NaN .* at transformer_b",
    ),
    "infinite": (
        {f"{BLOCK}.lora_{s}.weight": torch.full((2, 2), v) for s, v in (("A", 1.0), ("B", torch.inf))},
        "x holds NaN or infinite",
    ),
    "alpha NaN": (
        {f"{BLOCK}.lora_{s}.weight": torch.ones(2, 2) for s in "AB"} | {f"{BLOCK}.alpha": torch.tensor(torch.nan)},
        "x holds NaN or infinite",
    ),
    "two alphas": (
        {f"{BLOCK}.lora_{s}.weight": torch.ones(2, 2) for s in "AB"} | {f"{BLOCK}.alpha": torch.ones(2)},
        "an alpha has 2 numbers",
    ),
    "another model": (
        {f"lora_unet_input_blocks_1_1_proj_in.{s}.weight": torch.ones(2, 2) for s in ("lora_down", "lora_up")},
        "lora_unet_input_blocks_1_1_proj_in is no linear of Flux.1",
    ),
    "not a LoRA": ({"weight": torch.ones(1)}, "the key weight is no LoRA"),
    "half": ({f"{BLOCK}.lora_A.weight": torch.ones(2, 4)}, "has only down: the file is not whole"),
    "shapes": ({f"{BLOCK}.lora_A.weight": torch.ones(2, 4), f"{BLOCK}.lora_B.weight": torch.ones(4, 3)}, "do not fit"),
    "no matrix": ({f"{BLOCK}.lora_A.weight": torch.ones(2), f"{BLOCK}.lora_B.weight": torch.ones(2)}, "do not fit"),
    "no rank": ({f"{BLOCK}.lora_A.weight": torch.ones(0, 4), f"{BLOCK}.lora_B.weight": torch.ones(4, 0)}, "do not fit"),
    "nothing": ({}, "x holds no LoRA"),
    "codes": (
        {f"{BLOCK}.lora_{s}.weight": torch.ones(2, 2, dtype=torch.int8) for s in "AB"},
        "has factors of torch.int8, which cannot be read",
    ),
    "twice": (
        {f"{BLOCK}.{s}.weight": torch.ones(2, 2) for s in ("lora_A", "lora_B", "lora_down")},
        "lora_down.weight is there a second time in another spelling",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_combined_is_named(name):
    tensors, words = BAD[name]
    with pytest.raises(ValueError, match=words) as caught:
        read_eraser(tensors, {}, "x")
    assert "\n" not in str(caught.value)


PARTS = {
    "kohya": ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "the text encoder"),
    "kohya, with another kind": ("lora_te1_text_model_encoder_layers_0_mlp_fc1.dora_scale", "the text encoder"),
    "diffusers": ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "the text encoder"),
    "comfyui": ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", "the text enc"),
    "comfyui, plain": ("clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", "the text enc"),
    "biases": ("diffusion_model.double_blocks.0.txt_attn.qkv.diff_b", "full biases"),
    "embedding": ("bundle_emb.mystyle.clip_l", "an embedding"),
}


@pytest.mark.parametrize("part", PARTS)
def test_other_parts_of_a_file_are_left_out_and_named(part):
    """The stock loader takes the transformer's part of such a file too."""
    key, words = PARTS[part]
    tensors, _ = split("diffusers, ai-toolkit")
    with_part = tensors | {key: torch.ones(2, 2)}
    eraser = read_eraser(tensors, {}, "x")
    same = read_eraser(with_part, {}, "x")
    assert eraser.keys() == same.keys()
    for linear in eraser:
        assert torch.equal(eraser[linear].up, same[linear].up) and torch.equal(eraser[linear].down, same[linear].down)
    assert left_out_note(tensors, "x") == ""
    note = left_out_note(with_part, "x")
    assert note.startswith("x: only its transformer's part is used; tensors of") and words in note
    with pytest.raises(ValueError, match=f"x holds no LoRA of the transformer, only keys of {words}"):
        read_eraser({key: torch.ones(2, 2)}, {}, "x")


@pytest.mark.parametrize(
    "metadata",
    ("{", "[" * 100_000, "[]", '{"lora_alpha": "much"}', '{"r": [1]}', '{"lora_alpha": NaN}', f'{{"r": 1{"0" * 400}}}'),
)
def test_metadata_that_is_nonsense_is_named(metadata):
    tensors, _ = split("diffusers, ai-toolkit")
    with pytest.raises(ValueError, match="x ") as error:
        read_eraser(tensors, {"lora_adapter_metadata": metadata}, "x")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_factors_mean_the_same_on_an_output_and_on_a_weight():
    """The two ways in which a LoRA is added: to rows of y = W x, and to rows of W."""
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(36, 12, generator=g), torch.randn(2, 5, 12, generator=g)
    parts = [RowFactors(12, factors(2, 1)), RowFactors(24, factors(3, 2))]
    y = x @ weight.T
    changed = add_to_output(x, y, parts, 0.5)
    for start, part in parts:
        add_to_weight(weight, start, part, 0.5)
    assert torch.allclose(changed, x @ weight.T, atol=1e-4)
    assert torch.equal(changed[..., :12], y[..., :12]), "rows of no part stay to the bit"


def test_every_linear_has_one_place():
    """No two linears share rows of a module, and whatever can be trained can be read again."""
    places = [(linear.module, linear.position) for linear in LINEARS]
    assert len(set(places)) == len(places) and len(BY_KEY) == len(LINEARS)
    for one in target_slices(tuple(TRAINABLE), width=12, dual=2, single=2, mlp_ratio=4.0):
        assert module_slice(one.key, one.columns if one.start else 12) == (one.module, one.start)


@pytest.mark.parametrize(
    "dtypes, widest",
    (
        ((torch.float16,), torch.float16),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float8_e4m3fn,), torch.bfloat16),
        ((torch.float8_e5m2, torch.float8_e4m3fn), torch.bfloat16),
        ((torch.float8_e4m3fn, torch.float32), torch.float32),
    ),
)
def test_the_widest_dtype(dtypes, widest):
    assert widest_dtype([{"x": torch.zeros(1, dtype=dtype)} for dtype in dtypes]) == widest


def test_factors_of_a_convolution_of_one_pixel():
    tensors, _ = split("kohya")
    as_convolution = {key: tensor[:, :, None, None] for key, tensor in tensors.items()}
    same = read_eraser(as_convolution, {}, "x")
    for key, expected in read_eraser(tensors, {}, "x").items():
        assert torch.equal(same[key].up, expected.up) and torch.equal(same[key].down, expected.down)


@pytest.mark.parametrize("up, down", ((1e-7, 1.0), (1.0, 1e-7), (1e6, 1e-2), (1e-2, 1e6), (1e30, 1e-30), (1.0, 1.0)))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_a_file_keeps_a_change_whatever_the_sizes_of_its_factors(up, down, dtype):
    f = factors(2, 0)
    eraser = {Q: Factors(up * f.up, down * f.down)}
    again = read_eraser(eraser_tensors(eraser, dtype), {}, "x")
    change = eraser[Q].up.double() @ eraser[Q].down.double()
    error = again[Q].up.double() @ again[Q].down.double() - change
    assert error.norm() <= 2 * torch.finfo(dtype).eps * change.norm()


def test_a_file_of_zeros_stays_one():
    f = factors(2, 0)
    tensors = eraser_tensors({Q: Factors(0 * f.up, 1e6 * f.down)}, torch.float16)
    assert not any(tensor.any() for tensor in tensors.values()), "and no infinity, which times 0 is NaN"


def test_loras_of_different_models():
    with pytest.raises(ValueError, match=r"is \(12, 12\) in b and \(16, 12\) in a"):
        check_same_model([{Q: factors(1, 0, rows=16)}, {Q: factors(1, 0)}], ["a", "b"])
