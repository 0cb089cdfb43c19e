"""Concept Ablation on pictures of the user: from IMAGE to latents, and through Erase Settings and Erase Trainer."""

import comfy.sd
import comfy.utils
import pytest
import torch

from eraseanything_core.comfy_bridge.user_pictures import picture_latents
from eraseanything_core.lora.files import load_lora
from eraseanything_core.tinyflux.world import Object, Scene, render
from tests.comfy.training.loras.cases import ROOT
from tests.comfy.training.node_runs import Vae, execute, losses_of, written

WEIGHTS = ROOT / "eraseanything_core" / "tinyflux" / "weights"


class Encoder(Vae):
    """One latent for a picture: its mean brightness everywhere."""

    def __init__(self):
        self.shapes = []

    def encode(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        return pixels.mean().expand(1, 16, pixels.shape[1] // 8, pixels.shape[2] // 8)


def scene(entity, colour):
    return render(Scene((Object(entity, colour, 48, 48, 24),), "white")).movedim(0, -1)


def test_latents_of_pictures_are_those_that_decode_to_them():
    """With TinyFlux's own VAE: what is left of a picture is its own, not another one's."""
    patcher = comfy.sd.load_diffusion_model(str(WEIGHTS / "tinyflux.safetensors"))
    state = comfy.utils.load_torch_file(str(WEIGHTS / "tinyflux_vae.safetensors"))
    vae = comfy.sd.VAE(sd=state)
    pictures = torch.stack([scene("star", "red"), scene("ball", "blue")])
    wide = torch.cat((pictures[:, :, :24], pictures, pictures[:, :, -24:]), 2)  # the middle of it is kept
    with torch.inference_mode():
        latents = picture_latents(patcher, wide, vae, 96, 96)
        back = vae.decode(patcher.model.process_latent_out(latents)).cpu()
    assert latents.shape[0] == 2 and latents.dtype == torch.float32 and not latents.is_inference()
    errors = (back[:, None] - pictures[None]).square().mean((2, 3, 4))
    assert errors.diagonal().max() < 0.2 * errors[0, 1], errors


def linked(settings_node, pictures, method="Concept Ablation"):
    """Settings with the method and the pictures, as the node makes them."""
    group = {"group": "method", "method": {"method": method}}
    return execute(settings_node, {"group": group, "pictures": pictures}).args[0]


def test_the_trainer_leads_to_the_pictures(trainer_node, settings_node, widgets, loras):
    pictures = torch.rand(2, 64, 80, 3, generator=torch.Generator().manual_seed(0))
    settings, vae = linked(settings_node, pictures), Encoder()
    output = execute(trainer_node, widgets | {"vae": vae}, **settings)
    assert vae.shapes == [(1, 96, 96, 3)] * 2, "each by itself, in the size of the training"
    assert set(losses_of()) == {"ablation", "loss"}
    first = load_lora(written(output, loras))[1]["eraseanything.anchor_pictures"]
    # Other pictures are another run, whose loss is another.
    before = losses_of()
    output = execute(trainer_node, widgets | {"vae": vae}, **settings | {"pictures": 0.1 * pictures})
    assert load_lora(written(output, loras))[1]["eraseanything.anchor_pictures"] != first
    assert losses_of("eraser_2")["ablation"] != before["ablation"]


def test_methods_without_pictures_refuse_them_before_the_vae_runs(trainer_node, settings_node, widgets, loras):
    vae = Encoder()
    settings = linked(settings_node, torch.rand(1, 64, 64, 3), "ESD")
    with pytest.raises(ValueError, match="ESD takes no pictures: choose Concept Ablation, or unlink `pictures`"):
        execute(trainer_node, widgets | {"vae": vae}, **settings)
    assert not vae.shapes and not loras.exists()


def test_a_batch_refuses_pictures(pack):
    values = {"model": None, "clip": None, "concept_list": "cat", "preset": "quick", "output_name": "x", "seed": 0}
    more = {"merge": "sum", "workers": 0, "address": "", "settings": {"pictures": torch.rand(1, 8, 8, 3)}}
    with pytest.raises(ValueError, match="Erase Trainer Batch takes no pictures"):
        execute(pack["EraseAnything_EraseBatch"], values | more)
