"""The pictures of a look while the model trains and the VAE is idle."""

import time

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


def look_seconds(host: LabHost, vae: IdleVae, side: int) -> float:
    """Of the pictures of one look."""
    latents = torch.randn(PICTURES, 16, side, side, generator=torch.Generator().manual_seed(0))
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

    def show(pairs: int, _: dict[str, float]) -> None:
        on_card.append(loaded_bytes(host.model))
        seconds.append(look_seconds(host, vae, 12 if card.tiny else 64))
        on_card.append(loaded_bytes(host.model))

    train_eraser(host, short_config(PAIRS), show)
    outcome.at_most("seconds of a look's pictures", max(seconds), SECONDS)
    outcome.must("the training's weights stay where they are", len(set(on_card)) == 1)
    outcome.must("nobody waits for the VAE", vae.asked == 0)
    management.unload_all_models()
    return outcome
