"""The card that the checks run on, and what it says of itself."""

import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.memory_management
import comfy.model_management as management
import torch

from lab.bench.memory import Live

KINDS = ("cuda", "xpu", "mps")  # ROCm's cards are "cuda" to PyTorch
NUMBERED = ("cuda", "xpu")  # of which a machine may have several
NO_CARD = "No card was found that PyTorch can use, so nothing was checked."


class Peak(NamedTuple):
    """Bytes of some work at its most.

    Attributes:
        live: that are alive at once.
        held: that PyTorch held of the card beyond those; None where nothing counts them.
    """

    live: int
    held: int | None


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
        if self.device.type in NUMBERED:
            return str(self._api().get_device_name(self.device))
        return platform.processor() or platform.machine()

    @property
    def total(self) -> int:
        """Bytes of its memory."""
        return int(management.get_total_memory(self.device))

    @property
    def counts(self) -> bool:
        """Whether PyTorch counts the bytes on it at their most."""
        return hasattr(self._api(), "reset_peak_memory_stats")

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

    def answers(self) -> bool:
        """Whether it still takes work: after some errors CUDA refuses all until the process ends."""
        try:
            self.synchronize()
            return float(torch.ones(1, device=self.device)) == 1
        except RuntimeError:
            return False

    def allocated(self) -> int | None:
        """Bytes of live tensors on the card; None where PyTorch does not count them."""
        api = self._api()
        if hasattr(api, "memory_allocated"):
            return int(api.memory_allocated(self.device))
        return int(api.current_allocated_memory()) if hasattr(api, "current_allocated_memory") else None  # MPS

    def used(self) -> int | None:
        """Bytes of the card that are taken, by whatever it is; None where nothing counts them."""
        api = self._api()
        if not hasattr(api, "mem_get_info"):
            return self.allocated()
        free, total = api.mem_get_info(self.device)
        return int(total - free)

    def collect(self) -> None:
        """Lets go of what nothing refers to."""
        gc.collect()
        management.soft_empty_cache()

    def peak(self, work: Callable[[], Any]) -> Peak:
        """The memory of work(); where PyTorch does not count, of the tensors alone that it makes."""
        api = self._api()
        if not self.counts:
            with Live() as live:
                work()
            return Peak(live.peak, None)
        self.synchronize()
        api.reset_peak_memory_stats(self.device)
        work()
        self.synchronize()
        alive = int(api.max_memory_allocated(self.device))
        return Peak(alive, int(api.max_memory_reserved(self.device)) - alive)

    def _api(self) -> Any:
        return torch.get_device_module(self.device)


def find_card(asked: str = "") -> Card | None:
    """The card that was asked for, or the one that ComfyUI takes; None where there is only a CPU."""
    device = torch.device(asked) if asked else management.get_torch_device()
    if device.type == "cpu":
        # ComfyUI has to load onto it, too, where the machine has a card.
        management.cpu_state = management.CPUState.CPU
        return Card(device, tiny=True) if asked else None
    if device.type in NUMBERED:
        api = torch.get_device_module(device)
        if device.index is None:
            device = torch.device(device.type, api.current_device())
        api.set_device(device)  # ComfyUI loads onto the current one
    return Card(device) if asked or device.type in KINDS else None
