"""A transformer that computes in float16, as ComfyUI's does on cards without bfloat16."""

import dataclasses

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.erasers.mace_attention import AttentionConfig, train_attention
from eraseanything_core.erasers.published_code import PublishedConfig, train_published
from eraseanything_core.evaluation import weight_attacks
from eraseanything_core.training import loss_scale
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.optimizers import optimizer_step
from eraseanything_core.training.recipe import train_eraser

SMALL_LOSS = 1e-4  # makes the gradients of the small model as small as those of FLUX.1 at 512 px


def gradient(patcher, dtype, scaled=True):
    """Of a small loss, as one step leaves it."""
    generator = torch.Generator().manual_seed(0)
    flux = patcher.model.diffusion_model
    x_t = torch.randn(1, 16, 8, 8, generator=generator)
    context = torch.randn(1, 6, flux.params.context_in_dim, generator=generator)
    pooled = torch.randn(1, flux.params.vec_in_dim, generator=generator)
    with training_session(patcher, dtype) as model:
        lora = model.attach("all_qkv", 4, generator)
        for up in lora.up:
            up.data.normal_(0, 0.1, generator=generator)
        optimizer = torch.optim.SGD(lora.parameters(), lr=0.0)
        if scaled:
            loss_scale.start([optimizer], model.dtype)
        v = model.velocity(x_t, torch.tensor([0.7]), model.cond(context, pooled, 2.0), adapters=True)
        optimizer_step(optimizer, lora, SMALL_LOSS * v.pow(2).mean(), EraseConfig(concept="x", max_grad_norm=1e9))
        return torch.cat([p.grad.flatten() for p in lora.parameters()])


def test_small_gradients_are_those_of_float32(patcher):
    expected = gradient(patcher, torch.float32)
    scaled, unscaled = (gradient(patcher, torch.float16, scaled) for scaled in (True, False))
    assert (scaled - expected).norm() < 0.01 * expected.norm()
    assert (unscaled - expected).norm() > 0.1 * expected.norm(), "the scale is not needed"


@pytest.fixture
def in_half(config, monkeypatch):
    """The run's settings; ComfyUI chooses float16."""
    monkeypatch.setattr(EraseConfig, "torch_dtype", lambda self: torch.float16)
    return dataclasses.replace(config, steps=5, attn_weight=0.0, rsc_weight=0.0)


def test_a_run_in_half_precision_goes_on_with_the_same_bits(patcher, clip, in_half, tmp_path, monkeypatch):
    """Its first steps overflow and are skipped: the scale and the count belong to the run."""
    monkeypatch.setattr(loss_scale, "START", 2.0**28)

    def stop(step, _):
        if step == 2:
            raise KeyboardInterrupt

    in_half = dataclasses.replace(in_half, steps=24)
    whole = train_eraser(ComfyHost(patcher, clip), in_half)
    train_eraser(ComfyHost(patcher, clip), in_half, stop, tmp_path / "run")
    rest = train_eraser(ComfyHost(patcher, clip), in_half, run_dir=tmp_path / "run")
    assert "updates were skipped, because their gradients overflowed in fp16" in whole.summary("x")
    assert rest.notes == whole.notes and rest.losses == whole.losses
    assert all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)
    assert any(t.abs().max() > 0 for k, t in whole.lora.items() if "lora_B" in k)


PROMPT = "a photo of a red star"
EXAMPLES = weight_attacks.ConceptExamples(
    torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(0)), PROMPT, "red star"
)
SMALL = {"steps": 2, "width": 96, "height": 96, "sampling_steps": 2}


def inversion(model, text):
    weight_attacks.invert(model, text, EXAMPLES, weight_attacks.InversionConfig(steps=2, batch_size=1))


def relearning(model, text):
    weight_attacks.relearn(model, text, EXAMPLES, weight_attacks.RelearnConfig(steps=2, batch_size=1))


def mace(model, text):
    train_attention(model, text, AttentionConfig(((PROMPT, "red star"),), pictures=1, batch=1, **SMALL))


def published(model, text):
    words = ("tree", "house", "dog")
    config = PublishedConfig("star", PROMPT, "a thing", ("star",), words, images=1, **SMALL)
    train_published(model, text, config)


@pytest.mark.parametrize("train", (inversion, relearning, mace, published))
def test_what_trains_beside_the_trainer_scales_its_loss_too(patcher, clip, monkeypatch, train):
    """Each step takes the gradients of the loss times the scale, and no step goes around `may_step`."""
    seen, asked = [], []
    may_step = loss_scale.may_step
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (seen.append(float(loss.detach())), backward(loss))[1])
    monkeypatch.setattr(
        loss_scale, "may_step", lambda optimizer, norm: (asked.append(optimizer), may_step(optimizer, norm))[1]
    )
    scales = []
    scale_of = loss_scale.scale_of
    monkeypatch.setattr(loss_scale, "scale_of", lambda optimizer: scales.append(scale_of(optimizer)) or scales[-1])
    host = ComfyHost(patcher, clip)
    with host.session(torch.float16) as model:
        train(model, host.text_encoder())
    assert len(seen) == len(asked) == 2 and min(scales) > 1
    assert all(loss_scale.SCALE in optimizer.param_groups[0] for optimizer in asked)
