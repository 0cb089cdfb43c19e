"""The second judge: a small convolutional network trained on renders, with an output for pictures of nothing known.

Its training is in `lab/tinyflux`.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .oracle import SceneReading
from .shapes import ENTITIES, PAINT_STYLES
from .world import RELATIONS

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
SURE = 0.5  # probability below which the judge rejects
HEADS = {"entity": tuple(ENTITIES), "style": ("flat", *PAINT_STYLES), "relation": ("alone", *RELATIONS)}
WIDTHS = (32, 64, 96, 128, 160)  # channels of the convolutions
CELLS = 6  # a side of the last feature map: 96 px halved four times
SQUEEZED = 24  # channels whose every position reaches the heads


class JudgeNet(nn.Module):
    """Pictures [n, 3, 96, 96] in [0, 1] to logits: a sigmoid an entity, softmaxes of style and relation, garbage."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, width in enumerate(widths):
            # Four halvings of 96 px leave 6 x 6 cells.
            stride = 2 if i < 4 else 1
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(channels, SQUEEZED, 1)
        # Mean and maximum say what is there. The squeezed map says where, which relations need.
        features = 2 * channels + SQUEEZED * CELLS**2
        sizes = {name: len(values) for name, values in HEADS.items()} | {"garbage": 1}
        self.heads = nn.ModuleDict({name: nn.Linear(features, size) for name, size in sizes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits of every head, [n, answers]."""
        x = self.body(pictures - 0.5)
        features = torch.cat([x.mean((2, 3)), x.amax((2, 3)), self.squeeze(x).flatten(1)], dim=1)
        return {name: head(features) for name, head in self.heads.items()}


def load(path: Path = WEIGHTS) -> JudgeNet:
    """The trained judge, frozen."""
    net = JudgeNet()
    net.load_state_dict(load_file(path))
    net.eval().requires_grad_(False)
    return net


def read(net: JudgeNet, pictures: Tensor, kind: str) -> list[SceneReading]:
    """Reads pictures as the oracle does.

    Args:
        net: the judge.
        pictures: [n, 3, 96, 96] in [0, 1].
        kind: "entity", "style" or "relation".
    """
    with torch.no_grad():
        logits = {name: value.float() for name, value in net.eval()(pictures).items()}
    readings = []
    for i in range(len(pictures)):
        readings.append(_reading({name: value[i] for name, value in logits.items()}, kind))
    return readings


def _reading(logits: dict[str, Tensor], kind: str) -> SceneReading:
    """The most probable answer of every head that is asked, or None where it is not probable enough."""
    # Trained on spoilt renders: without this output an eraser that ruins pictures would pass as one that erases.
    if logits["garbage"].sigmoid() >= SURE:
        return SceneReading()
    probabilities = {
        "entity": logits["entity"].sigmoid(),  # of each entity by itself: a picture may show two
        "style": logits["style"].softmax(-1),
        "relation": logits["relation"].softmax(-1),
    }
    answers = {}
    for head in ("relation",) if kind == "relation" else ("entity", "style"):
        # A forced answer would count a picture of nothing as some concept.
        if probabilities[head].max() > SURE:
            answers[head] = HEADS[head][int(probabilities[head].argmax())]
    return SceneReading(**answers)
