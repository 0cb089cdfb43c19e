"""The forward of ComfyUI's Krea 2 class, written out of place on the weights of its module.

It can be compiled and differentiated; a test holds it against ComfyUI's own. Text stands first in the joint sequence.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lab.tinyflux.functional_flux import _rotate, _sinusoid, attention


def _rms(x: Tensor, norm: nn.Module) -> Tensor:
    # The class keeps the weight's difference from one.
    return F.rms_norm(x.float(), (x.shape[-1],), norm.scale.float() + 1, norm.eps).to(x.dtype)


def _attention(layer: nn.Module, x: Tensor, rope: Tensor | None) -> Tensor:
    q, k, v = (rearrange(linear(x), "b l (h d) -> b h l d", h=layer.heads) for linear in (layer.wq, layer.wk, layer.wv))
    q = _rms(q, layer.qknorm.qnorm)
    k = _rms(k, layer.qknorm.knorm)
    if rope is not None:
        q = _rotate(q, rope)
        k = _rotate(k, rope)
    joint = rearrange(attention(q, k, v), "b h l d -> b l (h d)")
    return layer.wo(joint * layer.gate(x).sigmoid())


def _feed(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.down(F.silu(layer.gate(x)) * layer.up(x))


def _text_block(block: nn.Module, x: Tensor) -> Tensor:
    x = x + _attention(block.attn, _rms(x, block.prenorm), None)
    return x + _feed(block.mlp, _rms(x, block.postnorm))


def _block(block: nn.Module, x: Tensor, rope: Tensor, time: Tensor) -> Tensor:
    scale_a, shift_a, gate_a, scale_f, shift_f, gate_f = (time + block.mod.lin).chunk(6, dim=-1)
    x = x + gate_a * _attention(block.attn, _rms(x, block.prenorm) * (1 + scale_a) + shift_a, rope)
    return x + gate_f * _feed(block.mlp, _rms(x, block.postnorm) * (1 + scale_f) + shift_f)


def rope_table(dit: nn.Module, text: int, height: int, width: int) -> Tensor:
    """Rotations of a joint sequence, [text + height * width, d / 2, 2, 2]; text tokens stand at the origin."""
    ids = torch.zeros(1, text + height * width, 3)
    ids[0, text:, 1] = torch.arange(height).repeat_interleave(width).float()
    ids[0, text:, 2] = torch.arange(width).repeat(height).float()
    return dit.pe_embedder(ids)[0, 0]


def _refined(fusion: nn.Module, context: Tensor) -> Tensor:
    """Text states [b, l, d] after the refiner, which takes one layer of states here."""
    batch = len(context)
    # Among the layers of one token, of which there is one.
    x = context.flatten(0, 1)[:, None]
    for block in fusion.layerwise_blocks:
        x = _text_block(block, x)
    x = fusion.projector(x.transpose(1, 2))[..., 0].unflatten(0, (batch, -1))
    for block in fusion.refiner_blocks:
        x = _text_block(block, x)
    return x


def velocity(dit: nn.Module, rope: Tensor, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    """v(x_t, t, c) of ComfyUI's SingleStreamDiT: x [b, c, h, w] -> [b, c, h, w]; `rope` from `rope_table`."""
    time = dit.tmlp(_sinusoid(timestep)[:, None].to(x))
    modulation = dit.tproj(time)
    norm, *layers = dit.txtmlp
    text = _rms(_refined(dit.txtfusion, context), norm)
    for layer in layers:
        text = layer(text)
    image = dit.first(rearrange(x, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=2, pw=2))
    joint = torch.cat((text, image.to(text)), 1)
    for block in dit.blocks:
        joint = _block(block, joint, rope, modulation)
    scale, shift = (time + dit.last.modulation.lin).chunk(2, dim=1)
    out = dit.last.linear(_rms(joint[:, text.shape[1] :], dit.last.norm) * (1 + scale) + shift)
    return rearrange(out, "b (h w) (c ph pw) -> b c (h ph) (w pw)", ph=2, pw=2, w=x.shape[3] // 2)
