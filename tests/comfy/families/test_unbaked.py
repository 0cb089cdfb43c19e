"""A LoRA that rounding would take is added beside the weights, and said so; one that it keeps goes into them."""

import comfy.model_management
import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.lora_files import eraser_for
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.comfy_bridge.unbaked import with_whole_lora
from tests.comfy.columns import new_family
from tests.comfy.families.formats import narrow, quantised, round_no_inputs
from tests.comfy.families.test_family_formats import TIMES, comfyui_velocity, latents, prompt
from tests.comfy.families.words import Words
from tests.comfy.layouts import CASES
from tests.comfy.tiny import new_model
from tests.comfy.training.loras.cases import chosen
from tests.comfy.training.node_runs import execute

COARSE = {
    "fp8": lambda name: narrow(name, torch.float8_e4m3fn)[0],
    "fp8 scaled": lambda name: quantised(name, "float8_e4m3fn", {})[0],
    "int8": lambda name: quantised(name, "int8_tensorwise", {"per_channel": True})[0],
    "nvfp4": lambda name: quantised(name, "nvfp4", {})[0],
}


def lora(size):
    """Of all roles of Qwen-Image."""
    with training_session(new_model("QwenImage"), torch.float32) as model:
        made = model.attach("all", 2, torch.Generator().manual_seed(0))
        for up in made.up:
            up.data.normal_(0, size, generator=torch.Generator().manual_seed(1))
        return made.tensors(torch.float32)


def velocity(patcher):
    """ComfyUI's own prediction."""
    comfy.model_management.load_models_gpu([patcher])
    return comfyui_velocity(new_family("QwenImage"), patcher)


def left(patcher, applied, tensors):
    """The error of the change of the velocity, in sizes of the change that is meant."""
    round_no_inputs(patcher)  # what else ComfyUI rounds is the same with and without the LoRA
    base = velocity(patcher)
    with training_session(patcher, torch.float32) as model:
        model.attach_frozen_lora(tensors)
        family = new_family("QwenImage")
        meant = model.velocity(latents(family), TIMES, model.conds([prompt(family)] * 2, 3.0), adapters=False) - base
    found = velocity(applied) - base
    comfy.model_management.load_models_gpu([patcher])
    return float((found - meant).norm() / meant.norm())


@pytest.mark.parametrize("form", COARSE)
def test_a_small_change_of_coarse_weights_is_added_beside_them(form):
    patcher, tensors = COARSE[form]("QwenImage"), lora(1e-4)
    applied, note = with_whole_lora(patcher, eraser_for(patcher, tensors, {}, "the LoRA"), 1.0)
    assert "added as they are used" in note
    assert left(patcher, applied, tensors) < 0.02
    stock, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
    assert left(patcher, stock, tensors) > 1


def test_a_change_that_the_weights_keep_goes_into_them():
    patcher, tensors = new_model("QwenImage", torch.bfloat16, torch.float32), lora(0.3)
    applied, note = with_whole_lora(patcher, eraser_for(patcher, tensors, {}, "the LoRA"), 1.0)
    assert note == "" and applied.patches and not applied.weight_wrapper_patches


def test_combined_erasers_are_added_beside_coarse_weights(pack):
    from pack_under_test.eraseanything_core.lora.files import LoraModel

    patcher, tensors = COARSE["nvfp4"]("QwenImage"), lora(1e-4)
    values = {"model": patcher, "clip": None, "loras": {"lora0": LoraModel(tensors, {})}, "weights": "1"} | chosen()
    values |= {"preserve": "", "concepts": "", "rank": 0, "energy": 1.0, "density": 0.5, "seed": 0, "mode": "sum"}
    applied, _, summary = execute(pack["EraseAnything_MultiEraseLoRA"], values).args
    assert "added as they are used" in summary.splitlines()[-1]
    assert left(patcher, applied, tensors) < 0.02


def test_erase_now_says_where_its_eraser_is(pack, monkeypatch):
    """As if rounding took it: in closed form a change is large, and these weights would keep it."""
    from pack_under_test.eraseanything_core.lora.kept_change import KeptChange

    monkeypatch.setattr(KeptChange, "is_lost", property(lambda change: True))
    patcher = COARSE["fp8"]("QwenImage")
    values = {"model": patcher, "clip": Words(CASES["QwenImage"]), "concept": "star", "method": "UCE"}
    applied, _, report = execute(pack["EraseAnything_EraseNow"], values | {"rank": 1, "seed": 0}).args
    assert "added as they are used" in report and "WARNING" not in report
    assert applied.weight_wrapper_patches and not applied.patches


def test_the_trainer_says_where_its_eraser_is(trainer):
    """Two pairs at a small rate: rounding would take all of it."""
    applied, _, report, _ = trainer("QwenImage", COARSE["nvfp4"]("QwenImage"), lr_low=1e-5, lr_up=1e-5).args
    assert "added as they are used" in report
    assert applied.weight_wrapper_patches and not applied.patches
