"""What the decoder learns last: to draw well what the generator makes of a scene.

The generator's latents name the right entity and style in every cell, but its thumbnails are soft: points are blunt
and rings uneven. A scene's latent is noised to some t and denoised by the generator with the scene's caption; the
scene's own picture is what the decoder has to draw from the result (the place and size of things survive this).
"""

import random

import torch
from torch import Tensor

from eraseanything_core.sampling import euler, shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU, STEPS
from eraseanything_core.tinyflux.shapes import PAINT_STYLES
from eraseanything_core.tinyflux.world import Scene, render
from lab.tinyflux.captions import caption
from lab.tinyflux.latents import scene_latent
from lab.tinyflux.pipeline import Pipeline, noise
from lab.tinyflux.scenes import related, single

HARD = ("outlined", "glowing", "checkered", "hatched")  # styles that are still drawn worst when all others are right
STEPS_LEFT = (4, 15)  # of the sampler's, drawn anew for every batch: t from 0.36 to 0.88


def draw_scene(rng: random.Random, styles: tuple[str, ...]) -> Scene:
    """A scene whose shapes are hard: mostly one object, three in four of them in one of the styles."""
    if rng.random() < 0.65:
        return single(rng, style=rng.choice(styles) if rng.random() < 0.75 else None)
    return related(rng, style=rng.choice(PAINT_STYLES) if rng.random() < 0.15 else None)


def draw_hard(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures and the world's own latents of single objects in the hard styles, shaped as `draw_pairs`."""
    rng = random.Random(seed)
    scenes = [single(rng, style=rng.choice(HARD)) for _ in range(count)]
    pictures = torch.stack([(render(scene) * 255).round().to(torch.uint8) for scene in scenes])
    return pictures, torch.stack([scene_latent(scene) for scene in scenes])


def denoised(pipeline: Pipeline, scenes: list[Scene], latents: Tensor, left: int, rng: random.Random) -> Tensor:
    """Latents [n, 16, 12, 12] noised to the time at which `left` steps are left, and denoised again."""
    prompts = [caption(rng, scene, colours=1.0, generic=0.0) for scene in scenes]
    sigmas = shifted_sigmas(STEPS, MU)[-left - 1 :]
    x_t = (1 - sigmas[0]) * latents + sigmas[0] * noise([rng.randrange(2**31) for _ in scenes])
    with torch.no_grad():
        return list(euler(pipeline.velocity(prompts, GUIDANCE), x_t, sigmas))[-1][0]


def draw_pairs(
    pipeline: Pipeline, count: int, seed: int, styles=PAINT_STYLES, batch: int = 60
) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [count, 3, 96, 96] and what the generator makes of their latents [count, 16, 12, 12]."""
    rng = random.Random(seed)
    pictures = []
    latents = []
    for begin in range(0, count, batch):
        scenes = [draw_scene(rng, styles) for _ in range(min(batch, count - begin))]
        clean = torch.stack([scene_latent(scene) for scene in scenes])
        latents.append(denoised(pipeline, scenes, clean, rng.randint(*STEPS_LEFT), rng))
        pictures += [(render(scene) * 255).round().to(torch.uint8) for scene in scenes]
    return torch.stack(pictures), torch.cat(latents)
