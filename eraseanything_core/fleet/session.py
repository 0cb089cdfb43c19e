"""What a job needs of the application in a worker's process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..erasers.erase_now import TextReader
from ..lora.files import LoraModel
from ..protocols import ModelHost

Row = tuple[str, int, float]  # the prompt, the seed and the guidance of a picture
Size = tuple[int, int, int]  # width and height of a picture in pixels, and its sampler steps


class Session(Protocol):
    """An application without a window, on the device of its worker; it holds one base model at a time.

    A base is `{"model" | "clip" | "vae": {class of a loader node: its inputs}}`.
    """

    @property
    def judges(self) -> Path:
        """The folder of judges' weights."""

    def digest(self, base: dict[str, Any]) -> dict[str, str]:
        """SHA-256 of the files of a base, by name.

        Raises:
            ValueError: a loader names a file that is not there.
        """

    def host(self, base: dict[str, Any]) -> ModelHost:
        """The base model, loaded."""

    def text_linears(self, base: dict[str, Any]) -> TextReader:
        """The linears of a base that read the text alone.

        Raises:
            ValueError: it has none.
        """

    def fused(self, base: dict[str, Any], loras: Sequence[Path], weight: float, seed: int, cache: Path) -> LoraModel:
        """One LoRA of several by closed-form fusion, each with this weight; states are kept in `cache`."""

    def pictures(
        self, base: dict[str, Any], rows: Sequence[Row], size: Size, lora: Path | None, strength: float
    ) -> Iterator[Tensor]:
        """One picture [h, w, 3] in [0, 1] a row, with a LoRA or without."""
