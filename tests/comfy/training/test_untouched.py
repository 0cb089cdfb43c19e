"""Whatever happens in training, the caller's MODEL is bit for bit as before."""

import dataclasses

import comfy.model_management
import comfy.sample
import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.training import trainer
from eraseanything_core.training.plan import conds, prepare
from eraseanything_core.training.recipe import train_eraser


def sampled(patcher, clip):
    """Two steps of the stock sampler with a fixed seed, inside inference mode as ComfyUI runs it."""
    with torch.inference_mode():
        context, pooled = clip.encode_from_tokens(clip.tokenize("a photo of red star"), return_pooled=True)
        cond = [[context, {"pooled_output": pooled, "guidance": 2.0}]]
        latent = torch.zeros(1, 16, 12, 12)
        noise = comfy.sample.prepare_noise(latent, 7)
        return comfy.sample.sample(
            patcher, noise, 2, 1.0, "euler", "simple", cond, cond, latent, disable_pbar=True, seed=7
        )


def state(patcher):
    module = patcher.model.diffusion_model
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flags = [(p.requires_grad, p.is_inference()) for p in module.parameters()]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) + ("forward" in m.__dict__) for m in module.modules()]
    return weights, flags, hooks


@pytest.fixture
def untouched(patcher, clip):
    """Gives the patcher, and afterwards compares everything that a later node could see of it."""
    image, (weights, flags, hooks) = sampled(patcher, clip), state(patcher)
    yield patcher
    after, flags_after, hooks_after = state(patcher)
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert (flags, hooks) == (flags_after, hooks_after)
    assert torch.equal(image, sampled(patcher, clip))
    assert comfy.model_management.in_training is False
    assert not patcher.patches and not patcher.model_options["transformer_options"]


def test_after_training(untouched, clip, config):
    with torch.inference_mode():  # as the executor calls a node
        result = train_eraser(ComfyHost(untouched, clip), config)
    assert result.steps == 3 and any(t.abs().max() > 0 for k, t in result.lora.items() if "lora_B" in k)


def test_after_training_in_bf16_with_checkpointing(untouched, clip, config):
    result = train_eraser(
        ComfyHost(untouched, clip), dataclasses.replace(config, dtype="bf16", gradient_checkpointing=True)
    )
    assert result.steps == 3


def test_after_an_interrupt_in_mid_step(untouched, clip, config, monkeypatch):
    """The flag that ComfyUI looks at in every Linear, raised inside the second pair: that pair is finished."""
    original, passes = FluxModel.velocity, []

    def velocity(self, *args, **kwargs):
        passes.append(kwargs.get("adapters"))
        if passes.count(True) == 3:
            comfy.model_management.interrupt_current_processing()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FluxModel, "velocity", velocity)
    result = train_eraser(ComfyHost(untouched, clip), config)
    assert result.interrupted and result.steps == 2
    assert len(result.losses["loss"]) == 2
    assert any(t.abs().max() > 0 for k, t in result.lora.items() if "lora_B" in k), "what was trained is kept"


def test_after_an_exception(untouched, clip, config):
    def fail(step, losses):
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        train_eraser(ComfyHost(untouched, clip), config, fail)


def test_in_training_is_restored_to_what_it_was(patcher):
    comfy.model_management.in_training = True
    try:
        with training_session(patcher):
            pass
        assert comfy.model_management.in_training is True
    finally:
        comfy.model_management.in_training = False


def test_weights_are_shared_not_copied(patcher):
    """A 12B model must not be held twice: only the norms' scales are copied."""
    module = patcher.model.diffusion_model
    twin = frozen_view(module, torch.float32)
    own = dict(module.named_parameters())
    copied = {name for name, p in twin.named_parameters() if p.data_ptr() != own[name].data_ptr()}
    assert own["img_in.weight"].is_inference()
    assert all("_norm." in name for name in copied)


def test_the_teacher_does_not_move(patcher, clip, config):
    """Adapters off is the base model, bit for bit, before and after steps; adapters on is not."""
    text = ComfyTextEncoder(clip)
    plan = prepare(config, text)
    x, sigma = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0.8, 0.3])
    with training_session(patcher) as model:
        cond = conds(model, plan, [plan.sentences[0].concept] * 2)
        base = model.velocity(x, sigma, cond, adapters=False)
        trainer.train(model, plan)
        after = model.velocity(x, sigma, cond, adapters=False)
        student = model.velocity(x, sigma, cond, adapters=True).detach()
    assert torch.equal(base, after)
    assert (student - base).abs().max() > 1e-4
    stock = stock_velocity(patcher, x, sigma, cond)
    assert torch.allclose(base, stock, rtol=1e-4, atol=1e-5)


def stock_velocity(patcher, x, sigma, cond):
    """(x_t - x_0) / t of ComfyUI's own apply_model."""
    comfy.model_management.load_models_gpu([patcher])
    with torch.no_grad():
        x_0 = patcher.model.apply_model(
            x, sigma, c_crossattn=cond.context, y=cond.pooled, guidance=cond.guidance, transformer_options={}
        )
    return (x - x_0) / sigma[:, None, None, None]


def test_eight_bit_weights(make_flux, clip, config):
    """UNETLoader's fp8 option: weights stay in 8 bits, adapters train, and the teacher is ComfyUI's own model."""
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model_state_dict(
            dict(make_flux().state_dict()), model_options={"dtype": torch.float8_e4m3fn}
        )
    assert patcher.model.diffusion_model.img_in.weight.dtype == torch.float8_e4m3fn
    plan = prepare(config, ComfyTextEncoder(clip))
    x, sigma = torch.randn(1, 16, 12, 12), torch.tensor([0.6])
    with training_session(patcher) as model:
        cond = conds(model, plan, [plan.sentences[0].concept])
        base = model.velocity(x, sigma, cond, adapters=False)
        assert trainer.train(model, plan).steps == 3
    assert torch.allclose(base, stock_velocity(patcher, x, sigma, cond), rtol=1e-3, atol=1e-4)


def test_the_teacher_carries_no_gradient(patcher, clip, config):
    plan = prepare(config, ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        model.attach("paper", 2, torch.Generator())
        cond = conds(model, plan, [plan.sentences[0].concept])
        x, sigma = torch.randn(1, 16, 12, 12), torch.tensor([0.5])
        assert not model.velocity(x, sigma, cond, adapters=False).requires_grad
        assert model.velocity(x, sigma, cond, adapters=True).requires_grad
        assert all(p.dtype == torch.float32 for p in model.lora.parameters())
