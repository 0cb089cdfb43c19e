"""Measured strength curves, a file each in a folder of the user: a LoRA's own file is never rewritten."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .. import files
from .files import tensors_sha256
from .strength import StrengthCurve


class DialFolder:
    """Strength curves by the tensors of the LoRA that each is of, whatever the LoRA's file is called.

    Args:
        folder: is made when the first curve is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, tensors: Mapping[str, Tensor]) -> Path:
        """The file of a LoRA's curve, which may not exist."""
        return self.folder / f"{tensors_sha256(tensors)}.json"

    def read(self, tensors: Mapping[str, Tensor]) -> StrengthCurve | None:
        """The curve that was kept for a LoRA, if there is one; raises ValueError when its file is damaged."""
        path = self.path(tensors)
        return StrengthCurve.from_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None

    def write(self, tensors: Mapping[str, Tensor], curve: StrengthCurve) -> Path:
        """Keeps a curve for a LoRA; raises OSError when the folder does not take it."""
        # Here and not in the constructor: who only reads leaves no folder behind.
        self.folder.mkdir(parents=True, exist_ok=True)
        return files.write_atomic(self.path(tensors), curve.to_json().encode())
