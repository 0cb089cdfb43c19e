"""The models of the world of real pictures in stock ComfyUI draw what the lab's sampler draws."""

import contextlib

import folder_paths
import nodes
import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from comfy_extras.nodes_sd3 import EmptySD3LatentImage

from lab.world import autoencoder, files, latents, sampling
from lab.world.generators import GENERATORS
from lab.world.text import Captions

SEED = 5
STEPS = 4
GUIDANCE = 2.0


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """With weights that are nowhere zero: those of a fresh generator draw nothing."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


@pytest.fixture
def space():
    return latents.Space(autoencoder.fresh().eval().requires_grad_(False), mean=0.1, std=1.3)


@pytest.fixture
def exact(monkeypatch):
    """Float32 throughout."""
    for module in (sampling, latents):
        monkeypatch.setattr(module.precision, "autocast", contextlib.nullcontext)


def stock_picture(pack, folder, name: str, prompt: str, distilled: bool) -> torch.Tensor:
    """One picture [1, 3, 96, 96] by stock nodes and the loader of the text encoder."""
    for kind in ("diffusion_models", "text_encoders", "vae"):
        folder_paths.add_model_folder_path(kind, str(folder))
    (model,) = nodes.UNETLoader().load_unet(f"world-{name}.safetensors", "default")
    (vae,) = nodes.VAELoader().load_vae(f"world-{name}-vae.safetensors")
    (clip,) = pack["EraseAnything_TinyFlux"].execute(f"world-{name}-text.safetensors").args
    (asked,) = nodes.CLIPTextEncode().encode(clip, prompt)
    (empty,) = nodes.CLIPTextEncode().encode(clip, "")
    if distilled:
        (asked,) = FluxGuidance.execute(asked, GUIDANCE).args
    (latent,) = EmptySD3LatentImage.execute(96, 96, 1).args
    cfg = 1.0 if distilled else GUIDANCE
    (drawn,) = nodes.KSampler().sample(model, SEED, STEPS, cfg, "euler", "simple", asked, empty, latent)
    return vae.decode(drawn["samples"]).movedim(-1, 1)


@pytest.mark.parametrize(("name", "distilled"), [("tinyflux", True), ("tinyz", False)])
def test_stock_nodes_draw_what_the_labs_sampler_draws(pack, tmp_path, space, exact, name, distilled):
    generator = filled(GENERATORS[name]())
    files.save(generator.net.state_dict(), tmp_path / f"world-{name}.safetensors")
    files.save(generator.encoder.state_dict(), tmp_path / f"world-{name}-text.safetensors")
    files.save(space.file(), tmp_path / f"world-{name}-vae.safetensors")
    own = sampling.Sampler(generator, space, Captions(seed=0), distilled, STEPS, GUIDANCE)
    ours = own.pictures(["a cat on a blue background"], [SEED])
    with torch.inference_mode():
        theirs = stock_picture(pack, tmp_path, name, "a cat on a blue background", distilled)
    assert ours.std() > 0.01
    # The stock VAE may compute in bf16.
    torch.testing.assert_close(theirs.float(), ours, atol=2e-2, rtol=0)
