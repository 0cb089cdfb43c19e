"""MACE's preserving cache: the states of everything that must stay, made once and used for every concept.

A closed form needs only the sum of p p^T over kept states p. The triangular R of a QR decomposition of the rows p has
the same, R^T R = sum p p^T, in at most as many rows as a state has features. So thousands of captions take as much room
as one weight, and caches of several kinds are joined by standing under each other.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..lora.files import save_lora

ROWS = "rows"  # the tensor in a cache's file


def summed_rows(states: Sequence[Tensor], weight: float = 1.0) -> Tensor:
    """R of the equation above.

    Args:
        states: [n, columns] each, read one after the other.
        weight: of the sum: R^T R = weight sum p p^T.

    Returns:
        [at most columns, columns], float64.
    """
    rows = torch.zeros(0, states[0].shape[1], dtype=torch.float64)
    for part in states:
        # Never more than twice the rows of a weight are in memory.
        rows = torch.linalg.qr(torch.cat((rows, part.double())), mode="r").R
    return weight**0.5 * rows


def cached_rows(folder: Path, model: str, prompts: Sequence[str], read: Callable[[str], Tensor]) -> Tensor:
    """The rows of some prompts' states, from the file if they were read before.

    Args:
        folder: where files are kept; nothing is ever deleted there.
        model: names the text encoder and the linear that reads it.
        prompts: that must stay.
        read: a prompt to its states, [tokens, columns].

    Raises:
        ValueError: the file is damaged.
    """
    name = hashlib.sha256(repr((model, list(prompts))).encode()).hexdigest()
    path = folder / f"{name}.safetensors"
    if path.exists():
        try:
            return load_file(path)[ROWS]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, its states are read again") from error
    rows = summed_rows([read(prompt) for prompt in prompts])
    folder.mkdir(parents=True, exist_ok=True)
    save_lora({ROWS: rows}, path, {})
    return rows
