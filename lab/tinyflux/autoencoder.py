"""The autoencoder's training: TAESD's architecture, 16 channels, 8x, between pictures and the world's own latents.

The decoder sees latents with noise added, so that a generator's near misses decode well; the encoder learns to
read the latents off pictures. They share nothing and train side by side.
"""

import random
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import new_autoencoder
from eraseanything_core.tinyflux.shapes import TEXTURES
from eraseanything_core.tinyflux.world import render
from lab.tinyflux import precision
from lab.tinyflux.latents import LATENT_SCALE, LATENT_SHIFT, scene_latent
from lab.tinyflux.scenes import draw_scene, single

NOISE = 0.2  # of the latents' standard deviation, added before decoding


def draw_pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [count, 3, 96, 96] and latents [count, 16, 12, 12]; half of the scenes show a texture.

    Textures are what a decoder learns last, and one scene in eight of the training distribution has one.
    """
    rng = random.Random(seed)
    scenes = [single(rng, style=rng.choice(TEXTURES)) if i % 2 else draw_scene(rng) for i in range(count)]
    pictures = torch.stack([(render(scene) * 255).round().to(torch.uint8) for scene in scenes])
    return pictures, torch.stack([scene_latent(scene) for scene in scenes])


def picture_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Absolute and squared error of the pixels, and absolute error of their differences (edges)."""
    edges = sum(F.l1_loss(decoded.diff(dim=d), pictures.diff(dim=d)) for d in (2, 3))
    return F.l1_loss(decoded, pictures) + 4 * F.mse_loss(decoded, pictures) + edges


def decoder_loss(taesd: nn.Module, pictures: Tensor, latents: Tensor) -> Tensor:
    """The loss of pictures that are decoded from noisy latents."""
    # Each picture gets its own amount, from none to all: a clean latent has to decode as well.
    noisy = latents + NOISE * torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1)
    return picture_loss(taesd.taesd_decoder(noisy).float(), pictures)


def encoder_loss(taesd: nn.Module, pictures: Tensor, latents: Tensor) -> Tensor:
    """The squared error of the latents that are read off pictures."""
    return F.mse_loss(taesd.taesd_encoder(pictures).float(), latents)


def train(part: str, pairs: tuple[Tensor, Tensor], minutes: float, seed: int, log, start=None, batch=8, lr=1e-3):
    """Trains one half ("decoder" or "encoder") and returns its tensors in TAESD's file format.

    Args:
        pairs: pictures and latents, see `draw_pairs`.
        minutes: wall time of the run; the learning rate falls to zero over it.
        log: called with (step, dict of losses) every 50 steps.
        start: tensors of an earlier run to go on from, in the same format.
    """
    torch.manual_seed(seed)
    pictures, latents = pairs
    taesd = new_autoencoder(latent_channels=16).to(memory_format=torch.channels_last)
    half, loss_of = {"decoder": (taesd.taesd_decoder, decoder_loss), "encoder": (taesd.taesd_encoder, encoder_loss)}[
        part
    ]
    if part == "decoder":
        half[-1].weight.data.mul_(0.1)
        nn.init.constant_(half[-1].bias, 0.6)  # the mean grey of the world
    if start:
        taesd.load_state_dict(start, strict=False)
    optimizer = torch.optim.AdamW(half.parameters(), lr=lr, betas=(0.9, 0.97), weight_decay=0.0)
    begun = time.monotonic()
    done = 0.0
    step = 0
    kept = []
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50) * min(1, 1.3 * (1 - done))
        pick = torch.randint(len(pictures), (batch,))
        shown = (pictures[pick].float() / 255).to(memory_format=torch.channels_last)
        with precision.autocast():
            loss = loss_of(taesd, shown, latents[pick])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(half.parameters(), 1.0)
        optimizer.step()
        kept.append(loss.item())
        step = step + 1
        done = (time.monotonic() - begun) / (60 * minutes)
        if step % 50 == 0:
            log(step, {"loss": sum(kept) / len(kept), "done": done})
            kept.clear()
    scaling = {"vae_scale": torch.tensor(LATENT_SCALE), "vae_shift": torch.tensor(LATENT_SHIFT)}
    return {f"taesd_{part}.{k}": v for k, v in half.state_dict().items()} | scaling
