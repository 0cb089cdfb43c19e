"""TinyFlux is an ordinary Flux checkpoint: the stock loaders take it, and our shortcuts equal ComfyUI."""

import json

import comfy.latent_formats
import comfy.lora
import comfy.sd
import comfy.utils
import pytest
import torch

from eraseanything_core.flux import exact_gradients
from eraseanything_core.tinyflux import pipeline as tiny
from eraseanything_core.tinyflux.ceilings import FLOORS
from eraseanything_core.tinyflux.measure import merged
from eraseanything_core.tinyflux.plain import rope_table, velocity

WEIGHTS = tiny.WEIGHTS


@pytest.fixture(scope="module")
def patcher():
    return comfy.sd.load_diffusion_model(str(WEIGHTS / "tinyflux.safetensors"))


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(2, 16, 12, 12, generator=g),
        "timestep": torch.tensor([0.9, 0.3]),
        "context": torch.randn(2, 32, 128, generator=g),
        "y": torch.randn(2, 64, generator=g),
        "guidance": torch.tensor([1.0, 3.5]),
    }


def test_stock_loader_sees_flux_with_guidance(patcher):
    params = patcher.model.diffusion_model.params
    assert type(patcher.model).__name__ == "Flux"
    assert (params.depth, params.depth_single_blocks, params.num_heads, params.guidance_embed) == (2, 4, 2, True)


def test_stock_loader_takes_every_weight(patcher):
    ours = tiny.load_file(WEIGHTS / "tinyflux.safetensors")
    theirs = patcher.model.diffusion_model.state_dict()
    assert {k for k in theirs} == set(ours)
    assert all(torch.equal(theirs[k].to(v.dtype), v) for k, v in ours.items())


def test_plain_forward_equals_comfyui(inputs):
    module = tiny.flux(dtype=torch.float32)
    with torch.no_grad(), exact_gradients(module):
        theirs = module(**inputs)
    ours = velocity(module, rope_table(module, 32, 6, 6), **inputs)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_stock_vae_decodes_as_the_pipeline_does():
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / "tinyflux_vae.safetensors")))
    x_0 = tiny.noise([1, 2])
    latent = comfy.latent_formats.Flux().process_out(x_0)
    theirs = vae.decode(latent).movedim(-1, 1)
    ours = tiny.decoder()(x_0).clamp(0, 1)
    assert (theirs - ours).abs().max() < 2e-2  # the stock VAE may compute in bf16


def test_merging_an_eraser_equals_the_stock_loader(patcher):
    torch.manual_seed(0)
    name = "transformer.transformer_blocks.1.attn.add_k_proj.lora_"
    lora = {name + "A.weight": torch.randn(8, 256), name + "B.weight": 0.1 * torch.randn(256, 8)}
    erased, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    key = "diffusion_model.double_blocks.1.txt_attn.qkv.weight"
    module = tiny.flux(dtype=torch.float32)
    theirs = comfy.lora.calculate_weight(erased.patches[key], module.double_blocks[1].txt_attn.qkv.weight.clone(), key)
    ours = merged(module, lora).double_blocks[1].txt_attn.qkv.weight
    assert not torch.equal(ours, module.double_blocks[1].txt_attn.qkv.weight)
    assert (ours - theirs).abs().max() < 1e-5


def test_an_eraser_of_another_model_is_refused():
    with pytest.raises(KeyError, match="no place in TinyFlux"):
        merged(tiny.flux(), {"transformer.nothing.lora_A.weight": torch.zeros(1)})


def test_ceilings_stand_in_the_repository():
    told = json.loads((WEIGHTS.parent / "ceilings.json").read_text())
    assert told["floors"] == FLOORS
    assert all(told["clean"][judge]["all"]["n"] >= 2000 for judge in ("oracle", "cnn"))


def test_weights_fit_the_repository():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 40e6
