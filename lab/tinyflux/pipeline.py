"""TinyFlux without ComfyUI's server: prompts to pictures in batches, for measuring."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import new_autoencoder, new_flux, t5_tokenizer
from eraseanything_core.concepts.pieces import SPECIAL
from eraseanything_core.protocols import EncodedPrompt
from eraseanything_core.sampling import euler, shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU, STEPS, judge, oracle
from eraseanything_core.tinyflux.oracle import SceneReading
from eraseanything_core.tinyflux.text import TinyTextEncoder, piece_ids
from lab.tinyflux import precision
from lab.tinyflux.functional_flux import rope_table, velocity
from lab.tinyflux.generator import FLUX

WEIGHTS = judge.WEIGHTS.parent


def text_encoder(path: Path = WEIGHTS / "tinyflux_text.safetensors") -> TinyTextEncoder:
    """The trained text encoder, in float32."""
    encoder = TinyTextEncoder()
    encoder.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return encoder.eval().requires_grad_(False)


def flux(path: Path = WEIGHTS / "tinyflux.safetensors", dtype=precision.DTYPE) -> nn.Module:
    """The trained generator, as ComfyUI's Flux class."""
    module = new_flux(FLUX, dtype=dtype)
    module.load_state_dict(load_file(path))
    return module.eval().requires_grad_(False)


def decoder(path: Path = WEIGHTS / "tinyflux_vae.safetensors") -> nn.Module:
    """The trained decoder: latents [n, 16, 12, 12] to pictures [n, 3, 96, 96]."""
    taesd = new_autoencoder(latent_channels=16)
    # The file holds the decoder alone; a picture is never encoded when something is measured.
    taesd.load_state_dict(load_file(path), strict=False)
    return taesd.taesd_decoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)


judge_net = judge.load


def noise(seeds: list[int]) -> Tensor:
    """One latent of noise a seed, [n, 16, 12, 12]."""
    # A generator a picture: its noise does not depend on which others are in the batch.
    drawn = [torch.randn(16, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn)


class Pipeline:
    """Prompts and seeds to pictures."""

    def __init__(self, module: nn.Module, encoder: TinyTextEncoder | None = None, decode: nn.Module | None = None):
        self.module = module
        self.encoder = encoder or text_encoder()
        self.decode = decode or decoder()
        self.tokenizer = t5_tokenizer().tokenizer

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """States [n, l, 128] and pooled vectors [n, 64]."""
        with torch.no_grad():
            return self.encoder(piece_ids(self.tokenizer, prompts))

    def velocity(self, prompts: list[str], guidance: float):
        """v(x_t, t) of a batch, one prompt a picture."""
        states, pooled = self.encode(prompts)
        # 12 x 12 latent cells are 6 x 6 image tokens.
        rope = rope_table(self.module, states.shape[1], 6, 6)
        dtype = next(self.module.parameters()).dtype
        fixed = {
            "context": states.to(dtype),
            "y": pooled.to(dtype),
            "guidance": torch.full((len(prompts),), guidance, dtype=dtype),
        }

        def step(x: Tensor, t: Tensor) -> Tensor:
            return velocity(self.module, rope, x=x.to(dtype), timestep=t.to(dtype), **fixed).float()

        return step

    def latents(self, prompts: list[str], seeds: list[int], guidance: float, steps: int = STEPS) -> Tensor:
        """x_0 in the model's space, [n, 16, 12, 12]."""
        with torch.no_grad():
            walk = euler(self.velocity(prompts, guidance), noise(seeds), shifted_sigmas(steps, MU))
            return list(walk)[-1][0]

    def pictures(self, prompts: list[str], seeds: list[int], guidance: float = GUIDANCE, batch: int = 64) -> Tensor:
        """[n, 3, 96, 96] in [0, 1]."""
        drawn = []
        for i in range(0, len(prompts), batch):
            x = self.latents(prompts[i : i + batch], seeds[i : i + batch], guidance)
            with torch.no_grad(), precision.autocast():
                drawn.append(self.decode(x.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1))
        return torch.cat(drawn)


class TrainerText:
    """The pipeline's text encoder as `trainer.prepare` wants it."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def pieces(self, text: str) -> list[str]:
        """The T5 pieces of a prompt as it is encoded; "" for the end and padding."""
        ids = piece_ids(self.pipeline.tokenizer, [text])[0].tolist()
        names = self.pipeline.tokenizer.convert_ids_to_tokens(ids)
        return ["" if name in SPECIAL else name for name in names]

    def encode(self, text: str) -> EncodedPrompt:
        """context [1, l, 128] and pooled [1, 64]."""
        return EncodedPrompt(*self.pipeline.encode([text]))


def readers(net: judge.JudgeNet) -> dict[str, Callable[[Tensor, str], list[SceneReading]]]:
    """The two judges: each takes pictures and the kind that is asked for."""
    return {"oracle": oracle.read, "cnn": partial(judge.read, net)}
