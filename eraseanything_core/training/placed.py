"""Encodings of prompts on the model's device, each moved there once."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..protocols import Conditioning, EncodedPrompt
from ..transfers import on_device
from .plan import ENCODE_ONCE, Plan

ROOM = 2**29  # bytes on the device: at 256 tokens of T5-XXL 127 prompts in float32, at 512 tokens half as many

Encode = Callable[[str], EncodedPrompt]


class PlacedEncodings:
    """The encodings that were asked for last, on a device.

    A pair takes two or three, and the same ones come again and again. One of T5-XXL is 4 to 8 MiB, which would be
    copied into pinned memory and from there to the card each time.

    Args:
        encode: gives an encoding in main memory.
        device: of the model.
        room: bytes that may lie there.
    """

    def __init__(self, encode: Encode, device: torch.device | str, room: int = ROOM) -> None:
        self.encode = encode
        self.device = device
        self.room = room
        self.taken = 0
        self.placed: OrderedDict[str, EncodedPrompt] = OrderedDict()

    def __call__(self, text: str) -> EncodedPrompt:
        """context [1, tokens, features] and pooled [1, features] on the device."""
        if text not in self.placed:
            encoding = self.encode(text)
            if isinstance(encoding, Conditioning):  # ComfyUI moves it with all that it has beside its text states
                return encoding
            encoding = EncodedPrompt(*(on_device(part, self.device) for part in encoding))
            self.placed[text] = encoding
            self.taken += size_of(encoding)
            while self.taken > self.room and len(self.placed) > 1:
                _, oldest = self.placed.popitem(last=False)
                self.taken -= size_of(oldest)
        self.placed.move_to_end(text)
        return self.placed[text]


def size_of(encoding: tuple[Tensor, Tensor]) -> int:
    """Bytes of a context and its pooled vector."""
    return sum(part.nbytes for part in encoding)


def placed(plan: Plan, device: torch.device | str) -> Plan:
    """The plan with its encodings on a device, where it keeps any."""
    if ENCODE_ONCE not in plan.shortcuts:
        return plan
    return replace(plan, placed=PlacedEncodings(plan.encode, device))


def placed_bytes(plan: Plan) -> int:
    """Bytes that the encodings of a plan take on a device at most."""
    if ENCODE_ONCE not in plan.shortcuts:
        return 0
    total = 0
    for text in plan.texts():
        encoding = plan.encode(text)
        total += 0 if isinstance(encoding, Conditioning) else size_of(encoding)
    return min(ROOM, total)
