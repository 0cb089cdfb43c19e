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


def _heads(qkv: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Fused q, k, v [b, l, 3 h d] -> three of [b, h, l, d], q and k with their RMS norm."""
    width = norm.query_norm.weight.shape[0]
    q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, d=width)
    scaled = [
        F.rms_norm(x.float(), (width,), n.weight.float(), 1e-6) for x, n in ((q, norm.query_norm), (k, norm.key_norm))
    ]
    return scaled[0].to(v.dtype), scaled[1].to(v.dtype), v


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding; rope [l, d / 2, 2, 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos = rope[..., 0, 0]
    sin = rope[..., 1, 0]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, rope: Tensor) -> Tensor:
    return rearrange(F.scaled_dot_product_attention(_rotate(q, rope), _rotate(k, rope), v), "b h l d -> b l (h d)")


def _double(block: nn.Module, img: Tensor, txt: Tensor, vec: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    # Six vectors a stream: shift, scale and gate of the attention, then of the MLP.
    i, t = (mod.lin(F.silu(vec)[:, None]).chunk(6, dim=-1) for mod in (block.img_mod, block.txt_mod))
    qkv_txt = _heads(block.txt_attn.qkv(_norm(txt) * (1 + t[1]) + t[0]), block.txt_attn.norm)
    qkv_img = _heads(block.img_attn.qkv(_norm(img) * (1 + i[1]) + i[0]), block.img_attn.norm)
    joint = _attend(*(torch.cat(pair, dim=2) for pair in zip(qkv_txt, qkv_img)), rope)
    txt = txt + block.txt_attn.proj(joint[:, : txt.shape[1]]) * t[2]
    img = img + block.img_attn.proj(joint[:, txt.shape[1] :]) * i[2]
    txt = txt + block.txt_mlp(_norm(txt) * (1 + t[4]) + t[3]) * t[5]
    return img + block.img_mlp(_norm(img) * (1 + i[4]) + i[3]) * i[5], txt


def _single(block: nn.Module, x: Tensor, vec: Tensor, rope: Tensor) -> Tensor:
    shift, scale, gate = block.modulation.lin(F.silu(vec)[:, None]).chunk(3, dim=-1)
    width = x.shape[-1]
    # Attention and MLP run side by side on one input, and one linear makes both.
    qkv, hidden = block.linear1(_norm(x) * (1 + scale) + shift).tensor_split([3 * width], dim=-1)
    joint = _attend(*_heads(qkv, block.norm), rope)
    return x + block.linear2(torch.cat([joint, F.gelu(hidden, approximate="tanh")], dim=2)) * gate


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
