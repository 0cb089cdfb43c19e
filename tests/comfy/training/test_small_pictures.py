"""The small pictures of a look come from a decoder that costs nothing."""

import gc

import comfy.model_management as management
import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from eraseanything_core.comfy_bridge.previews import small_pictures
from lab.tinyflux.pipeline import WEIGHTS


@pytest.fixture
def weights():
    """TinyFlux's autoencoder, which is a TAESD."""
    return load_file(WEIGHTS / "tinyflux_vae.safetensors")


def test_small_pictures_by_the_given_vae(patcher, weights):
    vae, latents = comfy.sd.VAE(sd=weights), torch.randn(3, 16, 12, 12)
    expected = vae.decode(patcher.model.process_latent_out(latents))
    assert torch.allclose(small_pictures(patcher, latents, vae), expected, atol=1e-4)


@pytest.mark.parametrize("taesd", (True, False))
def test_small_pictures_without_a_large_vae(patcher, weights, tmp_path, monkeypatch, taesd):
    """On a CPU it would take 10 s a picture, and every look has three."""
    decoder = {k.removeprefix("taesd_decoder."): v for k, v in weights.items() if k.startswith("taesd_decoder.")}
    if taesd:
        save_file(decoder, tmp_path / "taef1_decoder.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    vae, latents = comfy.sd.VAE(sd=weights), torch.randn(3, 16, 12, 12)
    expected = small_pictures(patcher, latents)
    with torch.device("meta"):
        vae.first_stage_model.unused = torch.nn.Linear(4096, 4096)
    assert torch.equal(small_pictures(patcher, latents, vae), expected)
    assert expected.shape[1] == (96 if taesd else 12)


def test_small_pictures_by_taesd(patcher, weights, tmp_path, monkeypatch):
    """The decoder that the user has in models/vae_approx; no VAE is loaded for it."""
    decoder = {k.removeprefix("taesd_decoder."): v for k, v in weights.items() if k.startswith("taesd_decoder.")}
    save_file(decoder, tmp_path / "taef1_decoder.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    # What earlier tests have left goes first: it would be collected in the middle of this one.
    gc.collect()
    management.cleanup_models()
    latents, before = torch.randn(3, 16, 12, 12), list(management.current_loaded_models)
    found = small_pictures(patcher, latents)
    expected = comfy.sd.VAE(sd=weights).decode(patcher.model.process_latent_out(latents))
    assert found.shape == (3, 96, 96, 3) and torch.allclose(found.clamp(0, 1), expected, atol=1e-4)
    assert management.current_loaded_models[: len(before)] == before


def test_small_pictures_without_a_vae(patcher):
    pictures = small_pictures(patcher, torch.randn(3, 16, 12, 12))
    assert pictures.shape == (3, 12, 12, 3) and pictures.min() >= 0 and pictures.max() <= 1
