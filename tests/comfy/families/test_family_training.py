"""Erase Trainer on every family: two pairs through the node, its file in the stock loader, and the MODEL as before."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from safetensors import safe_open

from eraseanything_core.comfy_bridge.lora_files import eraser_for
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora.apply import LoraScale, lora_applied
from tests.comfy.columns import new_family, sample
from tests.comfy.families.small import FAMILIES
from tests.comfy.training.node_runs import losses_of, stop_after, written

NO_TEXT_ALONE = ("CogVideoX_T2V", "ErnieImage", "HiDreamO1", "Ideogram4")  # every linear reads text and image


def random_lora(patcher, targets="text k,v"):
    """A LoRA that is large enough to see, and the velocity with and without it."""
    with training_session(patcher, torch.float32) as model:
        lora = model.attach(targets, 2, torch.Generator().manual_seed(0))
        for up in lora.up:
            up.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        return lora.tensors(torch.float32)


def targets_of(name):
    """Families without linears for the text alone have those of both."""
    return "image k,v" if name in NO_TEXT_ALONE else "embedder" if name == "Stable_Cascade_C" else "text k,v"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stock_loader_gives_what_the_adapters_give(name):
    """Sampled through ComfyUI with the file in the weights, and walked here with the same factors as adapters."""
    family = new_family(name)
    patcher = family.model
    targets = targets_of(name)
    tensors = random_lora(patcher, targets)
    stock, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
    assert len(stock.patches) > 0, "the stock loader takes no key"
    loaded = sum(len(patches) for patches in stock.patches.values())
    assert loaded == len(tensors) // 2, "the stock loader does not take every key"
    plain, expected = sample(family, patcher), sample(family, stock)
    held = adapted_sample(family, patcher, tensors)
    moved = (expected - plain).abs().max()
    assert moved > 1e-4 * plain.abs().max(), "the LoRA changes nothing"
    assert (held - expected).abs().max() < 2e-2 * moved
    assert torch.equal(sample(family, patcher), plain), "the caller's MODEL has changed"


def adapted_sample(family, patcher, tensors):
    """As `sample`, with the LoRA on the outputs of the linears."""
    eraser = eraser_for(patcher, tensors, {}, "the LoRA")
    with lora_applied(patcher.model.diffusion_model, eraser, LoraScale(1.0)):
        return sample(family, patcher)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_node_trains(trainer, loras, name):
    family = new_family(name)
    plain = sample(family, family.model)
    output = trainer(name, family.model)
    losses = losses_of()
    # The learning rates rise from 0, so the first pair has a student that is the teacher.
    assert len(losses["loss"]) == 2 and all(losses[loss][1] > 0 for loss in ("esd", "attn", "retain")), losses
    with safe_open(written(output, loras), "pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    assert header["eraseanything.family"] == name and header["modelspec.architecture"] == f"{name}/lora"
    assert all(tensor.any() for key, tensor in tensors.items() if "lora_A" in key or "lora_down" in key)
    assert any(tensor.any() for key, tensor in tensors.items() if "lora_B" in key or "lora_up" in key)
    assert torch.equal(sample(family, family.model), plain), "the caller's MODEL has changed"
    assert not torch.equal(sample(family, output.args[0]), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stopped_run_goes_on_to_the_same_bits(trainer, name, monkeypatch):
    patcher = new_family(name).model
    whole = trainer(name, patcher, "whole", save_every=1).args[1]
    with monkeypatch.context() as pressing:
        stop_after(1, pressing)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            trainer(name, patcher, save_every=1)
    went_on = trainer(name, patcher, save_every=1)
    assert "went on from step 1" in went_on.args[2]
    assert all(torch.equal(whole[key], went_on.args[1][key]) for key in whole)
