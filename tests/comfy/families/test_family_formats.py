"""Base weights as ComfyUI loads them, on other families: the LoRA's gradient against the same weights unpacked."""

import comfy.samplers
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.protocols import Conditioning
from tests.comfy.columns import new_family
from tests.comfy.families.formats import in_blocks, narrow, partly_loaded, quantised, round_no_inputs
from tests.comfy.families.small import FAMILIES
from tests.comfy.tiny import new_model

SOME = ("Lumina2", "QwenImage", "Flux2", "Chroma", "SD3", "SDXL", "WAN21_T2V")
BF16 = torch.bfloat16
GROUPS = {"convrot_groupsize": 64}
QUANTISED = [(form, GROUPS if "convrot" in form else {}) for form in QUANT_ALGOS]
QUANTISED += [
    ("int8_tensorwise", {"per_channel": True}),
    ("int8_tensorwise", {"per_channel": True, "convrot": True, **GROUPS}),
]
ROUNDING = 0.03
ROUTED = {"HiDream": 0.1}  # its router takes other experts where two are scored alike
TIMES = torch.tensor([0.6, 0.3])


def prompt(family):
    """The made-up prompt of a family."""
    context, entries = family.positive[0]
    more = {key: value for key, value in entries.items() if key != "pooled_output"}
    return Conditioning(context, entries["pooled_output"], more)


def latents(family):
    """Two noisy pictures."""
    size = family.case.size
    return torch.randn(2, size[0], *size[-2:], generator=torch.Generator().manual_seed(1))


def gradient(name, patcher, dtype=torch.float32, checkpoint=False):
    """Of a weighted sum of the velocity, with adapters that are not zero."""
    family = new_family(name)
    with training_session(patcher, dtype, checkpoint) as model:
        lora = model.attach("all", 2, torch.Generator().manual_seed(2))
        for up in lora.up:
            up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
        conds = model.conds([prompt(family)] * 2, 3.0)
        v = model.velocity(latents(family), TIMES, conds, adapters=True)
        (v * torch.linspace(-1, 1, v.numel()).view_as(v)).sum().backward()
        # What no image token reads any more has none.
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in lora.parameters()]
        return torch.cat([part.flatten() for part in found])


def close(found, expected, error):
    assert expected.norm() > 0 and (found - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("checkpoint", (False, True), ids=("plain", "recomputed"))
@pytest.mark.parametrize("name", SOME)
def test_fp8(name, checkpoint):
    """UNETLoader's weight_dtype."""
    packed, plain = narrow(name, torch.float8_e4m3fn)
    close(gradient(name, packed, checkpoint=checkpoint), gradient(name, plain), 1e-3)


@pytest.mark.parametrize("name", ("ChromaRadiance", "ZImagePixelSpace"))
def test_fp8_is_refused_where_comfyui_cannot_sample_in_it(name):
    """Their embedders of pixels make positions in the weights' type. Quantised files keep these layers as they are."""
    packed, _ = narrow(name, torch.float8_e4m3fn)
    with pytest.raises(NotImplementedError, match="linspace"):
        comfyui_velocity(new_family(name), packed)
    with pytest.raises(ValueError, match="which fails in 8 bits: load it as bf16"), training_session(packed):
        raise AssertionError("it is lent")
    scaled, plain = quantised(name, "float8_e4m3fn", {})
    round_no_inputs(scaled)
    close(gradient(name, scaled), gradient(name, plain), 1e-3)


@pytest.mark.parametrize("form, options", QUANTISED, ids=str)
@pytest.mark.parametrize("name", SOME)
def test_quantised_tensors(name, form, options):
    """All that ComfyUI has. Backward is exact for the unpacked weights: it rounds no gradient."""
    packed, plain = quantised(name, form, options)
    held = [layer for layer in packed.model.diffusion_model.modules() if hasattr(layer, "in_features")]
    assert sum(isinstance(layer.weight, QuantizedTensor) for layer in held) > 5
    round_no_inputs(packed)
    close(gradient(name, packed), gradient(name, plain), 1e-3)


@pytest.mark.parametrize("form", ("Q8_0", "Q4_0"))
@pytest.mark.parametrize("name", SOME)
def test_layers_that_unpack_themselves(name, form):
    packed, plain = in_blocks(name, form)
    close(gradient(name, packed), gradient(name, plain), 1e-3)


@pytest.mark.parametrize("name", SOME)
def test_partly_loaded(name):
    packed, plain = partly_loaded(name)
    close(gradient(name, packed), gradient(name, plain), 1e-5)


def comfyui_velocity(family, patcher):
    """ComfyUI's own prediction at the same points, as a velocity."""
    base, x, t = patcher.model, latents(family), TIMES
    x = x[:, :, None] if base.latent_format.latent_dimensions == 3 else x
    axes = (-1, *[1] * (x.ndim - 1))
    is_flow = isinstance(base.model_sampling, comfy.model_sampling.CONST)
    sigma = t if is_flow else t / (1 - t)
    given = x if is_flow else x / (1 - t).view(axes)
    context, entries = family.positive[0]
    with torch.inference_mode():
        positive = comfy.sampler_helpers.convert_cond([[context, {**entries, "guidance": 3.0}]])
        one = x[:1]
        conds = comfy.samplers.process_conds(base, one, {"positive": positive}, x.device, one, None, 0)
        area = comfy.samplers.get_area_and_mult(conds["positive"][0], one, TIMES[:1])
        options = {"cond_or_uncond": [0], "sigmas": sigma, "sample_sigmas": sigma}
        both = comfy.samplers.cond_cat([area.conditioning] * 2)
        x_0 = base.apply_model(given, sigma, transformer_options=options, **both)
    v = (x - x_0) / t.view(axes)
    return v[:, :, 0] if v.ndim == 5 else v


@pytest.mark.parametrize("name", FAMILIES)
def test_computed_in_bfloat16(name):
    """As on a card: what is trained predicts what ComfyUI predicts, and has a gradient."""
    family, patcher = new_family(name), new_model(name, BF16)
    with training_session(patcher, BF16) as model:
        v = model.velocity(latents(family), TIMES, model.conds([prompt(family)] * 2, 3.0), adapters=False)
    expected = comfyui_velocity(family, patcher)
    error = float((v - expected).norm() / expected.norm())
    print(f"{name}: {error:.4f}")
    assert error < ROUTED.get(name, ROUNDING)
    found = gradient(name, patcher, BF16)
    assert found.isfinite().all() and found.any()
