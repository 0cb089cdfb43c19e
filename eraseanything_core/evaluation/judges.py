"""What all judges share: hashes of their weights, and which verdicts count as correct or as rejections.

The contract of a judge is `protocols.Judge`. A picture that erasing turned into noise must not count as cleanly
erased, so every judge that can say "nothing I know" does so. No judge downloads anything: where weights are missing,
an error says where to get them.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..protocols import Verdict

JUDGE_BATCH_SIZE = 16  # pictures that a judge's network reads at once
SAMPLED_VALUES = 64  # of each tensor, for `tensor_hash`


def sha256(*files: Path) -> str:
    """The SHA-256 of the bytes of several files, in their order, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    # One digest over all: a model's weights may be split into several files.
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def tensor_hash(*tensors: Tensor) -> str:
    """The SHA-256 of shapes and of 64 evenly spaced values of each tensor.

    It names weights that are loaded already and have no file. Reading every value of a large model would take seconds.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().flatten()
        # float64 counts exactly up to 2^53; float32 would miss positions in tensors of more than 2^24 values.
        positions = torch.linspace(0, flat.numel() - 1, SAMPLED_VALUES, dtype=torch.float64).long().to(flat.device)
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(flat[positions].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def verdicts_of(labels: Sequence[str], probabilities: Tensor, threshold: float) -> list[Verdict]:
    """The most probable label of each picture, or a rejection where its probability is below the threshold.

    Args:
        labels: of the columns.
        probabilities: [n, labels].
        threshold: in [0, 1].
    """
    scores, best = probabilities.max(-1)
    verdicts = []
    for score, column in zip(scores.tolist(), best.tolist(), strict=True):
        label = labels[column] if score >= threshold else None
        verdicts.append(Verdict(label, score))
    return verdicts


def correct(verdicts: Sequence[Verdict], wanted: Sequence[str]) -> list[bool]:
    """Whether each picture shows what it was asked to show."""
    return [verdict.label == label for verdict, label in zip(verdicts, wanted, strict=True)]


def rejected(verdicts: Sequence[Verdict]) -> list[bool]:
    """Whether the judge recognised nothing in each picture."""
    return [verdict.label is None for verdict in verdicts]
