"""What the host says of a model, and what it leaves behind, when other nodes use the same weights."""

import gc
import json
import weakref
from contextlib import contextmanager

import comfy.model_management
import comfy.sample
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.patch import with_lora_between
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.protocols import Conditioning
from eraseanything_core.training.recipe import train_eraser
from tests.comfy.columns import new_family

LINEAR = "double_blocks.0.txt_attn.qkv.weight"
KEY = "transformer_blocks.0.attn.add_k_proj"


def lora():
    """On the text stream's k of the first block, large enough to see."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"transformer.{KEY}.lora_A.weight": torch.randn(4, 256, generator=generator),
        f"transformer.{KEY}.lora_B.weight": torch.randn(256, 4, generator=generator),
    }


def with_stock_lora(patcher):
    """A clone that the stock LoraLoader has made, loaded: its LoRA is in the weights that all clones share."""
    adapted, _ = comfy.sd.load_lora_for_models(patcher, None, lora(), 1.0, 0)
    comfy.model_management.load_models_gpu([adapted])
    return adapted


@pytest.fixture
def quantised_patcher(flux_weights):
    """An fp8 checkpoint whose linear is a tensor with a scale of its own."""
    state = dict(flux_weights)
    layout = QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
    state |= QuantizedTensor.from_float(state[LINEAR], layout).state_dict(LINEAR)
    told = json.dumps({"format": "float8_e4m3fn"}).encode()
    state[LINEAR.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(state)


@pytest.mark.parametrize("weights", ("patcher", "quantised_patcher"))
def test_the_fingerprint_is_of_the_unpatched_weights(request, clip, weights):
    """Whatever LoRA of another clone is in the shared weights: a run must know its base model again."""
    patcher = request.getfixturevalue(weights)
    module = patcher.model.diffusion_model
    original = ComfyHost(patcher, clip).fingerprint()
    before = module.get_parameter(LINEAR)
    adapted = with_stock_lora(patcher)
    assert not torch.equal(before, module.get_parameter(LINEAR)), "the LoRA is not in the weights"
    assert ComfyHost(patcher, clip).fingerprint() == original
    assert ComfyHost(adapted, clip).fingerprint() == original
    with ComfyHost(patcher, clip).session():
        pass
    assert ComfyHost(patcher, clip).fingerprint() == original


def test_a_run_is_resumed_while_a_lora_is_in_the_shared_weights(patcher, clip, config, tmp_path):
    """A node has sampled with a LoRA between the two runs. The finished run is read again, nothing is refused."""
    first = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
    with_stock_lora(patcher)
    again = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
    assert again.steps == first.steps == config.steps
    assert all(torch.equal(first.lora[name], again.lora[name]) for name in first.lora)


def test_the_fingerprint_tells_models_apart(patcher, make_flux, clip):
    state = dict(make_flux().state_dict())
    state[LINEAR] = state[LINEAR] + 1
    with torch.inference_mode():
        other = comfy.sd.load_diffusion_model_state_dict(state)
    assert ComfyHost(patcher, clip).fingerprint() != ComfyHost(other, clip).fingerprint()


def sampled(model, clip):
    context, pooled = clip.encode_from_tokens(clip.tokenize("a red star"), return_pooled=True)
    condition = [[context, {"pooled_output": pooled, "guidance": 2.0}]]
    latent = torch.zeros(1, 16, 12, 12)
    noise = comfy.sample.prepare_noise(latent, 7)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 4, 1.0, "euler", "simple", condition, condition, latent, disable_pbar=True, seed=7
        )


def test_a_scheduled_lora_does_not_accumulate_in_resident_weights(patcher, clip, monkeypatch):
    """Under DynamicVRAM the wrapper of a weight is given the resident weight, and not a copy that was cast for it."""
    plain = sampled(patcher, clip)
    model = with_lora_between(patcher, read_eraser(lora(), {}, "lora"), 0.1, 1.0, 0.0)
    expected = sampled(model, clip)
    cast_to = comfy.model_management.cast_to

    def without_copy(weight, dtype=None, device=None, non_blocking=False, copy=False, stream=None, r=None):
        return cast_to(weight, dtype, device, non_blocking, False, stream, r)

    monkeypatch.setattr(comfy.model_management, "cast_to", without_copy)
    weight = patcher.model.diffusion_model.get_parameter(LINEAR)
    before = weight.clone()
    first, second = sampled(model, clip), sampled(model, clip)
    assert not torch.equal(plain, expected), "the LoRA changes nothing"
    assert torch.equal(first, expected) and torch.equal(second, expected)
    assert torch.equal(weight, before)


def test_the_factors_of_a_scheduled_lora_are_moved_once(patcher):
    """`meta` stands for the device: it is one that every PyTorch has."""
    model = with_lora_between(patcher, read_eraser(lora(), {}, "lora"), 1.0, 1.0, 0.0)
    (wrapper,) = model.weight_wrapper_patches[f"diffusion_model.{LINEAR}"]
    wrapper.window.is_open = True
    wrapper(torch.empty(768, 256, device="meta"))
    assert {factor.device.type for factor in wrapper.factors} == {"meta"}


@pytest.fixture
def without_gc():
    """Only reference counts free memory, as between two runs of the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("gradient_checkpointing", (False, True))
def test_static_copies_go_with_their_sessions(
    patcher, flux_weights, clip, monkeypatch, without_gc, gradient_checkpointing
):
    """Under DynamicVRAM a session loads the model a second time. Its memory must be free when the session ends."""
    copies = []
    freed = []

    def alive():
        return [copy() is not None for copy in copies]

    def clone(disable_dynamic=False):
        with torch.inference_mode():
            static = comfy.sd.load_diffusion_model_state_dict({k: v.clone() for k, v in flux_weights.items()})
        copies.append(weakref.ref(static.model.diffusion_model.get_parameter(LINEAR)))
        return static

    monkeypatch.setattr(patcher, "clone", clone)
    monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    monkeypatch.setattr(patcher, "cached_patcher_init", (clone, ()))
    monkeypatch.setattr(comfy.model_management, "soft_empty_cache", lambda: freed.append(alive()))
    host = ComfyHost(patcher, clip)
    context, pooled = host.text_encoder().encode("a red star")
    generator = torch.Generator().manual_seed(0)
    x_t, sigma = torch.randn(1, 16, 4, 4, generator=generator), torch.tensor([0.5])
    for _ in range(3):
        with host.session(gradient_checkpointing=gradient_checkpointing) as model:
            model.attach_frozen_lora(lora())
            trained = model.attach("paper", 2, generator)
            model.velocity(x_t, sigma, model.cond(context, pooled, 2.0), adapters=True).sum().backward()
            assert alive()[-1]
        assert any(p.grad.abs().max() > 0 for p in trained.parameters())
    # PyTorch's own cache is emptied after the copy has gone, not before.
    assert freed == [[False], [False, False], [False, False, False]]


@pytest.mark.parametrize("name", ("QwenImage", "SDXL"))
@pytest.mark.parametrize("gradient_checkpointing", (False, True))
def test_static_copies_of_other_families_go_with_their_sessions(monkeypatch, without_gc, name, gradient_checkpointing):
    """They run on ComfyUI's own road, with more closures around their modules."""
    family = new_family(name)
    patcher, copies = family.model, []

    def clone(disable_dynamic=False):
        static = new_family(name).model
        copies.append(weakref.ref(next(static.model.diffusion_model.parameters())))
        return static

    monkeypatch.setattr(patcher, "clone", clone)
    monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    monkeypatch.setattr(patcher, "cached_patcher_init", (clone, ()))
    context, entries = family.positive[0]
    more = {key: value for key, value in entries.items() if key != "pooled_output"}
    prompt = Conditioning(context, entries["pooled_output"], more)
    size, generator = family.case.size, torch.Generator().manual_seed(0)
    x_t = torch.randn(1, size[0], *size[-2:], generator=generator)
    for number in range(3):
        with training_session(patcher, torch.float32, gradient_checkpointing) as model:
            trained = model.attach("text k,v", 2, generator)
            v = model.velocity(x_t, torch.tensor([0.5]), model.conds([prompt], 3.0), adapters=True)
            v.sum().backward()
            assert copies[-1]() is not None
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained.parameters())
        del model, v
        assert [copy() is not None for copy in copies] == [False] * (number + 1)


def test_a_session_runs_on_the_card_of_its_weights(patcher, clip, monkeypatch):
    """Kernels for quantised weights run on the current card, which may be another one."""
    entered = []

    @contextmanager
    def on_card(device):
        entered.append(device)
        yield
        entered.append("left")

    monkeypatch.setattr(comfy.model_management, "cuda_device_context", on_card)
    with ComfyHost(patcher, clip).session():
        assert entered == [patcher.load_device]
    assert entered == [patcher.load_device, "left"]
