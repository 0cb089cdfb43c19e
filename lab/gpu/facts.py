"""What the card is and how fast: matrix products, and attention at FLUX.1's size by each backend."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.gpu.card import Card
from lab.gpu.outcome import Outcome

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
REPEATS = 10


def seconds(card: Card, work: Callable[[], object]) -> float:
    """Of one call, mean of several after one that counts for nothing."""
    work()
    card.synchronize()
    begun = time.perf_counter()
    for _ in range(REPEATS):
        work()
    card.synchronize()
    return (time.perf_counter() - begun) / REPEATS


def product_rate(card: Card) -> float:
    """G: FLOP a second of a bfloat16 product of two square matrices."""
    side = 256 if card.tiny else 8192
    a = torch.randn(side, side, device=card.device, dtype=torch.bfloat16)
    return 2 * side**3 / seconds(card, lambda: a @ a)


def attention_seconds(card: Card, backend: SDPBackend) -> float | None:
    """Forward and backward of one attention; None where the card has no such kernel."""
    tokens = 64 if card.tiny else 1280
    q = torch.randn(1, 24, tokens, 128, device=card.device, dtype=torch.bfloat16, requires_grad=True)

    def work() -> None:
        F.scaled_dot_product_attention(q, q, q).sum().backward()

    try:
        with sdpa_kernel(backend):
            return seconds(card, work)
    except RuntimeError:
        # PyTorch says so only by this error, whose text differs by version.
        return None


def check(card: Card) -> Outcome:
    """Check 0: printed."""
    outcome = Outcome()
    outcome.figures.update(card.facts())
    outcome.figures["TFLOP a second in bfloat16"] = product_rate(card) / 1e12
    kernels = 0
    for name, backend in BACKENDS.items():
        taken = attention_seconds(card, backend)
        kernels += taken is not None
        outcome.figures[f"attention by {name}"] = "none" if taken is None else f"{1e3 * taken:.3f} ms"
    outcome.must("there is an attention with a backward", kernels > 0)
    return outcome
