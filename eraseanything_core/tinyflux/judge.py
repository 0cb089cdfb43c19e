"""The second judge: a small convolutional network trained on renders, with a class for pictures of nothing known."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .oracle import Reading
from .shapes import ENTITIES, STYLES
from .world import RELATIONS, Scene, draw_scene, render

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
SURE = 0.5  # probability below which the judge rejects
HEADS = {"entity": tuple(ENTITIES), "style": ("flat", *STYLES), "relation": ("alone", *RELATIONS)}


class JudgeNet(nn.Module):
    """Pictures [n, 3, 96, 96] in [0, 1] -> logits: a sigmoid an entity, softmaxes of style and relation, garbage."""

    def __init__(self, widths=(32, 64, 96, 128, 160)):
        super().__init__()
        layers, before = [], 3
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, 2 if i < 4 else 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)  # 6 x 6
        self.squeeze = nn.Conv2d(before, 24, 1)
        sizes = {name: len(values) for name, values in HEADS.items()} | {"garbage": 1}
        self.heads = nn.ModuleDict({n: nn.Linear(before * 2 + 24 * 36, size) for n, size in sizes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = self.body(pictures - 0.5)
        features = torch.cat([x.mean((2, 3)), x.amax((2, 3)), self.squeeze(x).flatten(1)], dim=1)
        return {name: head(features) for name, head in self.heads.items()}


def load(path: Path = WEIGHTS) -> JudgeNet:
    """The trained judge."""
    net = JudgeNet()
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


def read(net: JudgeNet, pictures: Tensor, kind: str) -> list[Reading]:
    """Reads pictures as the oracle does; `kind` is "entity", "style" or "relation"."""
    with torch.no_grad():
        logits = {name: value.float() for name, value in net.eval()(pictures).items()}
    return [_reading({name: value[i] for name, value in logits.items()}, kind) for i in range(len(pictures))]


def _reading(logits: dict[str, Tensor], kind: str) -> Reading:
    """The surest answer of every head that was asked, or None where the judge is not sure."""
    if logits["garbage"].sigmoid() >= SURE:
        return Reading()
    sure = {"entity": logits["entity"].sigmoid()} | {n: logits[n].softmax(-1) for n in ("style", "relation")}
    asked = ("relation",) if kind == "relation" else ("entity", "style")
    return Reading(**{n: HEADS[n][int(sure[n].argmax())] for n in asked if sure[n].max() > SURE})


def labels_of(scenes: list[Scene]) -> dict[str, Tensor]:
    drawn = [{o.entity for o in scene.objects} for scene in scenes]
    return {
        "entity": torch.tensor([[float(e in names) for e in ENTITIES] for names in drawn]),
        "style": torch.tensor([HEADS["style"].index(scene.style or "flat") for scene in scenes]),
        "relation": torch.tensor([HEADS["relation"].index(scene.relation or "alone") for scene in scenes]),
    }


def spoil(pictures: Tensor) -> Tensor:
    """Pictures of nothing known: two blended, cells of 16 px shuffled, or empty ground."""
    count, kind = len(pictures), torch.randint(3, (len(pictures), 1, 1, 1))
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
    good = garbage == 0
    return (
        4 * F.binary_cross_entropy_with_logits(logits["entity"][good], labels["entity"][good])
        + F.cross_entropy(logits["style"][good], labels["style"][good])
        + F.cross_entropy(logits["relation"][good], labels["relation"][good])
        + F.binary_cross_entropy_with_logits(logits["garbage"][:, 0], garbage)
    )


def train(steps: int, batch: int, seed: int, log, images: int = 16000, lr: float = 2e-3) -> dict[str, Tensor]:
    """Trains on renders only, one in eight spoilt, and returns the state dict."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    scenes = [draw_scene(rng) for _ in range(images)]
    pictures = torch.stack([(render(scene) * 255).round().to(torch.uint8) for scene in scenes])
    labels, net = labels_of(scenes), JudgeNet().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        pick = torch.randint(images, (batch,))
        shown, garbage = pictures[pick].float() / 255, (torch.rand(batch) < 0.125).float()
        shown = augment(torch.where(garbage[:, None, None, None] > 0, spoil(shown), shown))
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(shown.to(memory_format=torch.channels_last))
        loss = judge_loss({n: v.float() for n, v in logits.items()}, {n: v[pick] for n, v in labels.items()}, garbage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step, {"loss": loss.item()})
    return net.state_dict()
