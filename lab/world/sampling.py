"""Prompts and seeds to pictures, in batches, without ComfyUI's server."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eraseanything_core.sampling import euler, shifted_sigmas
from lab.tinyflux import precision
from lab.tinyflux.pipeline import noise
from lab.world.generators import Generator
from lab.world.latents import Space
from lab.world.text import LENGTHS, Captions, pieces_of

MU = 1.15  # ComfyUI's sampling shift for Flux


@dataclass
class Sampler:
    """Draws pictures.

    Attributes:
        distilled: whether guidance is an input of the generator; else it takes two forwards a step.
    """

    generator: Generator
    space: Space
    captions: Captions
    distilled: bool = False
    steps: int = 20
    guidance: float = 3.0

    def _velocity(self, x: Tensor, time: Tensor, states: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
        with precision.autocast():
            return self.generator.velocity(x, time, states, pooled, guidance).float()

    @torch.no_grad()
    def latents(self, prompts: list[str], seeds: list[int]) -> Tensor:
        """x_0 in the space of the autoencoder, [n, 16, 12, 12]."""
        count = len(prompts)
        pieces = pieces_of(self.captions.tokenizer, [*prompts, *[""] * count], LENGTHS[1])
        states, pooled = self.generator.encoder(pieces)
        # The empty prompt has no pooled vector in training either.
        pooled = torch.cat((pooled[:count], torch.zeros_like(pooled[:count])))
        strength = torch.full((count,), self.guidance)

        def step(x: Tensor, time: Tensor) -> Tensor:
            if self.distilled:
                return self._velocity(x, time, states[:count], pooled[:count], strength)
            both = self._velocity(x.repeat(2, 1, 1, 1), time.repeat(2), states, pooled, torch.ones(2 * count))
            with_prompt, without = both.chunk(2)
            return without + self.guidance * (with_prompt - without)

        walk = list(euler(step, noise(seeds), shifted_sigmas(self.steps, MU)))
        return self.generator.common(walk[-1][0])

    def pictures(self, prompts: list[str], seeds: list[int], batch: int = 64) -> Tensor:
        """[n, 3, 96, 96] in [0, 1]."""
        drawn = []
        for start in range(0, len(prompts), batch):
            drawn.append(self.space.decode(self.latents(prompts[start : start + batch], seeds[start : start + batch])))
        return torch.cat(drawn)
