"""What the card is and how fast: matrix products, and attention at FLUX.1's size by each backend."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management as management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.cli_args import enables_dynamic_vram
from torch.nn.attention import SDPBackend, sdpa_kernel

from eraseanything_core.comfy_bridge.attention_memory import attention_cost
from lab.gpu.card import Card
from lab.gpu.outcome import Outcome

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
NO_KERNEL = ("No available kernel", "No viable backend")  # in PyTorch's error, which has no class of its own
REPEATS = 10
STREAMS_FROM = (2, 8)  # the oldest PyTorch on which ComfyUI turns DynamicVRAM on
# ComfyUI's start imports this module, which chooses by the card. It also changes the environment, so not here.
ASK_ALLOCATOR = "import cuda_malloc; from comfy.cli_args import args; print(bool(args.cuda_malloc))"


def has_no_kernel(error: RuntimeError) -> bool:
    """Whether PyTorch says by this error that an attention has no kernel for its inputs here."""
    return any(words in str(error) for words in NO_KERNEL)


@contextmanager
def only_attention(name: str) -> Iterator[None]:
    """One of PyTorch's attentions, in ComfyUI's calls as well."""
    # On CUDA ComfyUI sets an order of its own in every call, which would undo the one that is set around it.
    order = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
    attention_cost.cache_clear()
    try:
        if order is not None:
            comfy.ops.SDPA_BACKEND_PRIORITY = [BACKENDS[name]]
        with sdpa_kernel(BACKENDS[name]):
            yield
    finally:
        if order is not None:
            comfy.ops.SDPA_BACKEND_PRIORITY = order
        attention_cost.cache_clear()


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


def attention_seconds(card: Card, name: str) -> float | None:
    """Forward and backward of one attention; None where the card has no such kernel."""
    tokens = 64 if card.tiny else 1280
    q = torch.randn(1, 24, tokens, 128, device=card.device, dtype=torch.bfloat16, requires_grad=True)

    def work() -> None:
        F.scaled_dot_product_attention(q, q, q).sum().backward()

    try:
        with sdpa_kernel(BACKENDS[name]):
            return seconds(card, work)
    except RuntimeError as error:
        if has_no_kernel(error):
            return None
        raise


def streams_in_comfyui(card: Card) -> bool:
    """Whether ComfyUI's start would turn DynamicVRAM on here."""
    is_nvidia = card.device.type == "cuda" and not torch.version.hip
    recent = management.torch_version_numeric >= STREAMS_FROM
    return is_nvidia and recent and enables_dynamic_vram() and not management.is_wsl()


def allocator_of_comfyui(card: Card) -> str:
    """The allocator that ComfyUI's start would choose here."""
    if card.device.type != "cuda":
        return "none"
    told = subprocess.run([sys.executable, "-c", ASK_ALLOCATOR], capture_output=True, text=True, check=True).stdout
    return "cudaMallocAsync" if told.split()[-1] == "True" else "native"


def check(card: Card) -> Outcome:
    """Check 0: printed. ComfyUI's start does not run here, so what it would choose is told apart."""
    outcome = Outcome()
    outcome.figures.update(card.facts())
    outcome.figures["allocator in ComfyUI"] = allocator_of_comfyui(card)
    outcome.figures["DynamicVRAM in ComfyUI"] = "on" if streams_in_comfyui(card) else "off"
    outcome.figures["TFLOP a second in bfloat16"] = product_rate(card) / 1e12
    kernels = 0
    for name in BACKENDS:
        taken = attention_seconds(card, name)
        kernels += taken is not None
        outcome.figures[f"attention by {name}"] = "none" if taken is None else f"{1e3 * taken:.3f} ms"
    outcome.must("there is an attention with a backward", kernels > 0)
    return outcome
