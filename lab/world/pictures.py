"""The pictures that everything learns from: drawn once, kept as bytes, mapped into memory."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lab.world.artwork import rendered
from lab.world.drawing import draw
from lab.world.files import CACHE
from lab.world.scenes import LAYOUTS, SIDE, Scene, alone, related
from lab.world.things import ICONS, THINGS

SEED = 1
RELATED = 0.2  # share of the pictures that show two things


def scene_of(number: int, seed: int = SEED) -> Scene:
    """A scene of the training distribution; the same for the same numbers."""
    rng = random.Random(f"{seed}-{number}")
    # Every thing is drawn equally often.
    thing = THINGS[number % len(THINGS)]
    if rng.random() >= RELATED:
        return alone(rng, thing)
    other = rng.choice([another for another in THINGS if another.name != thing.name])
    pair = (thing, other) if rng.random() < 0.5 else (other, thing)
    return related(rng, *pair, rng.choice(list(LAYOUTS)))


@cache
def scenes(count: int, seed: int = SEED) -> tuple[Scene, ...]:
    """The first scenes."""
    return tuple(scene_of(number, seed) for number in range(count))


def path_of(count: int, seed: int = SEED, folder: Path = CACHE) -> Path:
    return folder / f"pictures-{seed}-{count}.npy"


def draw_all(count: int, seed: int = SEED, folder: Path = CACHE) -> Path:
    """Draws the first scenes into a file of uint8 [count, 3, 96, 96]."""
    path = path_of(count, seed, folder)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    artwork = rendered(ICONS)
    part = path.with_suffix(".part")
    drawn = np.lib.format.open_memmap(part, "w+", np.uint8, (count, 3, SIDE, SIDE))
    for number in range(count):
        drawn[number] = (draw(scene_of(number, seed), artwork) * 255).round().byte().numpy()
        if number % 2000 == 0:
            print(f"pictures: {number} of {count}", flush=True)
    drawn.flush()
    part.replace(path)
    return path


def drawn(some: Sequence[Scene]) -> np.ndarray:
    """Pictures of a few scenes, uint8 [n, 3, 96, 96]."""
    artwork = rendered(ICONS)
    return np.stack([(draw(scene, artwork) * 255).round().byte().numpy() for scene in some])


def mapped(count: int, seed: int = SEED) -> np.ndarray:
    """The pictures of the first scenes, uint8 [count, 3, 96, 96]; drawn when they are not there."""
    return np.load(draw_all(count, seed), mmap_mode="r")
