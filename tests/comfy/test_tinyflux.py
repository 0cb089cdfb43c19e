"""TinyFlux is an ordinary Flux checkpoint: the stock loaders take it, and our shortcuts equal ComfyUI."""

import json
from pathlib import Path

import comfy.latent_formats
import comfy.lora
import comfy.sd
import comfy.utils
import nodes
import pytest
import torch
from comfy_extras.nodes_sd3 import EmptySD3LatentImage

from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.evaluation.judges import sha256
from lab.tinyflux import ceilings
from lab.tinyflux import pipeline as tiny
from lab.tinyflux.ceilings import ALL, DISTORTED, FLOORS
from lab.tinyflux.functional_flux import rope_table, velocity
from lab.tinyflux.measure import merged

WEIGHTS = tiny.WEIGHTS
CEILINGS = Path(ceilings.__file__).with_name("ceilings.json")


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


def test_both_empty_latents_give_the_same_picture(patcher):
    """EmptyLatentImage makes 4 channels, which ComfyUI's sampler widens to the model's 16."""
    plain, sd3 = nodes.EmptyLatentImage().generate(96, 96, 2)[0], EmptySD3LatentImage.execute(96, 96, 2).args[0]
    assert plain["samples"].shape[1] == 4 and sd3["samples"].shape == (2, 16, 12, 12)
    g = torch.Generator().manual_seed(0)
    context, pooled = torch.randn(1, 32, 128, generator=g), torch.randn(1, 64, generator=g)
    asked = [[context, {"pooled_output": pooled, "guidance": 3.5}]]
    with torch.inference_mode():
        settings = (1, 3, 1.0, "euler", "simple", asked, asked)
        drawn, same = (nodes.KSampler().sample(patcher, *settings, latent)[0]["samples"] for latent in (plain, sd3))
    assert drawn.shape == (2, 16, 12, 12) and torch.equal(drawn, same) and drawn.std() > 0.1


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
    with pytest.raises(ValueError, match="nothing"):
        merged(tiny.flux(), {"transformer.nothing.lora_A.weight": torch.zeros(1)})


def test_ceilings_stand_in_the_repository():
    """And both judges find them above the marks that were set for them."""
    told = json.loads(CEILINGS.read_text())
    assert told["floors"] == FLOORS and told["below"] == []
    for judge in ("oracle", "cnn"):
        clean = told["clean"][judge]
        assert clean["all"]["n"] >= 2000
        assert clean["entity"]["value"] >= 0.95 and clean["style"]["value"] >= 0.95
        assert clean["relation"]["value"] >= 0.90 and min(clean[concept]["value"] for concept in ALL) >= 0.85
        assert told["synonyms"][judge]["all"]["value"] >= 0.90
        assert all(told[name][judge]["all"]["value"] >= 0.80 for name in DISTORTED)


def test_what_is_stored_of_a_pictures_cost():
    """Half a second of one core at most, of these weights."""
    told = json.loads(CEILINGS.read_text())
    assert (told["cost"]["batch"], told["cost"]["steps"], told["cost"]["threads"]) == (16, 20, 1)
    assert 0 < told["cost"]["cpu_seconds"] <= 0.5
    assert told["weights"] == {path.name: sha256(path) for path in WEIGHTS.glob("*.safetensors")}


def test_some_ceilings_are_measured_anew(tmp_path, monkeypatch):
    """The rest of the file stays, and the new parts say by which command; never on other weights."""
    before = json.loads(CEILINGS.read_text())
    out, parts = tmp_path / "ceilings.json", ("cost", "same_label_when_shuffled")
    out.write_text(json.dumps(before))
    monkeypatch.setattr(ceilings, "BATCH", 2)
    monkeypatch.setattr(ceilings, "BATCHES", 1)
    monkeypatch.setattr(ceilings, "ALL", ("above", "beside"))
    command = ["ceilings", "--only", *parts, "--pairs", "2", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    ceilings.main()
    told = json.loads(out.read_text())
    assert told["clean"] == before["clean"] and set(told["anew"]) >= set(parts)
    assert told["same_label_when_shuffled"]["cnn"]["n"] == 4 and 0 < told["cost"]["cpu_seconds"] < 30
    assert all(told["anew"][part]["command"].endswith(" ".join(command[1:])) for part in parts)
    assert set(told["weights"]) == {path.name for path in WEIGHTS.glob("*.safetensors")}
    out.write_text(json.dumps(told | {"weights": {}}))
    with pytest.raises(ValueError, match="on other weights"):
        ceilings.main()


def test_weights_fit_the_repository():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 40e6
