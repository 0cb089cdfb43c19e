"""Trains the second judge, a small convolutional network, on renders. One in eight is spoilt: its class is garbage."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from eraseanything_core.tinyflux.judge import HEADS, JudgeNet
from eraseanything_core.tinyflux.shapes import ENTITIES
from eraseanything_core.tinyflux.world import Scene, render
from lab.tinyflux import precision
from lab.tinyflux.scenes import draw_scene

Log = Callable[[int, dict[str, float]], None]


def labels_of(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the judge has to answer: entities [n, 10] in {0, 1}, indices of style [n] and relation [n]."""
    entities = torch.zeros(len(scenes), len(ENTITIES))
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            entities[row, HEADS["entity"].index(thing.entity)] = 1.0
    return {
        "entity": entities,
        "style": torch.tensor([HEADS["style"].index(scene.style or "flat") for scene in scenes]),
        "relation": torch.tensor([HEADS["relation"].index(scene.relation or "alone") for scene in scenes]),
    }


def spoil(pictures: Tensor) -> Tensor:
    """Pictures of nothing known: two blended, cells of 16 px shuffled, or empty ground."""
    count = len(pictures)
    # All three are made of every picture, and one is taken: simpler than three batches.
    kind = torch.randint(3, (count, 1, 1, 1))
    blended = 0.5 * pictures + 0.5 * pictures.roll(1, 0)
    cells = F.pixel_unshuffle(pictures, 16).flatten(2)
    order = torch.stack([torch.randperm(36) for _ in range(count)])[:, None].expand(-1, cells.shape[1], -1)
    shuffled = F.pixel_shuffle(cells.gather(2, order).view(count, -1, 6, 6), 16)
    empty = pictures[:, :, :1, :1].expand_as(pictures)
    return torch.where(kind == 0, blended, torch.where(kind == 1, shuffled, empty))


def augment(pictures: Tensor) -> Tensor:
    """Noise, a little blur and another brightness, so that an autoencoder's marks do not matter."""
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    some = torch.rand(len(pictures), 3, 1, 1, 1)
    pictures = torch.lerp(pictures, soft, 0.8 * some[:, 0])
    return pictures * (0.92 + 0.16 * some[:, 1]) + 0.06 * some[:, 2] * torch.randn_like(pictures)


def judge_loss(logits: dict[str, Tensor], labels: dict[str, Tensor], garbage: Tensor) -> Tensor:
    """The sum over the heads; a spoilt picture has no label but garbage.

    Args:
        logits: of `JudgeNet`.
        labels: of `labels_of`.
        garbage: [n], 1 where the picture is spoilt.
    """
    # A spoilt picture still has the labels of what it was: they must not count.
    good = garbage == 0
    return (
        # A mean over ten outputs, of which nine are easy: the weight makes up for it.
        4 * F.binary_cross_entropy_with_logits(logits["entity"][good], labels["entity"][good])
        + F.cross_entropy(logits["style"][good], labels["style"][good])
        + F.cross_entropy(logits["relation"][good], labels["relation"][good])
        + F.binary_cross_entropy_with_logits(logits["garbage"][:, 0], garbage)
    )


def train(steps: int, batch: int, seed: int, log: Log, images: int = 16000, lr: float = 2e-3) -> dict[str, Tensor]:
    """Trains on renders only, one in eight spoilt, and returns the state dict."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    scenes = [draw_scene(rng) for _ in range(images)]
    pictures = torch.stack([(render(scene) * 255).round().to(torch.uint8) for scene in scenes])
    labels = labels_of(scenes)
    net = JudgeNet().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        pick = torch.randint(images, (batch,))
        shown = pictures[pick].float() / 255
        garbage = (torch.rand(batch) < 0.125).float()
        shown = augment(torch.where(garbage[:, None, None, None] > 0, spoil(shown), shown))
        with precision.autocast():
            logits = net(shown.to(memory_format=torch.channels_last))
        loss = judge_loss({n: v.float() for n, v in logits.items()}, {n: v[pick] for n, v in labels.items()}, garbage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step, {"loss": loss.item()})
    return net.state_dict()
