"""The latents that generators learn from: of all training pictures, by an autoencoder that from then on is fixed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lab.tinyflux import precision
from lab.world import autoencoder
from lab.world.files import CACHE, load, newest, save
from lab.world.generators import FORMAT_SCALE, FORMAT_SHIFT


@dataclass(frozen=True)
class Space:
    """The space of latents of TinyFlux, in which all channels together have mean 0 and variance 1.

    Attributes:
        taesd: the autoencoder.
        mean, std: of its latents.
    """

    taesd: nn.Module
    mean: float
    std: float

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [n, 3, 96, 96] in [0, 1] as latents [n, 16, 12, 12]."""
        with torch.no_grad(), precision.autocast():
            raw = self.taesd.taesd_encoder(pictures.contiguous(memory_format=torch.channels_last)).float()
        return (raw - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as pictures in [0, 1]."""
        raw = latents * self.std + self.mean
        with torch.no_grad(), precision.autocast():
            return self.taesd.taesd_decoder(raw.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)

    def file(self) -> dict[str, Tensor]:
        """The autoencoder as ComfyUI's VAE loader reads it."""
        # ComfyUI: raw = (file - shift) * scale, and file = model / FORMAT_SCALE + FORMAT_SHIFT.
        scale = self.std * FORMAT_SCALE
        shift = FORMAT_SHIFT - self.mean / scale
        constants = {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
        halves = {k: v for k, v in self.taesd.state_dict().items() if k.startswith("taesd_")}
        return halves | constants


def space(folder: Path = CACHE) -> Space:
    """The space as training fixed it.

    Raises:
        FileNotFoundError: no autoencoder has been trained here or is committed.
    """
    path = newest("autoencoder", folder)
    if path is None:
        raise FileNotFoundError("there is no autoencoder yet: run `python -m lab.world.train pictures autoencoder`")
    saved = load(path)
    taesd = autoencoder.fresh()
    weights = {k.removeprefix("ema."): v for k, v in saved.items() if k.startswith("ema.")}
    taesd.load_state_dict(weights, strict=False)
    taesd.eval().requires_grad_(False)
    if "mean" not in saved:
        return Space(taesd, 0.0, 1.0)
    return Space(taesd, float(saved["mean"]), float(saved["std"]))


def encode_all(pictures: np.ndarray, folder: Path = CACHE, batch: int = 64) -> Path:
    """Writes the latents of all pictures, float16 [n, 16, 12, 12]; the first pictures decide mean and variance."""
    path = folder / f"latents-{len(pictures)}.npy"
    if path.exists():
        return path
    raw = space(folder)
    if raw.std == 1.0:
        sample = raw.encode(torch.from_numpy(pictures[:1024].copy()).float() / 255)
        raw = Space(raw.taesd, sample.mean().item(), sample.std().item())
        checkpoint = newest("autoencoder", folder)
        assert checkpoint is not None
        constants = {"mean": torch.tensor(raw.mean), "std": torch.tensor(raw.std)}
        save(load(checkpoint) | constants, folder / "autoencoder.safetensors")
    part = path.with_suffix(".part")
    latents = np.lib.format.open_memmap(part, "w+", np.float16, (len(pictures), 16, 12, 12))
    for start in range(0, len(pictures), batch):
        some = torch.from_numpy(pictures[start : start + batch].copy()).float() / 255
        latents[start : start + batch] = raw.encode(some).half().numpy()
        if start % (batch * 50) == 0:
            print(f"latents: {start} of {len(pictures)}", flush=True)
    latents.flush()
    part.replace(path)
    return path
