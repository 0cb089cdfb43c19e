"""FLUX.1's shorter road gives what ComfyUI's own road gives, bit for bit."""

import pytest
import torch

from eraseanything_core.comfy_bridge.any_model import any_model
from eraseanything_core.comfy_bridge.frozen_view import dissolve, frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.training_session import training_session


def run(model, factors, encodings):
    """Velocities of student and teacher, the columns of a word, and a gradient."""
    lora = model.attach("text k,v", 4, torch.Generator().manual_seed(0))
    if factors:
        lora.load(factors)
    g = torch.Generator().manual_seed(1)
    x_t, sigma = torch.randn(2, 16, 12, 12, generator=g), torch.tensor([0.9, 0.31])
    cond = model.conds(encodings, 2.5)
    select = torch.zeros(2, encodings[0].context.shape[1], 1)
    select[:, 3:5] = 1
    capture = model.capture(select)
    teacher = model.velocity(x_t, sigma, cond, adapters=False)
    student = model.velocity(x_t, sigma, cond, adapters=True, capture=capture)
    loss = student.square().mean() + sum(columns.mean() for columns in capture.maps.values())
    loss.backward()
    gradients = {part.file_key: up.grad for part, up in zip(lora.parts, lora.up, strict=True)}
    walk = [x for x, _ in model.trajectory(cond, x_t, model.sigmas(3))]
    return lora, [teacher, student.detach(), *walk], capture.maps, gradients


@pytest.mark.parametrize("checkpoint", (False, True), ids=("plain", "recomputed"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_both_roads_give_the_same_bits(patcher, clip, dtype, checkpoint):
    text = ComfyHost(patcher, clip).text_encoder()
    encodings = [text.encode("a red star"), text.encode("a house at night")]
    factors = None
    with training_session(patcher, dtype, checkpoint) as model:
        lora = model.attach("text k,v", 4, torch.Generator().manual_seed(0))
        for up in lora.up:
            up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
        factors = lora.tensors(torch.float32)
        base = patcher.model
    with training_session(patcher, dtype, checkpoint) as model:
        _, results, maps, gradients = run(model, factors, encodings)
    with torch.inference_mode(False), torch.enable_grad():
        module = frozen_view(base.diffusion_model, dtype)
        other = any_model(base, module, base.model_sampling, "cpu", dtype)
        with exact_gradients(module, checkpoint):
            _, own_results, own_maps, own_gradients = run(other, factors, encodings)
        dissolve(module)
    assert all(torch.equal(one, own) for one, own in zip(results, own_results, strict=True))
    assert maps.keys() == own_maps.keys() and all(torch.equal(maps[block], own_maps[block]) for block in maps)
    assert all(torch.equal(gradients[key], own_gradients[key]) for key in gradients)
