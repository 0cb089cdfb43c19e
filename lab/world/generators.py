"""The two generators, each with the text encoder: TinyFlux is ComfyUI's Flux, TinyZ its Krea 2, with a single stream.

The second was to be Lumina2 as Z-Image uses it. ComfyUI's loader knows the heads of that class for three widths only,
none of them small; it reads all sizes of Krea 2 off the weights, which has a single stream and a text refiner too.
"""

import comfy.ops
import torch
from comfy.latent_formats import Wan21
from comfy.ldm.krea2.model import SingleStreamDiT
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import new_flux
from eraseanything_core.tinyflux.text import TinyTextEncoder
from lab.tinyflux import functional_flux
from lab.world import functional_krea

TOKENS = 6  # a side of the picture, in image tokens
WIDTH = 160  # of text states: Krea 2 has 20 heads for text
POOLED = 64
FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": POOLED, "context_in_dim": WIDTH,
    "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 4,
    "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
KREA = {"features": 256, "heads": 2, "kvheads": 2, "layers": 6, "channels": 16, "txtdim": WIDTH, "txtlayers": 1}

# Flux's latent format: what a model sees is (what the autoencoder's file says - shift) * scale.
FORMAT_SCALE = 0.3611
FORMAT_SHIFT = 0.1159


def new_encoder() -> TinyTextEncoder:
    """The text encoder before training."""
    return TinyTextEncoder(width=WIDTH, pooled=POOLED)


class Generator(nn.Module):
    """A text encoder and what draws from its states.

    Attributes:
        encoder: pieces to states [b, l, 160] and pooled vectors [b, 64].
        net: ComfyUI's module.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.encoder = new_encoder()
        self.net = net
        self._ropes: dict[int, Tensor] = {}

    def rope(self, length: int) -> Tensor:
        """The rotations for so many text tokens."""
        if length not in self._ropes:
            self._ropes[length] = self._table(length)
        return self._ropes[length]

    def _table(self, length: int) -> Tensor:
        raise NotImplementedError

    def velocity(self, x: Tensor, time: Tensor, states: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
        """v(x_t, t, c), [b, 16, 12, 12]."""
        raise NotImplementedError

    def own(self, latents: Tensor) -> Tensor:
        """Latents of mean 0 and variance 1 as ComfyUI's format for this class has them."""
        return latents

    def common(self, latents: Tensor) -> Tensor:
        """The other way."""
        return latents


class TinyFlux(Generator):
    """ComfyUI's Flux; gates and the last layer start at zero, as in DiT."""

    def __init__(self) -> None:
        super().__init__(new_flux(FLUX))
        for name, parameter in self.net.named_parameters():
            if "mod.lin" in name or "modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(parameter)

    def _table(self, length: int) -> Tensor:
        return functional_flux.rope_table(self.net, length, TOKENS, TOKENS)

    def velocity(self, x: Tensor, time: Tensor, states: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
        rope = self.rope(states.shape[1])
        return functional_flux.velocity(self.net, rope, x, time, states, pooled, guidance)


class TinyZ(Generator):
    """ComfyUI's Krea 2; it has neither a pooled vector nor a guidance input. Gates and the last layer start at zero."""

    def __init__(self) -> None:
        ops = comfy.ops.disable_weight_init
        super().__init__(SingleStreamDiT(dtype=torch.float32, device="cpu", operations=ops, **KREA))
        for name, parameter in self.net.named_parameters():
            if parameter.ndim < 2 or name.startswith(("tproj", "last")):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=5**0.5)
        nn.init.ones_(self.net.txtfusion.projector.weight)
        # The format is this class's own: a mean and a deviation a channel.
        wan = Wan21()
        self._mean = wan.latents_mean[:, :, 0]
        self._std = wan.latents_std[:, :, 0]

    def _table(self, length: int) -> Tensor:
        return functional_krea.rope_table(self.net, length, TOKENS, TOKENS)

    def velocity(self, x: Tensor, time: Tensor, states: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
        return functional_krea.velocity(self.net, self.rope(states.shape[1]), x, time, states)

    def own(self, latents: Tensor) -> Tensor:
        file = latents / FORMAT_SCALE + FORMAT_SHIFT
        return (file - self._mean) / self._std

    def common(self, latents: Tensor) -> Tensor:
        file = latents * self._std + self._mean
        return (file - FORMAT_SHIFT) * FORMAT_SCALE


GENERATORS = {"tinyflux": TinyFlux, "tinyz": TinyZ}
