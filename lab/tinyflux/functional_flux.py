"""Flux's forward written out of place, on the weights of ComfyUI's module.

ComfyUI's own blocks add in place, which `torch.compile` cannot differentiate. This one can be compiled
and is the reference that gradients through ComfyUI's blocks are held against. Text stands first
in the joint sequence; only what Flux.1 needs is here.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def _sinusoid(t: Tensor, width: int = 256) -> Tensor:
    # ComfyUI's timestep embedding: t times 1,000, with periods from 1 to 10,000.
    angles = (
        1000.0 * t[:, None] * torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=t.device) / (width // 2))
    )
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, _norm(x), 1 + scale)


def _heads(qkv: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Fused q, k, v [b, l, 3 h d] -> three of [b, h, l, d], q and k with their RMS norm."""
    width = norm.query_norm.weight.shape[0]
    q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, d=width).unbind()
    scaled = [
        F.rms_norm(x.float(), (width,), n.weight.float(), 1e-6) for x, n in ((q, norm.query_norm), (k, norm.key_norm))
    ]
    return scaled[0].to(v.dtype), scaled[1].to(v.dtype), v


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding; rope [l, d / 2, 2, 2]."""
    cos = rope[..., 0, 0].repeat_interleave(2, -1)
    sin = rope[..., 1, 0].repeat_interleave(2, -1)
    # A quarter turn of every pair as a matmul: (even, odd) -> (-odd, even). Strided reads of a CPU take far longer.
    pairs = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).unflatten(0, (-1, 2))
    turn = torch.stack((pairs[:, 1], -pairs[:, 0]), 1).flatten(0, 1)
    return (x.float() * cos + (x @ turn).float() * sin).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [b, h, l, d]; written out for training, where a CPU's fused kernel takes three times as long."""
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


def _attend(q: Tensor, k: Tensor, v: Tensor, rope: Tensor) -> Tensor:
    return rearrange(attention(_rotate(q, rope), _rotate(k, rope), v), "b h l d -> b l (h d)")


def _double(block: nn.Module, img: Tensor, txt: Tensor, vec: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    # Six vectors a stream: shift, scale and gate of the attention, then of the MLP.
    i, t = (mod.lin(F.silu(vec)[:, None]).chunk(6, dim=-1) for mod in (block.img_mod, block.txt_mod))
    qkv_txt = _heads(block.txt_attn.qkv(_modulated(txt, t[0], t[1])), block.txt_attn.norm)
    qkv_img = _heads(block.img_attn.qkv(_modulated(img, i[0], i[1])), block.img_attn.norm)
    joint = _attend(*(torch.cat(pair, dim=2) for pair in zip(qkv_txt, qkv_img)), rope)
    of_txt, of_img = joint.split((txt.shape[1], img.shape[1]), dim=1)
    txt = torch.addcmul(txt, block.txt_attn.proj(of_txt), t[2])
    img = torch.addcmul(img, block.img_attn.proj(of_img), i[2])
    txt = torch.addcmul(txt, block.txt_mlp(_modulated(txt, t[3], t[4])), t[5])
    return torch.addcmul(img, block.img_mlp(_modulated(img, i[3], i[4])), i[5]), txt


def _single(block: nn.Module, x: Tensor, vec: Tensor, rope: Tensor) -> Tensor:
    shift, scale, gate = block.modulation.lin(F.silu(vec)[:, None]).chunk(3, dim=-1)
    width = x.shape[-1]
    # Attention and MLP run side by side on one input, and one linear makes both.
    inner = block.linear1(_modulated(x, shift, scale))
    qkv, hidden = inner.split((3 * width, inner.shape[-1] - 3 * width), dim=-1)
    joint = _attend(*_heads(qkv, block.norm), rope)
    out = block.linear2(torch.cat([joint, F.gelu(hidden, approximate="tanh")], dim=2))
    return torch.addcmul(x, out, gate)


def rope_table(flux: nn.Module, text: int, height: int, width: int) -> Tensor:
    """Rotations of a joint sequence, [text + height * width, d / 2, 2, 2]; text tokens stand at the origin."""
    # Axes: one that Flux.1 leaves at 0, then row and column.
    ids = torch.zeros(1, text + height * width, 3)
    ids[0, text:, 1] = torch.arange(height).repeat_interleave(width)
    ids[0, text:, 2] = torch.arange(width).repeat(height)
    return flux.pe_embedder(ids)[0, 0]


def dual(
    flux: nn.Module, rope: Tensor, x: Tensor, timestep: Tensor, context: Tensor, y: Tensor, guidance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The streams of image and text after the dual blocks, [b, l, d], and the modulation vector [b, d]."""
    img = flux.img_in(rearrange(x, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=2, pw=2))
    txt = flux.txt_in(context)
    vec = flux.time_in(_sinusoid(timestep).to(x)) + flux.guidance_in(_sinusoid(guidance).to(x)) + flux.vector_in(y)
    for block in flux.double_blocks:
        img, txt = _double(block, img, txt, vec, rope)
    return img, txt, vec


def single(flux: nn.Module, rope: Tensor, img: Tensor, txt: Tensor, vec: Tensor, width: int) -> Tensor:
    """The velocity [b, c, h, w] from both streams; `width` is half of the latent's, in image tokens."""
    joint = torch.cat([txt, img], dim=1)
    for block in flux.single_blocks:
        joint = _single(block, joint, vec, rope)
    shift, scale = flux.final_layer.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
    out = flux.final_layer.linear(_norm(joint[:, txt.shape[1] :]) * (1 + scale) + shift)
    return rearrange(out, "b (h w) (c ph pw) -> b c (h ph) (w pw)", ph=2, pw=2, w=width)


def velocity(
    flux: nn.Module, rope: Tensor, x: Tensor, timestep: Tensor, context: Tensor, y: Tensor, guidance: Tensor
) -> Tensor:
    """v(x_t, t, c, g) of ComfyUI's Flux module: x [b, c, h, w] -> [b, c, h, w]; `rope` from `rope_table`."""
    return single(flux, rope, *dual(flux, rope, x, timestep, context, y, guidance), x.shape[3] // 2)
