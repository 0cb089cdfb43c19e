"""Trains a judge on drawn pictures, one in eight of them spoilt."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.tinyflux import precision
from lab.world.judge import HEADS, Judge
from lab.world.muon import Muon
from lab.world.run import Pace, Run
from lab.world.scenes import Scene

SPOILT = 0.125
CELL = 16  # px of the pieces that spoilt pictures are shuffled in


def labels_of(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Indices of the first and the second thing [n, 2] (twice the same where it is alone), style and relation [n]."""
    number = {name: {answer: i for i, answer in enumerate(answers)} for name, answers in HEADS.items()}
    things = []
    for scene in scenes:
        pair = (scene.things[0].name, scene.things[min(1, len(scene.things) - 1)].name)
        things.append([number["thing"][name] for name in pair])
    return {
        "thing": torch.tensor(things),
        "style": torch.tensor([number["style"][scene.style] for scene in scenes]),
        "relation": torch.tensor([number["relation"][scene.relation or "alone"] for scene in scenes]),
    }


def spoil(pictures: Tensor) -> Tensor:
    """Pictures of nothing known: two blended, pieces shuffled, or a smear of their colours."""
    count, _, side, _ = pictures.shape
    kind = torch.randint(3, (count, 1, 1, 1))
    blended = 0.5 * pictures + 0.5 * pictures.roll(1, 0)
    pieces = F.pixel_unshuffle(pictures, CELL)
    grid = side // CELL
    order = torch.stack([torch.randperm(grid * grid) for _ in range(count)])[:, None]
    shuffled = pieces.flatten(2).gather(2, order.expand(-1, pieces.shape[1], -1)).view_as(pieces)
    smear = F.interpolate(F.avg_pool2d(pictures, 32), size=(side, side), mode="bilinear")
    return torch.where(kind == 0, blended, torch.where(kind == 1, F.pixel_shuffle(shuffled, CELL), smear))


def augment(pictures: Tensor) -> Tensor:
    """Blur, noise and another brightness, so that the marks of an autoencoder and a generator do not matter."""
    count, _, side, _ = pictures.shape
    some = torch.rand(4, count, 1, 1, 1)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    small = F.interpolate(F.avg_pool2d(pictures, 3), size=(side, side), mode="bilinear")
    pictures = torch.where(some[3] < 0.25, torch.lerp(pictures, small, some[0]), torch.lerp(pictures, soft, some[0]))
    return pictures * (0.92 + 0.16 * some[1]) + 0.06 * some[2] * torch.randn_like(pictures)


def judge_losses(logits: dict[str, Tensor], labels: dict[str, Tensor], spoilt: Tensor) -> dict[str, Tensor]:
    """Cross-entropies; a picture of two things asks for one half of each, a spoilt one for the last answer."""
    losses = {}
    for name, answer in labels.items():
        nothing = torch.full_like(answer, len(HEADS[name]) - 1)
        wanted = torch.where(spoilt[:, None] if answer.ndim == 2 else spoilt, nothing, answer)
        value = logits[name].float()
        if wanted.ndim == 2:
            losses[name] = 0.5 * (F.cross_entropy(value, wanted[:, 0]) + F.cross_entropy(value, wanted[:, 1]))
        else:
            losses[name] = F.cross_entropy(value, wanted)
    return losses


def train(
    body: str, pictures: np.ndarray, scenes: Sequence[Scene], minutes: float, pace: Pace, batch: int = 64
) -> None:
    """Trains the judge with that body."""
    torch.manual_seed(len(body))
    judge = Judge(body).to(memory_format=torch.channels_last)
    kernels = [p for p in judge.parameters() if p.ndim == 4]
    rest = [p for p in judge.parameters() if p.ndim < 4]
    optimizers = [Muon(kernels, pace.lr), torch.optim.AdamW(rest, pace.lr, weight_decay=0.05)]
    run = Run(f"judge-{body}", judge, optimizers, pace)
    labels = labels_of(scenes)

    def losses() -> dict[str, Tensor]:
        pick = torch.randint(len(pictures), (batch,))
        shown = torch.from_numpy(pictures[pick.sort().values.numpy()]).float() / 255
        pick = pick.sort().values
        spoilt = torch.rand(batch) < SPOILT
        shown = augment(torch.where(spoilt[:, None, None, None], spoil(shown), shown))
        with precision.autocast():
            logits = judge(shown.contiguous(memory_format=torch.channels_last))
        return judge_losses(logits, {name: value[pick] for name, value in labels.items()}, spoilt)

    run.go(losses, minutes)
