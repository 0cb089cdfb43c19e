"""The card that the checks run on, and what it says of itself."""

import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.memory_management
import comfy.model_management as management
import torch

from lab.bench.memory import Live

KINDS = ("cuda", "xpu", "mps")  # ROCm's cards are "cuda" to PyTorch
NO_CARD = "No card was found that PyTorch can use, so nothing was checked."


@dataclass(frozen=True)
class Card:
    """A device of PyTorch.

    Attributes:
        device: where the checks run.
        tiny: sizes that a CPU takes in seconds.
    """

    device: torch.device
    tiny: bool = False

    @property
    def name(self) -> str:
        """As its maker calls it."""
        if self.device.type in ("cuda", "xpu"):
            return str(self._api().get_device_name(self.device))
        return platform.processor() or platform.machine()

    @property
    def total(self) -> int:
        """Bytes of its memory."""
        return int(management.get_total_memory(self.device))

    def facts(self) -> dict[str, str]:
        """What decides a result beside the code."""
        allocator = torch.cuda.get_allocator_backend() if self.device.type == "cuda" else "none"
        return {
            "card": self.name,
            "device": str(self.device),
            "memory": f"{self.total / 2**30:.1f} GiB",
            "torch": torch.__version__,
            "allocator": allocator,
            "DynamicVRAM": "on" if comfy.memory_management.aimdo_enabled else "off",
        }

    def synchronize(self) -> None:
        """Waits until the card has done all that it was given."""
        if self.device.type != "cpu":
            self._api().synchronize()

    def allocated(self) -> int:
        """Bytes of live tensors on the card; 0 on a CPU."""
        api = self._api()
        return int(api.memory_allocated(self.device)) if hasattr(api, "memory_allocated") else 0

    def reserved(self) -> int:
        """Bytes that PyTorch holds on the card, live or not; 0 on a CPU."""
        api = self._api()
        return int(api.memory_reserved(self.device)) if hasattr(api, "memory_reserved") else 0

    def used(self) -> int:
        """Bytes of the card that are taken, by whatever it is; 0 on a CPU."""
        if self.device.type != "cuda":
            return self.allocated()
        free, total = torch.cuda.mem_get_info(self.device)
        return int(total - free)

    def collect(self) -> None:
        """Lets go of what nothing refers to."""
        gc.collect()
        management.soft_empty_cache()

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes that are alive at once while work() runs; on a CPU of the tensors that it makes."""
        api = self._api()
        if not hasattr(api, "reset_peak_memory_stats"):
            with Live() as live:
                work()
            return live.peak
        self.synchronize()
        api.reset_peak_memory_stats(self.device)
        work()
        self.synchronize()
        return int(api.max_memory_allocated(self.device))

    def _api(self) -> Any:
        return torch.get_device_module(self.device)


def find_card(asked: str = "") -> Card | None:
    """The card that was asked for, or the one that ComfyUI takes; None where there is only a CPU."""
    if asked:
        device = torch.device(asked)
        return Card(device, tiny=device.type == "cpu")
    device = management.get_torch_device()
    return Card(device) if device.type in KINDS else None
