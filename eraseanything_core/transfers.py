"""Copies from main memory to a card for which nobody waits."""

import torch
from torch import Tensor

# `meta` moves nothing. Elsewhere such a copy may read the source after it has changed.
WITHOUT_WAITING = ("cuda", "meta")


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device, its type unchanged.

    A plain copy to a card makes the CPU wait until the card has done all that came before. From pinned memory it joins
    the card's queue.
    """
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type not in WITHOUT_WAITING:
        return tensor.to(device)
    # PyTorch keeps pinned memory until the card has read it.
    source = tensor.pin_memory() if device.type == "cuda" else tensor
    return source.to(device, non_blocking=True)
