"""Two judges of different architecture: they read things, style and relation, or that they know nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lab.tinyflux import precision
from lab.world.scenes import LAYOUTS, STYLES
from lab.world.things import THINGS

NOTHING = "nothing known"  # the class of spoilt pictures
HEADS = {
    "thing": (*(thing.name for thing in THINGS), NOTHING),
    "style": (*STYLES, NOTHING),
    "relation": ("alone", *LAYOUTS, NOTHING),
}
CELLS = 6  # a side of the last feature map
SQUEEZED = 24  # channels whose every position reaches the head of relations


def _convolution(channels: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


class PlainBody(nn.Sequential):
    """Seven convolutions, four of them halve: [n, 3, 96, 96] to [n, 256, 6, 6]."""

    width = 256

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in ((32, 2), (64, 2), (96, 1), (128, 2), (160, 1), (192, 2), (256, 1)):
            layers += _convolution(channels, width, stride)
            channels = width
        super().__init__(*layers)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut that pools."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, width, 2), *_convolution(width, width, 1)[:-1])
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResidualBody(nn.Sequential):
    """Patches of 2 x 2 px, then three residual blocks that halve: [n, 3, 96, 96] to [n, 224, 6, 6]."""

    width = 224

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 40, 2, 2), nn.ReLU(), _Residual(40, 80), _Residual(80, 144), _Residual(144, self.width)
        )


BODIES = {"plain": PlainBody, "residual": ResidualBody}


class Judge(nn.Module):
    """Pictures [n, 3, 96, 96] in [0, 1] to logits of every head.

    Args:
        body: a name of `BODIES`.
    """

    def __init__(self, body: str) -> None:
        super().__init__()
        self.body = BODIES[body]()
        width = self.body.width
        self.squeeze = nn.Conv2d(width, SQUEEZED, 1)
        self.heads = nn.ModuleDict()
        for name, answers in HEADS.items():
            places = SQUEEZED * CELLS**2 if name == "relation" else 0
            self.heads[name] = nn.Linear(2 * width + places, len(answers))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits, [n, answers] for each head."""
        x = self.body(pictures - 0.5)
        pooled = torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1)
        placed = torch.cat((pooled, self.squeeze(x).flatten(1)), 1)
        return {name: head(placed if name == "relation" else pooled) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Reading:
    """What a judge sees: the two most probable things, the style and the relation; `NOTHING` where it knows nothing."""

    things: tuple[str, str]
    style: str
    relation: str


@torch.no_grad()
def read(judge: Judge, pictures: Tensor, batch: int = 256) -> list[Reading]:
    """Reads pictures [n, 3, 96, 96] in [0, 1]."""
    judge.eval()
    readings = []
    for some in pictures.split(batch):
        with precision.autocast():
            logits = judge(some.contiguous(memory_format=torch.channels_last))
        things = logits["thing"].float().topk(2, 1).indices.tolist()
        styles = logits["style"].argmax(1).tolist()
        relations = logits["relation"].argmax(1).tolist()
        for (one, two), style, relation in zip(things, styles, relations):
            names = (HEADS["thing"][one], HEADS["thing"][two])
            readings.append(Reading(names, HEADS["style"][style], HEADS["relation"][relation]))
    return readings
