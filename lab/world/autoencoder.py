"""The autoencoder: TAESD's architecture and file format, 16 channels, 8x, learned from the pictures alone."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import new_autoencoder
from lab.tinyflux import precision
from lab.world.muon import Muon
from lab.world.run import Pace, Run
from lab.world.scenes import SIDE

NOISE = 0.12  # standard deviation of what is added to a latent before it is decoded
WEIGHT = 2e-3  # of the mean square of the latents: without it they would grow until the noise does not matter
CELL = 8  # px of a latent's cell


def fresh(seed: int = 1) -> nn.Module:
    """TAESD before training; it begins with the mean grey of the pictures."""
    torch.manual_seed(seed)
    taesd = new_autoencoder(latent_channels=16)
    taesd.taesd_decoder[-1].weight.data.mul_(0.1)
    nn.init.constant_(taesd.taesd_decoder[-1].bias, 0.6)
    taesd.taesd_encoder[-1].weight.data.mul_(0.5)
    return taesd.to(memory_format=torch.channels_last)


def crops(pictures: np.ndarray, count: int, side: int) -> Tensor:
    """Random pieces of random pictures, [count, 3, side, side] in [0, 1], cut at the borders of cells."""
    cut = []
    for number in torch.randint(len(pictures), (count,)).tolist():
        top, left = (CELL * torch.randint((SIDE - side) // CELL + 1, (2,))).tolist()
        cut.append(torch.from_numpy(pictures[number, :, top : top + side, left : left + side].copy()))
    return (torch.stack(cut).float() / 255).contiguous(memory_format=torch.channels_last)


def picture_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Absolute and squared error of the pixels, and absolute error of their differences (edges)."""
    edges = F.l1_loss(decoded.diff(dim=2), pictures.diff(dim=2)) + F.l1_loss(decoded.diff(dim=3), pictures.diff(dim=3))
    return F.l1_loss(decoded, pictures) + 4 * F.mse_loss(decoded, pictures) + edges


def losses(taesd: nn.Module, shown: Tensor) -> dict[str, Tensor]:
    """Of a variational autoencoder whose posterior has one fixed variance, so that near latents decode alike."""
    with precision.autocast():
        latents = taesd.taesd_encoder(shown)
        decoded = taesd.taesd_decoder(latents + NOISE * torch.randn_like(latents))
    return {"picture": picture_loss(decoded.float(), shown), "size": WEIGHT * latents.float().pow(2).mean()}


def train(pictures: np.ndarray, minutes: float, pace: Pace, batch: int = 16, side: int = 48) -> None:
    """Trains on pieces: four times as many different ones for the time of whole pictures."""
    taesd = fresh()
    kernels = [p for p in taesd.parameters() if p.ndim == 4]
    rest = [p for p in taesd.parameters() if p.ndim < 4]
    adamw = torch.optim.AdamW(rest, pace.lr, (0.9, 0.97), weight_decay=0.0)
    run = Run("autoencoder", taesd, [Muon(kernels, pace.lr), adamw], pace)
    # Once generators learn from its latents, only the decoder may change.
    taesd.taesd_encoder.requires_grad_("std" not in run.kept)
    run.go(lambda: losses(taesd, crops(pictures, batch, side)), minutes)


@torch.no_grad()
def psnr(taesd: nn.Module, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio of decoded pictures, dB; the mean over pictures [n, 3, 96, 96] in [0, 1]."""
    with precision.autocast():
        decoded = taesd.taesd_decoder(taesd.taesd_encoder(pictures)).float().clamp(0, 1)
    return (-10 * (decoded - pictures).pow(2).mean((1, 2, 3)).log10()).mean().item()
