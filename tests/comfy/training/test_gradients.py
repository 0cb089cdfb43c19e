"""The gradient of every loss with respect to the LoRA, through ComfyUI's Flux, is exact.

Held against central finite differences in float64 and against a forward written here without any in-place step.
ComfyUI computes RoPE in float32; both sides of a comparison get its angles in float64, so that nothing but the
gradient is compared.
"""

from contextlib import contextmanager, nullcontext

import comfy.ldm.flux.math as flux_math
import comfy.model_management as model_management
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from eraseanything_core.attention.columns import image_feature
from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients, short_rotations
from eraseanything_core.comfy_bridge.model import Cond, FluxModel
from eraseanything_core.training import losses

B, TEXT = 2, 6
SMALL = {"hidden_size": 64, "num_heads": 2, "axes_dim": [8, 12, 12], "depth": 2, "depth_single_blocks": 2}
SMALL |= {"context_in_dim": 24, "vec_in_dim": 16}
TARGETS = "add_q+add_k+add_v+to_q+to_k+to_v+to_out+to_add_out+single_q+single_k+single_v+single_mlp+single_out"
LOSSES = ("esd", "attn", "retain", "flow_matching", "rsc")


@contextmanager
def double_precision(make_flux, targets, checkpoint):
    """A FluxModel in float64 with adapters that are not zero."""
    module = frozen_view(make_flux(torch.float64, **SMALL), torch.float64)
    module.pe_embedder.register_forward_hook(lambda _, args, out: out.double())
    with exact_gradients(module, checkpoint):
        model = FluxModel(module, "cpu", torch.float64)
        lora = model.attach(targets, 4, torch.Generator().manual_seed(0)).double()
        for up in lora.up:
            up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(up.shape[0]))
        yield model, lora


def inputs():
    g = torch.Generator().manual_seed(3)
    x, v, other, noise = torch.randn(4, B, 16, 4, 4, generator=g, dtype=torch.float64)
    cond = Cond(
        torch.randn(B, TEXT, 24, generator=g, dtype=torch.float64),
        torch.randn(B, 16, generator=g, dtype=torch.float64),
        torch.full((B,), 2.0, dtype=torch.float64),
    )
    select = torch.zeros(B, TEXT, 1, dtype=torch.float64)
    select[0, 1:3], select[1, 4] = 1, 1
    known = torch.rand(B, 3, 4, generator=g, dtype=torch.float64)
    return x, torch.tensor([0.9, 0.4], dtype=torch.float64), cond, select, v, other, noise, known


def loss_of(name, velocity, feature):
    """One of the losses, given how to get the student's velocity and its attention feature."""
    *_, v, other, noise, known = inputs()
    return {
        "esd": lambda: losses.esd_loss(velocity(), v, other, 1.5),
        "attn": lambda: losses.attention_loss({0: feature()[:, None, :, None]}),
        "retain": lambda: losses.retain_loss(velocity(), v),
        "flow_matching": lambda: losses.flow_matching_loss(velocity(), other, noise),
        "rsc": lambda: losses.rsc_loss(feature(), known[:, 0], known[:, 1:], 0.07),
    }[name]()


def through_the_bridge(name, model):
    x, sigma, cond, select, *_ = inputs()

    def feature():
        """As the trainer does: L_attn reads along a whole forward, L_rsc stops when it has read."""
        capture = model.capture(select)
        run = model.velocity if name == "attn" else model.columns
        run(x, sigma, cond, adapters=True, capture=capture)
        return image_feature(capture.maps)

    loss = loss_of(name, lambda: model.velocity(x, sigma, cond, adapters=True), feature)
    model.velocity(x, sigma, cond, adapters=False)  # as the trainer does: backward still has to see the student
    return loss


def gradient(loss, lora):
    found = torch.autograd.grad(loss, list(lora.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(lora.parameters(), found, strict=True)]


def relative_error(found, expected):
    a, b = torch.cat([t.flatten() for t in found]), torch.cat([t.flatten() for t in expected])
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("checkpoint", (False, True), ids=("plain", "checkpointed"))
@pytest.mark.parametrize("targets", ("paper", TARGETS), ids=("paper", "every_target"))
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(make_flux, name, targets, checkpoint):
    """Derivatives along 6 random directions and for the 6 largest entries."""
    with double_precision(make_flux, targets, checkpoint) as (model, lora):
        found = gradient(through_the_bridge(name, model), lora)
        parameters, g = list(lora.parameters()), torch.Generator().manual_seed(5)
        flat = torch.cat([t.flatten() for t in found])
        ways = torch.randn(6, len(flat), generator=g, dtype=torch.float64)
        ways = torch.cat((ways / ways.norm(dim=1, keepdim=True), F.one_hot(flat.abs().topk(6).indices, len(flat))))
        slopes = []
        for way in ways:
            sides = []
            for sign in (1, -1):
                for p, part in zip(parameters, way.split([p.numel() for p in parameters]), strict=True):
                    p.data += sign * 1e-4 * part.view_as(p)
                with torch.no_grad():
                    sides.append(through_the_bridge(name, model))
                for p, part in zip(parameters, way.split([p.numel() for p in parameters]), strict=True):
                    p.data -= sign * 1e-4 * part.view_as(p)
            slopes.append((sides[0] - sides[1]) / 2e-4)
    error = relative_error([ways @ flat], [torch.stack(slopes)])
    print(f"{name}: {error:.1e}")
    assert flat.norm() > 0 and error < 1e-3


@pytest.mark.parametrize("checkpoint", (False, True), ids=("plain", "checkpointed"))
@pytest.mark.parametrize("targets", ("paper", TARGETS), ids=("paper", "every_target"))
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_an_out_of_place_reference(make_flux, name, targets, checkpoint):
    with double_precision(make_flux, targets, checkpoint) as (model, lora):
        found = gradient(through_the_bridge(name, model), lora)
        reference = Reference(model, lora)
        expected = gradient(loss_of(name, reference.velocity, reference.feature), lora)
        plain = through_the_bridge(name, model), loss_of(name, reference.velocity, reference.feature)
    error = relative_error(found, expected)
    print(f"{name}: gradient {error:.1e}")
    assert torch.allclose(*plain, rtol=1e-6) and error < 1e-6


@pytest.mark.parametrize("dtype, error", ((torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)))
def test_a_rotation_has_comfyuis_bits_and_its_gradient(monkeypatch, dtype, error):
    """The same products in another order, in the float32 of the angles: the last bit may differ."""
    monkeypatch.setattr(model_management, "in_training", True)
    comfyuis = flux_math._apply_rope1
    g = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 2, 3, 7, 16, generator=g).to(dtype)
    x.requires_grad_()
    matrices = flux_math.rope(torch.arange(7.0)[None], 16, 100)[:, None]
    found = []
    for around in (nullcontext, short_rotations):
        with around():
            y = flux_math.apply_rope1(x, matrices)
        (grad,) = torch.autograd.grad(y, x, upstream)
        found.append((y.detach(), grad, y.grad_fn.name()))
    (plain, plain_grad, _), (own, own_grad, name) = found
    assert name == "_RotationBackward" and torch.equal(own, plain)
    assert flux_math._apply_rope1 is comfyuis
    assert torch.allclose(own_grad, plain_grad, rtol=error, atol=error)


class Reference:
    """Flux's equations written out of place on the same weights, the full softmax included."""

    def __init__(self, model, lora):
        self.flux, self.lora, self.maps = model.module, lora, {}

    def linear(self, name, x):
        layer = self.flux.get_submodule(name)
        y = F.linear(x, layer.weight, layer.bias)
        for i, part in enumerate(self.lora.parts):
            if part.module == name:
                delta = x @ self.lora.down[i].T @ self.lora.up[i].T
                y = y + F.pad(delta, (part.start, y.shape[-1] - part.start - part.rows))
        return y

    def modulation(self, name, vec, count):
        return self.linear(f"{name}.lin", F.silu(vec))[:, None].chunk(count, dim=-1)

    def qkv(self, norm, fused):
        q, k, v = rearrange(fused, "b l (three h d) -> three b h l d", three=3, h=self.flux.num_heads)
        q = F.rms_norm(q, q.shape[-1:], norm.query_norm.weight, norm.query_norm.eps)
        return q, F.rms_norm(k, k.shape[-1:], norm.key_norm.weight, norm.key_norm.eps), v

    def attention(self, q, k, v, pe):
        turn = lambda x: (pe * x.unflatten(-1, (-1, 1, 2))).sum(-1).flatten(-2)  # noqa: E731
        weights = torch.softmax(turn(q) @ turn(k).transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        return weights, rearrange(weights @ v, "b h l d -> b l (h d)")

    def double(self, i, img, txt, vec, pe, select):
        block, name = self.flux.double_blocks[i], f"double_blocks.{i}"
        im, tm = self.modulation(f"{name}.img_mod", vec, 6), self.modulation(f"{name}.txt_mod", vec, 6)
        norm = lambda x, shift, scale: (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift  # noqa: E731
        t = self.qkv(block.txt_attn.norm, self.linear(f"{name}.txt_attn.qkv", norm(txt, *tm[:2])))
        m = self.qkv(block.img_attn.norm, self.linear(f"{name}.img_attn.qkv", norm(img, *im[:2])))
        weights, out = self.attention(*(torch.cat(pair, dim=2) for pair in zip(t, m, strict=True)), pe)
        self.maps[i] = weights[:, :, TEXT:, :TEXT] @ select[:, None]
        img = img + im[2] * self.linear(f"{name}.img_attn.proj", out[:, TEXT:])
        txt = txt + tm[2] * self.linear(f"{name}.txt_attn.proj", out[:, :TEXT])
        img = img + im[5] * block.img_mlp(norm(img, *im[3:5]))
        return img, txt + tm[5] * block.txt_mlp(norm(txt, *tm[3:5]))

    def single(self, i, x, vec, pe):
        block, name = self.flux.single_blocks[i], f"single_blocks.{i}"
        shift, scale, gate = self.modulation(f"{name}.modulation", vec, 3)
        fused = self.linear(f"{name}.linear1", (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift)
        qkv, mlp = fused[..., : 3 * x.shape[-1]], F.gelu(fused[..., 3 * x.shape[-1] :], approximate="tanh")
        _, out = self.attention(*self.qkv(block.norm, qkv), pe)
        return x + gate * self.linear(f"{name}.linear2", torch.cat((out, mlp), dim=-1))

    def velocity(self):
        f = self.flux
        x, sigma, cond, select, *_ = inputs()
        img, ids = f.process_img(x)
        time = lambda t: flux_embedding(t).to(x)  # noqa: E731
        vec = f.time_in(time(sigma)) + f.guidance_in(time(cond.guidance)) + f.vector_in(cond.pooled)
        img, txt = f.img_in(img), f.txt_in(cond.context)
        pe = f.pe_embedder(torch.cat((torch.zeros(B, TEXT, 3), ids), dim=1))
        for i in range(len(f.double_blocks)):
            img, txt = self.double(i, img, txt, vec, pe, select)
        x = torch.cat((txt, img), dim=1)
        for i in range(len(f.single_blocks)):
            x = self.single(i, x, vec, pe)
        out = f.final_layer(x[:, TEXT:], vec)
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=2, p=2, q=2)

    def feature(self):
        self.velocity()
        return image_feature(self.maps)


def flux_embedding(t):
    half = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    angles = 1000 * t[:, None].float() * half
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def test_the_trap_is_there(make_flux):
    """ComfyUI's blocks without `exact_gradients` fail; if this passes one day, the bridge can drop its copies."""
    import comfy.model_management

    module = frozen_view(make_flux(torch.float64, **SMALL), torch.float64)
    model = FluxModel(module, "cpu", torch.float64)
    lora = model.attach("paper", 4, torch.Generator().manual_seed(0)).double()
    comfy.model_management.in_training = True
    try:
        with pytest.raises(RuntimeError, match="inplace"):
            gradient(through_the_bridge("retain", model), lora)
    finally:
        comfy.model_management.in_training = False
