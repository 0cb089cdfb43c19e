"""Hosts for whole trainings: TinyFlux with its own text encoder, and a random model with random encodings."""

import hashlib
from typing import Any

import comfy.sample
import torch
from safetensors.torch import load_file
from torch import Tensor

from eraseanything_core.comfy_bridge.architecture import t5_tokenizer
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.concepts.pieces import pieces_of
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.protocols import EncodedPrompt
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.presets import run_config
from lab.gpu.small_model import load
from lab.tinyflux.pipeline import WEIGHTS, Pipeline, TrainerText, flux

SIZE = {"width": 96, "height": 96}  # of TinyFlux's pictures
UNWATCHED = {"monitor_every": 0, "stop_when_gone": False, "adapt_rate": False}


class TinyText(TrainerText):
    """TinyFlux's text encoder; its encodings may stand in a graph."""

    def encode(self, text: str) -> EncodedPrompt:
        """context [1, l, 128] and pooled [1, 64]."""
        return EncodedPrompt(*super().encode(text))


class RandomText:
    """Random encodings, the same for the same text.

    Args:
        tokens: of a prompt.
        features: of a token, and of the pooled vector.
    """

    def __init__(self, tokens: int, features: tuple[int, int]) -> None:
        self.tokenizer = t5_tokenizer(tokens)
        self.tokens = tokens
        self.features = features

    def pieces(self, text: str) -> list[str]:
        """The T5 pieces of a prompt, one a token."""
        return [p for row in self.tokenizer.tokenize_with_weights(text) for p in pieces_of(self.tokenizer, row)]

    def encode(self, text: str) -> EncodedPrompt:
        """context [1, tokens, features] and pooled [1, features]."""
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        width, pooled = self.features
        context = torch.randn(1, self.tokens, width, generator=generator)
        return EncodedPrompt(context, torch.randn(1, pooled, generator=generator))


class LabHost(ComfyHost):
    """ComfyUI as the host of a MODEL, with a text encoder of the laboratory.

    Args:
        model: MODEL of a loader.
        text: its text encoder.
    """

    def __init__(self, model: Any, text: Any) -> None:
        super().__init__(model, None)
        self.text = text

    def text_encoder(self, keep: bool = True) -> Any:
        """The laboratory's."""
        return self.text


def sampled(host: LabHost, model: Any, prompt: str, steps: int, callback: Any = None) -> Tensor:
    """Latents [1, 16, 12, 12] of a prompt as a sampler node makes them, float32, on the CPU.

    Args:
        host: whose text encoder is used.
        model: MODEL to sample with.
        prompt: what is drawn.
        steps: of Euler's method.
        callback: called by ComfyUI after each of them.
    """
    encoded = host.text.encode(prompt)
    condition = [[encoded.context, {"pooled_output": encoded.pooled, "guidance": 3.5}]]
    latent = torch.zeros(1, 16, 12, 12)
    noise = comfy.sample.prepare_noise(latent, 3)
    with torch.inference_mode():
        latents: Tensor = comfy.sample.sample(
            model, noise, steps, 1.0, "euler", "simple", condition, condition, latent, disable_pbar=True, seed=3,
            callback=callback,
        )  # fmt: skip
    return latents.float().cpu()


def tinyflux_host(**options: Any) -> LabHost:
    """TinyFlux as a loader node gives it; `options` are those of ComfyUI's loader."""
    state: dict[str, Tensor] = load_file(WEIGHTS / "tinyflux.safetensors")
    return LabHost(load(state, **options), TinyText(Pipeline(flux())))


def tinyflux_config(concept: str, preset: str = "balanced", **change: Any) -> EraseConfig:
    """A run on TinyFlux from the word alone."""
    return run_config(sample_offline(ConceptRequest(concept)).settings(), preset, {**SIZE, **change})


def short_config(steps: int, **change: Any) -> EraseConfig:
    """A run of a few pairs that measures nothing."""
    small = {"steps": steps, "refresh_every": 6, "sampling_steps": 3, "cached_trajectories": 2}
    small |= {"cached_retain_trajectories": 4, "sentences": 8}
    return tinyflux_config("heart", "balanced", **{**small, **UNWATCHED, "other_neutrals": (), **change})
