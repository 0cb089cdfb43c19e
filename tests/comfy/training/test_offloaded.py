"""Weights that ComfyUI leaves in main memory, moves or streams while a training runs."""

import comfy.memory_management
import comfy.model_management
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.training_session import training_session

META = torch.device("meta")  # stands for a card: it is a device that every PyTorch has
BUFFER = 2**22  # bytes; more than any layer of the small model takes


@pytest.fixture
def one_cast_buffer(monkeypatch):
    """ComfyUI as it casts offloaded weights without cuda_malloc: all of them into the same bytes, one after another."""
    buffer = torch.zeros(BUFFER, dtype=torch.uint8)

    def into_buffer(tensor, start, dtype):
        if tensor is None:
            return None
        place = buffer[start : start + tensor.numel() * dtype.itemsize].view(dtype).view(tensor.shape)
        place.data.copy_(tensor)  # a stream's copy, of which autograd notices nothing
        return place.detach()

    def cast_bias_weight(layer, input=None, dtype=None, device=None, **options):
        dtype = dtype or input.dtype
        weight = into_buffer(layer.weight, 0, dtype)
        return weight, into_buffer(layer.bias, layer.weight.numel() * dtype.itemsize, dtype), None

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast_bias_weight)


def gradient(patcher, recompute):
    """Of the mean squared velocity at one point, with adapters that are not zero."""
    generator = torch.Generator().manual_seed(0)
    flux = patcher.model.diffusion_model
    x_t = torch.randn(1, 16, 8, 8, generator=generator)
    context = torch.randn(1, 6, flux.params.context_in_dim, generator=generator)
    pooled = torch.randn(1, flux.params.vec_in_dim, generator=generator)
    with training_session(patcher, torch.float32, recompute) as model:
        lora = model.attach("all_qkv", 4, generator)
        for up in lora.up:
            up.data.normal_(0, 0.1, generator=generator)
        v = model.velocity(x_t, torch.tensor([0.7]), model.cond(context, pooled, 2.0), adapters=True)
        v.pow(2).mean().backward()
        return torch.cat([p.grad.flatten() for p in lora.parameters()])


@pytest.mark.parametrize("recompute", (False, True), ids=("kept", "recomputed"))
def test_the_gradient_of_an_offloaded_model_is_that_of_a_resident_one(patcher, request, recompute):
    flux = patcher.model.diffusion_model
    # At first all scales are equal, and one layer's is as good as another's.
    scales = [p for name, p in flux.named_parameters() if "_norm." in name]
    with torch.inference_mode():
        for i, scale in enumerate(scales):
            scale.copy_(torch.linspace(0.5, 2.0, len(scale)).roll(i))
    expected = gradient(patcher, recompute)
    for layer in flux.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = True  # as ComfyUI marks what it leaves in main memory
    request.getfixturevalue("one_cast_buffer")
    found = gradient(patcher, recompute)
    assert expected.norm() > 0 and (found - expected).norm() < 1e-5 * expected.norm()


def test_scales_lie_on_the_device_in_the_compute_type(patcher):
    flux = patcher.model.diffusion_model
    twin = frozen_view(flux, torch.bfloat16, META)
    for name, parameter in twin.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert parameter.device.type == ("meta" if "_norm." in name else "cpu"), name
    assert not any(parameter.is_meta for parameter in flux.parameters())


@pytest.mark.parametrize("quantised", (False, True))
def test_a_view_follows_the_moves_of_comfyui(patcher, quantised):
    """ComfyUI makes room for another model while a training runs."""
    layer = patcher.model.diffusion_model.double_blocks[0].img_attn.qkv
    if quantised:
        layout = QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
        held = QuantizedTensor.from_float(layer.weight.detach().clone(), layout)
        layer.weight = torch.nn.Parameter(held, requires_grad=False)
        layer._apply = lambda fn, recurse=True: comfy.ops._quantized_apply(layer, fn, recurse)
    twin = frozen_view(layer, torch.float32)
    assert twin.comfy_cast_weights, "a weight that is moved later on would not be cast back"
    layer.to(META)
    assert twin.weight.device.type == "meta" and twin.weight is layer.weight


def test_a_streamed_model_trains_in_the_type_that_was_asked_for(make_flux, monkeypatch):
    """DynamicVRAM's loader keeps the file's type and casts when it streams; the session's own copy is not streamed."""
    state = make_flux(torch.bfloat16).state_dict()
    options = {"dtype": torch.float8_e4m3fn}
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)

    def load(disable_dynamic=False):
        copies = {name: tensor.clone() for name, tensor in state.items()}
        with torch.inference_mode():
            return comfy.sd.load_diffusion_model_state_dict(copies, options, disable_dynamic=disable_dynamic)

    patcher = load()
    patcher.cached_patcher_init = (load, ())
    monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    assert patcher.model.diffusion_model.img_in.weight.dtype == torch.bfloat16
    estimate = ComfyHost(patcher, None).estimate(32, 96, 96, 1, 0, torch.bfloat16)
    with training_session(patcher, torch.bfloat16) as model:
        layers = [layer for layer in model.module.modules() if isinstance(layer, torch.nn.Linear)]
        assert {layer.weight.dtype for layer in layers} == {torch.float8_e4m3fn}
        loaded = comfy.model_management.current_loaded_models[0]  # the one that came last
        assert loaded.model.model_size() == estimate.weights < 0.55 * patcher.model_size()
        rounded = state["img_in.weight"].to(torch.float8_e4m3fn)
        assert torch.equal(model.module.img_in.weight.float(), rounded.float())
    assert patcher.model.diffusion_model.img_in.weight.dtype == torch.bfloat16
