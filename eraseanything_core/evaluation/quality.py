"""How far pictures are from those before erasing: Fréchet and kernel distances, CLIP score, LPIPS, drift.

The distances are those of torchmetrics (optional: `pip install torchmetrics`). Only on the Inception network is a
Fréchet distance called FID; on another one it is FD_<network>, because the two numbers cannot be compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from ..packages import require_package
from ..quoting import quoted
from . import judges, recogniser
from .clip_judge import ClipModel

FEATURE_BATCH_SIZE = 32  # pictures that a network of features reads at once
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_NETS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


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

    # Part of the report, which refuses fields that it does not know; see `report.Strict`.
    __pydantic_config__ = {"extra": "forbid"}

    name: str
    value: float
    n: int
    sha256: str = ""
    spread: float | None = None
    note: str = ""

    def text(self) -> str:
        """The measure in one line."""
        spread = "" if self.spread is None else f", standard deviation over subsets {self.spread:.5f}"
        note = f"; {self.note}" if self.note else ""
        return f"{self.name}: {self.value:.5f}{spread} ({self.n} pictures{note})"


@dataclass(frozen=True)
class FeatureNetwork:
    """A network whose features are compared.

    Attributes:
        file: its weights, looked for in a folder; raises ValueError where they or a package are missing.
        load: the network of that file, pictures [n, 3, h, w] in [0, 1] to features [n, d]; it has `num_features`.
    """

    file: Callable[[Path], Path]
    load: Callable[[Path], nn.Module]


def inception_file(folder: Path) -> Path:
    """The weights of FID's Inception network in a folder.

    Raises:
        ValueError: the file or the package torch-fidelity is missing.
    """
    require_package("torch_fidelity", "torch-fidelity")
    weights = folder / INCEPTION
    if not weights.is_file():
        raise ValueError(
            f"{weights} is not there: download {INCEPTION} from "
            "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0 and put it there"
        )
    return weights


class _BytesNetwork(nn.Module):
    """Feeds a network that takes bytes with pictures in [0, 1]."""

    num_features = 2048

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network((pictures * 255).byte())


def inception(weights: Path) -> nn.Module:
    """The network of FID, from a file; torchmetrics builds it with torch-fidelity.

    Raises:
        ValueError: the file holds more than tensors.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    # torch-fidelity unpickles the file with everything in it, which could run code. A file that holds nothing but
    # tensors can be read with `weights_only`, so this reading comes first.
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{weights} holds more than weights and is not opened: download it again") from error
    return _BytesNetwork(NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights)))


NETWORKS: Mapping[str, FeatureNetwork] = {
    "mobilenet_v2": FeatureNetwork(file=recogniser.find_backbone, load=recogniser.features),
    "inception": FeatureNetwork(file=inception_file, load=inception),
}


def network_file(name: str, folder: Path, networks: Mapping[str, FeatureNetwork] = NETWORKS) -> Path:
    """The weights of a network.

    Raises:
        ValueError: the file or a package is missing, or there is no such network.
    """
    if name not in networks:
        raise ValueError(f"there is no network {quoted(name)}; known: {', '.join(networks)}")
    return networks[name].file(folder)


def load_network(name: str, folder: Path, networks: Mapping[str, FeatureNetwork] = NETWORKS) -> nn.Module:
    """A network with its weights from a folder; ValueError says what is missing."""
    return networks[name].load(network_file(name, folder, networks))


def require_quality(
    name: str | None, folder: Path, with_lpips: bool = False, networks: Mapping[str, FeatureNetwork] = NETWORKS
) -> None:
    """Checks what the distances need, before a picture is drawn.

    Args:
        name: of the network; None where it is not known yet.
        folder: where the weights of networks are.
        with_lpips: LPIPS is measured as well.
        networks: the table of known networks.

    Raises:
        ValueError: a package or a file is missing, with where to get it, or there is no such network.
    """
    require_package("torchmetrics")
    if name is not None:
        network_file(name, folder, networks)
    if with_lpips:
        lpips_file()


def frechet(
    before: Tensor,
    after: Tensor,
    net: nn.Module,
    name: str,
    batch: int = FEATURE_BATCH_SIZE,
    check_interrupt: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """The Fréchet distance of two sets of pictures (Heusel et al. 2017).

    It is biased: it falls with the number of pictures. So both sets must have the same size.

    Args:
        before, after: [n, 3, h, w] in [0, 1].
        net: pictures to features [n, d]; has `num_features`.
        name: of the network; "inception" makes it FID.
        batch: pictures that the network reads at once.
        check_interrupt: called before every batch; what it raises ends the work.

    Returns:
        {"name", "value", "n"}.

    Raises:
        ValueError: torchmetrics is missing, or the sets are of different sizes.
    """
    require_package("torchmetrics")
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} pictures before and {len(after)} after: a Fréchet distance needs equal numbers"
        )
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=net, normalize=True)
    _update(metric, before, after, batch, check_interrupt)
    title = "FID" if name == "inception" else f"FD_{name}"
    return {"name": title, "value": float(metric.compute()), "n": len(after)}


def kernel_distance(
    before: Tensor,
    after: Tensor,
    net: nn.Module,
    name: str,
    subsets: int = 50,
    subset: int = 100,
    batch: int = FEATURE_BATCH_SIZE,
    check_interrupt: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """KID, which is unbiased (Bińkowski et al. 2018): the mean over random subsets, with their standard deviation.

    Args:
        before, after, net, name, batch, check_interrupt: as for `frechet`.
        subsets: how many are drawn.
        subset: pictures of one, or all where there are fewer.

    Returns:
        {"name", "value", "spread", "n"}.

    Raises:
        ValueError: torchmetrics is missing.
    """
    require_package("torchmetrics")
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(subset, len(before), len(after))  # torchmetrics refuses a subset larger than the set
    metric = KernelInceptionDistance(feature=net, subsets=subsets, subset_size=size, normalize=True)
    _update(metric, before, after, batch, check_interrupt)
    mean, spread = metric.compute()
    title = "KID" if name == "inception" else f"KD_{name}"
    return {"name": title, "value": float(mean), "spread": float(spread), "n": len(after)}


def _update(metric: Any, before: Tensor, after: Tensor, batch: int, check_interrupt: Callable[[], None] | None) -> None:
    """Hands both sets to a metric of torchmetrics, in batches; it calls the first set the real one."""
    for pictures, real in ((before, True), (after, False)):
        for part in pictures.split(batch):
            if check_interrupt:
                check_interrupt()
            metric.update(part, real=real)


def paired_kernel_distance(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """The unbiased squared MMD of paired pictures under KID's kernel (Gretton et al. 2012), with a 95 % interval.

    It is the mean over i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j) with k = (x y / d + 1)^3. The
    interval is the jackknife's over pairs. Equal pictures are at exactly 0.

    Args:
        before, after: features of the same prompts and seeds, [n, d], n at least 3.

    Returns:
        The distance and both ends of its interval.
    """
    n, width = before.shape
    x = before.double()
    moved = after.double() - x  # y_i = x_i + moved_i
    # The four kernels differ only by `moved`. Written so, equal pictures make every difference exactly 0. Four
    # separate products would leave a rounding error there that depends on the BLAS library.
    x_x = x @ x.T / width + 1
    x_y = x_x + x @ moved.T / width  # x_i y_j / d + 1
    y_x = x_x + moved @ x.T / width
    y_y = x_y + (y_x - x_x) + moved @ moved.T / width
    terms = (x_x**3 - x_y**3) + (y_y**3 - y_x**3)
    # A picture paired with itself or with its own partner is left out, which makes the estimate unbiased.
    rows = terms.fill_diagonal_(0).sum(1)
    total = rows.sum()
    value = float(total / (n * (n - 1)))
    # Without pair i its row and its column are gone; the two have the same sum.
    left_out = (total - 2 * rows) / ((n - 1) * (n - 2))
    half_width = 1.96 * float(((n - 1) * left_out.var(unbiased=False)).sqrt())
    return value, value - half_width, value + half_width


def clip_score(
    clip: ClipModel, pictures: Tensor, prompts: Sequence[str], check_interrupt: Callable[[], None] | None = None
) -> float:
    """The mean of 100 max(cos, 0) between each picture and its prompt (Hessel et al. 2021).

    Args:
        clip: the model.
        pictures: [n, 3, h, w] in [0, 1].
        prompts: one a picture.
        check_interrupt: called before every batch; what it raises ends the work.
    """
    vectors = []
    # In the batches in which a CLIP reads pictures anyway.
    for part in pictures.split(judges.JUDGE_BATCH_SIZE):
        if check_interrupt:
            check_interrupt()
        vectors.append(clip.images(part))
    cosines = (torch.cat(vectors) * clip.texts(prompts)).sum(-1)
    return float(100 * cosines.clamp_min(0).mean())


def lpips_file(net: str = "alex") -> Path:
    """The network of LPIPS, which must be among torch.hub's files already; ValueError says where to get it."""
    # torchvision would download a missing file without a question, so this is looked at first.
    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_NETS[net]
    if not path.is_file():
        raise ValueError(f"{path} is not there: download https://download.pytorch.org/models/{path.name} to it")
    return path


def lpips(before: Tensor, after: Tensor, net: str = "alex", check_interrupt: Callable[[], None] | None = None) -> float:
    """The mean LPIPS of pairs of pictures [n, 3, h, w] in [0, 1] (Zhang et al. 2018).

    `check_interrupt` is called before every batch of pairs; what it raises ends the work.

    Raises:
        ValueError: torchmetrics or the weights are missing.
    """
    require_package("torchmetrics")
    lpips_file(net)
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    total = 0.0
    for first, second in zip(before.split(FEATURE_BATCH_SIZE), after.split(FEATURE_BATCH_SIZE), strict=True):
        if check_interrupt:
            check_interrupt()
        mean = float(learned_perceptual_image_patch_similarity(first, second, net_type=net, normalize=True))
        total += mean * (len(first) / len(before))  # the last batch may be smaller and counts less
    return total


def rms_drift(before: Tensor, after: Tensor) -> list[float]:
    """The root mean square difference of each pair of pictures (or latents) of one prompt and seed, [n, ...].

    Not the drift of board E, which is the mean absolute difference.
    """
    return (after - before).flatten(1).pow(2).mean(1).sqrt().tolist()


def distances(
    before: Tensor,
    after: Tensor,
    name: str,
    folder: Path,
    networks: Mapping[str, FeatureNetwork] = NETWORKS,
    check_interrupt: Callable[[], None] | None = None,
) -> list[Measure]:
    """RMS drift, Fréchet and kernel distance of paired pictures.

    Args:
        before, after: [n, 3, h, w] in [0, 1], the i-th ones of the same prompt and seed.
        name: of the network whose features are compared.
        folder: where its weights are.
        networks: the table of known networks.
        check_interrupt: called before every batch; what it raises ends the work.

    Raises:
        ValueError: the sets differ in number or size, or something is missing.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"{len(before)} pictures before and {len(after)} after: give those of the same prompts and seeds"
        )
    # FID needs thousands of pictures; the drift and the unbiased kernel distance mean something with a few.
    net = load_network(name, folder, networks)
    weights_hash = judges.sha256(network_file(name, folder, networks))
    drifts = rms_drift(before, after)
    fid = frechet(before, after, net, name, check_interrupt=check_interrupt)
    kid = kernel_distance(before, after, net, name, check_interrupt=check_interrupt)
    return [
        Measure("RMS drift at the same seed", sum(drifts) / len(drifts), len(drifts)),
        Measure(**fid, sha256=weights_hash, note="biased in their number"),
        Measure(**kid, sha256=weights_hash),
    ]


def perceptual(before: Tensor, after: Tensor, check_interrupt: Callable[[], None] | None = None) -> Measure:
    """LPIPS with AlexNet of paired pictures; see `lpips`."""
    distance = lpips(before, after, check_interrupt=check_interrupt)
    return Measure("LPIPS (AlexNet)", distance, len(after), judges.sha256(lpips_file()))


def clip_scores(
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    clip: ClipModel,
    check_interrupt: Callable[[], None] | None = None,
) -> list[Measure]:
    """The CLIP scores before and after; see `clip_score`.

    Raises:
        ValueError: not one prompt a picture.
    """
    if len(prompts) != len(after):
        raise ValueError(f"{len(prompts)} prompts for {len(after)} pictures: connect `prompts` for the CLIP score")
    name = clip.identity["name"]
    weights_hash = str(clip.identity["sha256"])
    measures = []
    for when, pictures in (("before", before), ("after", after)):
        score = clip_score(clip, pictures, prompts, check_interrupt)
        measures.append(Measure(f"CLIP score ({name}), {when}", score, len(pictures), weights_hash))
    return measures
