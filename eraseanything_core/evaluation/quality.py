"""How far pictures are from those before erasing: Fréchet and kernel distances, CLIP score, LPIPS, drift.

The distances are torchmetrics' (optional: `pip install torchmetrics`). On another network than Inception the Fréchet
distance is called FD_<network>, never FID.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from ..tinyflux import judge
from . import recogniser
from .judges import sha256

NETWORKS = ("mobilenet_v2", "inception", "tinyflux")
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_NETS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def need(package: str):
    """Raises ValueError with what to install when a package is missing."""
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise ValueError(f"{package} is not installed: run `pip install {package}` in ComfyUI's Python")


@dataclass(frozen=True)
class Measure:
    """One distance or score.

    Attributes:
        name: what it is, with the network's name.
        value: the number.
        n: pictures, or pairs of them.
        sha256: of the file whose network it was measured with; empty where there is none.
        spread: standard deviation over random subsets, where there is one.
        note: what a reader must know.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    value: float
    n: int
    sha256: str = ""
    spread: float | None = None
    note: str = ""

    def text(self) -> str:
        spread = "" if self.spread is None else f", standard deviation over subsets {self.spread:.5f}"
        return f"{self.name}: {self.value:.5f}{spread} ({self.n} pictures{'; ' * bool(self.note)}{self.note})"


def require(name: str | None, folder: Path, with_lpips: bool = False):
    """Looks for what the distances need, before a picture is drawn; None stands for a network that is not known yet.

    Raises:
        ValueError: a package or a file is missing, with where to get it, or there is no such network.
    """
    need("torchmetrics")
    if name is not None:
        network_file(name, folder)
    if with_lpips:
        lpips_file()


def network_file(name: str, folder: Path) -> Path:
    """The weights of one of `NETWORKS`.

    Raises:
        ValueError: the file or a package is missing, or there is no such network.
    """
    if name == "tinyflux":
        return judge.WEIGHTS
    if name == "mobilenet_v2":
        return recogniser.find_backbone(folder)
    if name != "inception":
        raise ValueError(f"there is no network {name!r}; known: {', '.join(NETWORKS)}")
    need("torch-fidelity")
    weights = folder / INCEPTION
    if not weights.is_file():
        raise ValueError(
            f"{weights} is not there: download {INCEPTION} from "
            "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0 and put it there"
        )
    return weights


def inception(weights: Path):
    """The network of FID, from a file; torchmetrics builds it with torch-fidelity.

    That would run whatever a file brings, so this one is first read as nothing but tensors.

    Raises:
        ValueError: the file holds something else.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{weights} holds more than weights and is not opened: download it again") from error
    return _Bytes(NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights)))


class _Bytes(nn.Module):
    """Gives a network that wants bytes pictures in [0, 1]."""

    num_features = 2048

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net((pictures * 255).byte())


class JudgeFeatures(nn.Module):
    """Pooled features of TinyFlux's judge, for pictures of 96 px."""

    num_features = 160

    def __init__(self):
        super().__init__()
        self.net = judge.load()

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net.body(pictures - 0.5).mean((2, 3))


def network(name: str, folder: Path) -> nn.Module:
    """One of `NETWORKS`, its weights from a folder; ValueError says what is missing."""
    weights = network_file(name, folder)
    if name == "tinyflux":
        return JudgeFeatures()
    return inception(weights) if name == "inception" else recogniser.features(weights)


def frechet(before: Tensor, after: Tensor, net: nn.Module, name: str, batch: int = 32) -> dict:
    """The Fréchet distance of two sets of pictures, equally many: it is biased in their number.

    Args:
        before, after: [n, 3, h, w] in [0, 1].
        net: pictures to features [n, d]; has `num_features`.
        name: of the network; "inception" makes it FID.

    Returns:
        {"name", "value", "n"}.

    Raises:
        ValueError: torchmetrics is missing, or the sets are of different sizes.
    """
    need("torchmetrics")
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} pictures before and {len(after)} after: a Fréchet distance needs equal numbers"
        )
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=net, normalize=True)
    _feed(metric, before, after, batch)
    called = "FID" if name == "inception" else f"FD_{name}"
    return {"name": called, "value": float(metric.compute()), "n": len(after)}


def kernel_distance(
    before: Tensor, after: Tensor, net: nn.Module, name: str, subsets: int = 50, subset: int = 100, batch: int = 32
) -> dict:
    """KID, which is unbiased: the mean over random subsets, with their standard deviation.

    Returns:
        {"name", "value", "spread", "n"}.
    """
    need("torchmetrics")
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(subset, len(before), len(after))
    metric = KernelInceptionDistance(feature=net, subsets=subsets, subset_size=size, normalize=True)
    _feed(metric, before, after, batch)
    mean, spread = metric.compute()
    called = "KID" if name == "inception" else f"KD_{name}"
    return {"name": called, "value": float(mean), "spread": float(spread), "n": len(after)}


def paired_kernel_distance(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """The unbiased squared MMD of paired pictures under KID's kernel (Gretton et al. 2012), with a 95 % interval.

    mean over i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j), k = (x y / d + 1)^3; the interval is the
    jackknife's over pairs. Equal pictures are at 0.

    Args:
        before, after: features of the same prompts and seeds, [n, d], n at least 3.

    Returns:
        The distance and both ends of its interval.
    """
    x, y, n = before.double(), after.double(), len(before)
    h = (x @ x.T / x.shape[1] + 1) ** 3 + (y @ y.T / y.shape[1] + 1) ** 3
    cross = (x @ y.T / x.shape[1] + 1) ** 3
    rows = (h - cross - cross.T).fill_diagonal_(0).sum(1)
    left_out = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
    value, reach = float(rows.sum() / (n * (n - 1))), 1.96 * float(((n - 1) * left_out.var(unbiased=False)).sqrt())
    return value, value - reach, value + reach


def _feed(metric, before: Tensor, after: Tensor, batch: int):
    for pictures, real in ((before, True), (after, False)):
        for part in pictures.split(batch):
            metric.update(part, real=real)


def clip_score(clip, pictures: Tensor, prompts: list[str]) -> float:
    """The mean of 100 max(cos, 0) between each picture and its prompt (Hessel et al. 2021).

    Args:
        clip: as `judges.ClipJudge` takes it.
    """
    cosines = (clip.images(pictures) * clip.texts(prompts)).sum(-1)
    return float(100 * cosines.clamp_min(0).mean())


def lpips_file(net: str = "alex") -> Path:
    """The network of LPIPS, which must be among torch.hub's files already; ValueError says where to get it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_NETS[net]
    if not path.is_file():
        raise ValueError(f"{path} is not there: download https://download.pytorch.org/models/{path.name} to it")
    return path


def lpips(before: Tensor, after: Tensor, net: str = "alex") -> float:
    """The mean LPIPS of pairs (Zhang et al. 2018).

    Raises:
        ValueError: torchmetrics or the weights are missing.
    """
    need("torchmetrics")
    lpips_file(net)
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    return float(learned_perceptual_image_patch_similarity(before, after, net_type=net, normalize=True))


def rms_drift(before: Tensor, after: Tensor) -> list[float]:
    """The root mean square difference of each pair of pictures (or latents) of one prompt and seed, [n, ...].

    Not the drift of board E, which is the mean absolute difference.
    """
    return (after - before).flatten(1).pow(2).mean(1).sqrt().tolist()


def distances(before: Tensor, after: Tensor, name: str, folder: Path) -> list[Measure]:
    """RMS drift, Fréchet and kernel distance of paired pictures."""
    if before.shape != after.shape:
        raise ValueError(
            f"{len(before)} pictures before and {len(after)} after: give those of the same prompts and seeds"
        )
    net, sha = network(name, folder), sha256(network_file(name, folder))
    moved = rms_drift(before, after)
    return [
        Measure("RMS drift at the same seed", sum(moved) / len(moved), len(moved)),
        Measure(**frechet(before, after, net, name), sha256=sha, note="biased in their number"),
        Measure(**kernel_distance(before, after, net, name), sha256=sha),
    ]


def perceptual(before: Tensor, after: Tensor) -> Measure:
    """LPIPS with AlexNet of paired pictures."""
    return Measure("LPIPS (AlexNet)", lpips(before, after), len(after), sha256(lpips_file()))


def clip_scores(before: Tensor, after: Tensor, prompts: list[str], clip) -> list[Measure]:
    """The CLIP scores before and after."""
    if len(prompts) != len(after):
        raise ValueError(f"{len(prompts)} prompts for {len(after)} pictures: connect `prompts` for the CLIP score")
    name, sha = (clip.identity[part] for part in ("name", "sha256"))
    return [
        Measure(f"CLIP score ({name}), {when}", clip_score(clip, pictures, prompts), len(pictures), sha)
        for when, pictures in (("before", before), ("after", after))
    ]
