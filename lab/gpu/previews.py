"""The pictures of a look while the model trains and the VAE is idle."""

import time
from typing import Any

import comfy.model_management as management
import torch

from eraseanything_core.comfy_bridge.memory import loaded_bytes
from eraseanything_core.comfy_bridge.previews import SMALL_VAE, small_pictures
from eraseanything_core.training.recipe import train_eraser
from lab.gpu.card import Card
from lab.gpu.hosts import LabHost, short_config, tinyflux_host
from lab.gpu.outcome import Outcome

SECONDS = 2.0  # of one look's pictures
PICTURES = 3
PAIRS = 3
LOOKS = {"monitor_every": 1, "look_pictures": 2, "look_steps": 2}


class IdleVae:
    """A VAE of FLUX.1's size in main memory. Nobody should wait for it, so its decoder draws nothing."""

    def __init__(self) -> None:
        self.first_stage_model = torch.nn.Linear(1, SMALL_VAE, bias=False)
        self.first_stage_model.extra = torch.nn.Linear(1, SMALL_VAE, bias=False)
        self.asked = 0

    def process_output(self, pictures: torch.Tensor) -> torch.Tensor:
        """Counts who has waited."""
        self.asked += 1
        return pictures


def random_latents(side: int) -> torch.Tensor:
    """Those of one look, [PICTURES, 16, side, side]."""
    return torch.randn(PICTURES, 16, side, side, generator=torch.Generator().manual_seed(0))


def look_seconds(host: LabHost, vae: IdleVae, latents: torch.Tensor) -> float:
    """Of the pictures of one look."""
    begun = time.perf_counter()
    small_pictures(host.model, latents, vae)
    return time.perf_counter() - begun


def check(card: Card) -> Outcome:
    """Check 13: previews after every pair."""
    outcome = Outcome()
    host = tinyflux_host(dtype=torch.float32 if card.tiny else torch.bfloat16)
    vae = IdleVae()
    seconds: list[float] = []
    on_card: list[int] = []

    def show(latents: torch.Tensor | None, _: Any) -> None:
        on_card.append(loaded_bytes(host.model))
        if latents is not None:
            # TinyFlux's own, and as many of 512 px.
            seconds.extend(look_seconds(host, vae, each) for each in (latents, random_latents(64)))
        on_card.append(loaded_bytes(host.model))

    train_eraser(host, short_config(PAIRS, **LOOKS), show=show)
    outcome.must("every pair was looked at", len(seconds) == 2 * PAIRS)
    outcome.at_most("seconds of a look's pictures", max(seconds, default=float("nan")), SECONDS)
    outcome.must("the training's weights stay where they are", len(set(on_card)) == 1 and min(on_card) > 0)
    outcome.must("nobody waits for the VAE", vae.asked == 0)
    management.unload_all_models()
    return outcome
