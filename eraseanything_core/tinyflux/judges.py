"""TinyFlux's own judges and feature network, as the evaluation takes them; see `protocols.Judge`.

Nothing in `evaluation` knows them. Who wants them passes `JUDGES` and `NETWORKS` together with the tables there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..evaluation.judge_choice import JudgeEntry, JudgeRequest
from ..evaluation.judges import sha256
from ..evaluation.quality import FeatureNetwork
from ..protocols import Verdict
from . import judge, oracle
from .concepts import kind_of
from .world import PICTURE_SIZE


def check_size(pictures: Tensor) -> None:
    """Raises ValueError for pictures that are not of TinyFlux's size."""
    if tuple(pictures.shape[1:]) != (3, PICTURE_SIZE, PICTURE_SIZE):
        # [n, c, h, w] as people say it: width x height x channels.
        size = "x".join(str(side) for side in pictures.shape[:0:-1])
        expected = f"{PICTURE_SIZE}x{PICTURE_SIZE}"
        raise ValueError(f"TinyFlux's judges read {expected} RGB pictures, not {size}: choose another judge")


class OracleJudge:
    """The oracle: it reads a picture by rendering what it might be, and compares.

    Args:
        kind: what it is asked for: "entity", "style" or "relation".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.labels: Sequence[str] = judge.HEADS[kind]
        # It has no weights. What it answers is decided by its code and by what the code draws.
        here = Path(oracle.__file__)
        sources = [here.with_name(name) for name in ("oracle.py", "shapes.py", "world.py")]
        self.identity: dict[str, str | float] = {
            "name": "TinyFlux oracle",
            "kind": kind,
            "sha256": sha256(*sources),
            "residual": oracle.FIT,
        }

    def read(self, pictures: Tensor) -> list[Verdict]:
        """One verdict a picture; pictures [n, 3, 96, 96] in [0, 1]."""
        check_size(pictures)
        # One reading answers several kinds; only the one that was asked for counts.
        return [Verdict(getattr(reading, self.kind)) for reading in oracle.read(pictures, self.kind)]


class CnnJudge:
    """The convolutional judge, trained on renders.

    Args:
        kind: what it is asked for: "entity", "style" or "relation".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.labels: Sequence[str] = judge.HEADS[kind]
        self.network = judge.load()
        self.identity: dict[str, str | float] = {
            "name": "TinyFlux CNN",
            "kind": kind,
            "sha256": sha256(judge.WEIGHTS),
            "sure": judge.SURE,
        }

    def read(self, pictures: Tensor) -> list[Verdict]:
        """One verdict a picture; pictures [n, 3, 96, 96] in [0, 1]."""
        check_size(pictures)
        return [Verdict(getattr(reading, self.kind)) for reading in judge.read(self.network, pictures, self.kind)]


class JudgeFeatures(nn.Module):
    """Pooled features [n, 160] of the convolutional judge, of pictures [n, 3, 96, 96] in [0, 1]."""

    num_features = 160

    def __init__(self) -> None:
        super().__init__()
        self.net = judge.load()  # frozen

    def forward(self, pictures: Tensor) -> Tensor:
        """The mean over the last feature map's positions."""
        return self.net.body(pictures - 0.5).mean((2, 3))


def _kind_of(labels: Sequence[str]) -> str:
    """The one kind that all labels are of; ValueError when they are of several, or of none of this world."""
    kinds = sorted({kind_of(label) for label in labels})
    if len(kinds) > 1:
        raise ValueError(
            f"the labels are of several kinds ({', '.join(kinds)}): judge each kind with a node of its own"
        )
    return kinds[0]


def _build_oracle(request: JudgeRequest) -> OracleJudge:
    return OracleJudge(_kind_of(request.wanted))


def _build_cnn(request: JudgeRequest) -> CnnJudge:
    return CnnJudge(_kind_of(request.wanted))


def _check_nothing(folder: Path, weights: str) -> None:
    """All that these judges need is shipped with them."""


JUDGES: Mapping[str, JudgeEntry] = {
    "TinyFlux oracle": JudgeEntry(_build_oracle, _check_nothing),
    "TinyFlux CNN": JudgeEntry(_build_cnn, _check_nothing),
}
NETWORKS: Mapping[str, FeatureNetwork] = {
    "tinyflux": FeatureNetwork(file=lambda folder: judge.WEIGHTS, load=lambda weights: JudgeFeatures()),
}
