"""A sheet of the world: `python -m lab.world.sheet sheet.png` draws things in every style and in every relation."""

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor

from lab.world.artwork import rendered
from lab.world.drawing import draw
from lab.world.scenes import LAYOUTS, STYLES, alone, related
from lab.world.things import ICONS, THINGS

SHOWN = ("cat", "tiger", "dog", "apple", "airplane", "castle", "sneaker", "car")


def pictures(rng: random.Random) -> Tensor:
    """A row of eight pictures for each style, then one for each relation, [n, 3, 96, 96]."""
    artwork = rendered(ICONS)
    things = [thing for name in SHOWN for thing in THINGS if thing.name == name]
    drawn = []
    for style in STYLES:
        for thing in things:
            drawn.append(draw(alone(rng, thing, style), artwork))
    for relation in LAYOUTS:
        for first in things:
            drawn.append(draw(related(rng, first, rng.choice(THINGS), relation), artwork))
    return torch.stack(drawn)


def main() -> None:
    from torchvision.utils import save_image

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    save_image(pictures(random.Random(args.seed)), args.out, nrow=len(SHOWN) * 2)


if __name__ == "__main__":
    main()
