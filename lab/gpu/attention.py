"""Attention Probe, Attention Erase and prompt gates under every attention that is installed."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention as attention
import torch
from torch import Tensor

from eraseanything_core.attention.blocks import Blocks
from eraseanything_core.attention.erase import MapErasure
from eraseanything_core.attention.hooks import EraseHook, ProbeHook
from eraseanything_core.attention.located_prompt import locate_concepts
from eraseanything_core.attention.probe import parse_heads
from eraseanything_core.comfy_bridge.families import layout
from eraseanything_core.comfy_bridge.gated_loras import with_gated_loras
from eraseanything_core.comfy_bridge.sampler_hooks import sigma_range, with_hook
from eraseanything_core.lora.factors import Eraser
from eraseanything_core.lora.gate import PromptGate
from eraseanything_core.lora.headers import ErasedConcept
from eraseanything_core.lora.key_styles import read_eraser
from lab.gpu import hosts
from lab.gpu.card import Card
from lab.gpu.hosts import LabHost, tinyflux_host
from lab.gpu.outcome import Outcome

PROMPT = "a photo of a red heart"
WORD = "heart"
OTHERS = ("ball", "box", "moon", "cross", "ring", "house", "tree", "fish")  # kept by an eraser
STEPS = 20
GROWTH = 50.0  # MB of a sampling
# ComfyUI's functions, and the packages that they need.
ATTENTIONS = {
    "attention_pytorch": "torch", "attention_sage": "sageattention", "attention_xformers": "xformers",
    "attention_flash": "flash_attn",
}  # fmt: skip
# What ComfyUI logs where one of them cannot run and PyTorch's takes its place.
REPLACED = ("using default SDPA", "using pytorch attention")


class Replaced(logging.Handler):
    """Keeps what ComfyUI says of attentions that it has replaced by PyTorch's."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        text = record.getMessage()
        if any(words in text for words in REPLACED):
            self.said.append(text)


@contextmanager
def replaced() -> Iterator[list[str]]:
    """Yields what ComfyUI says inside of attentions that it has replaced."""
    handler = Replaced()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.said
    finally:
        logging.getLogger().removeHandler(handler)


def located(host: LabHost) -> Any:
    """The prompt with the places of its word."""
    encoded = host.text.encode(PROMPT)
    return locate_concepts([host.text.pieces(PROMPT)], [WORD], False, [(encoded.context,)])


def sampled(card: Card, host: LabHost, model: Any, attend: Any) -> tuple[Tensor, float | None]:
    """Samples with one of ComfyUI's attentions.

    Returns:
        The latents, and the MB by which memory on the card grew from the first step to the last; None where PyTorch
        does not count them.
    """
    model = model.clone()
    options = model.model_options["transformer_options"]
    before = options.get("optimized_attention_override")

    def override(function: Any, *args: Any, **more: Any) -> Tensor:
        return before(attend, *args, **more) if before else attend(*args, **more)

    options["optimized_attention_override"] = override
    allocated: list[int | None] = []
    latents = hosts.sampled(host, model, PROMPT, STEPS, lambda *_: allocated.append(card.allocated()))
    first, last = allocated[0], allocated[-1]
    return latents, None if first is None or last is None else (last - first) / 1e6


def probing(host: LabHost) -> Any:
    """The MODEL with a probe."""
    sigmas = sigma_range(host.model, 0.0, 1.0)
    return with_hook(host.model, ProbeHook(located(host), sigmas, Blocks("all"), parse_heads("all")))


def erasing(host: LabHost) -> Any:
    """The MODEL with its word's columns erased."""
    sigmas = sigma_range(host.model, 0.0, 1.0)
    hook = EraseHook(located(host), sigmas, MapErasure(blocks=Blocks("all")), layout(host.model))
    return with_hook(host.model, hook)


def random_lora(host: LabHost) -> dict[str, Tensor]:
    """A LoRA that changes much, under its file keys, on the CPU."""
    with host.session(torch.float32) as model:
        lora = model.attach("dual_qkv", 4, torch.Generator().manual_seed(0))
    tensors = lora.tensors(torch.float32)
    for number, (name, tensor) in enumerate(tensors.items()):
        if "lora_B" in name:
            tensor.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
    return tensors


def gated(host: LabHost, eraser: Eraser, concept: str) -> Any:
    """The MODEL with an eraser that is on where a prompt is about its concept."""
    with torch.no_grad():
        gate = PromptGate([ErasedConcept((concept,), irrelevant=OTHERS)], host.text)
    return with_gated_loras(host.model, [eraser], [1.0], gate)


def check(card: Card) -> Outcome:
    """Check 15: a probe and a closed gate change no bit, an eraser and an open gate do, and none keeps what it saw."""
    outcome = Outcome()
    host = tinyflux_host(dtype=torch.float32 if card.tiny else torch.bfloat16)
    eraser = read_eraser(random_lora(host), {}, "the eraser")
    # A model, and whether its latents are those of the plain one.
    models = {
        "a probe": (probing(host), True),
        "Attention Erase": (erasing(host), False),
        "a closed gate": (gated(host, eraser, "star"), True),
        "an open gate": (gated(host, eraser, WORD), False),
    }
    for name, package in ATTENTIONS.items():
        if importlib.util.find_spec(package) is None or not hasattr(attention, name):
            outcome.figures[name] = "not installed"
            continue
        attend = getattr(attention, name)
        with replaced() as said:
            plain, _ = sampled(card, host, host.model, attend)
        # Not asked of the others: an erasure may need a mask, which some of them do not take.
        outcome.must(f"{name}: it ran itself", not said)
        for kind, (model, same) in models.items():
            found, growth = sampled(card, host, model, attend)
            wanted = "changes no bit" if same else "changes the latents"
            outcome.must(f"{name}: {kind} {wanted}", torch.equal(found, plain) == same)
            outcome.at_most(f"{name}: {kind}, MB more after {STEPS} steps", growth, GROWTH)
    return outcome
