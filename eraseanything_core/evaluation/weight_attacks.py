"""Attacks of someone who holds the erased weights: embedding inversion, relearning, and awaking the attention.

All three learn from a few pictures of the concept. Inversion leaves the weights alone and searches the states that
stand in the concept's place (after Circumventing Concept Erasure, Pham et al., ICLR 2024). Relearning trains a fresh
LoRA on top of the eraser; with `attn` above 0 it also raises the attention that the concept's tokens get, and with
`keep` it stays at the erased model elsewhere. `AWAKEN` does both: two of the three terms of ReFlux (2510.00635),
rebuilt from a description; its reverse guidance is left out, and its LoRA of the text stream's queries and keys is one
of all blocks' queries, keys and values here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.columns import image_feature
from ..concepts import matching
from ..training.losses import flow_matching_loss, retain_loss

Progress = Callable[[int, float], None]
AWAKEN = {"attn": 1.0, "keep": 1.0}  # settings of `RelearnConfig`


@dataclass(frozen=True)
class InversionConfig:
    """How long and how fast the states are searched."""

    steps: int = 100
    batch: int = 4
    lr: float = 0.05
    guidance: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class RelearnConfig:
    """What a relearning may spend: 50 steps on 10 pictures is the usual budget."""

    steps: int = 50
    batch: int = 4
    lr: float = 1e-3
    rank: int = 8
    targets: str = "all_qkv"
    attn: float = 0.0  # weight of the attention that the concept's tokens lack
    keep: float = 0.0  # weight of staying at the erased model for the empty prompt
    guidance: float = 1.0
    seed: int = 0


def noised(latents: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures drawn from `latents`, their noise, t, and x_t = (1 - t) x_0 + t n."""
    x_0 = latents[torch.randint(len(latents), (count,), generator=generator)]
    noise, t = torch.randn(x_0.shape, generator=generator), torch.rand(count, generator=generator)
    way = t[:, None, None, None]
    return x_0, noise, t, (1 - way) * x_0 + way * noise


def place_of(text, prompt: str, concept: str) -> list[int]:
    """Token positions of the concept in the encoded prompt."""
    return matching.positions(text.pieces(prompt), concept)


def invert(
    model, text, latents: Tensor, prompt: str, concept: str, config: InversionConfig, progress: Progress | None = None
) -> tuple[Tensor, Tensor, list[float]]:
    """Searches the states in the concept's place with which the erased model draws the pictures.

    Args:
        model: the seam, wearing the eraser; its weights do not change.
        text: has `encode(prompt)` and `pieces(prompt)`.
        latents: [n, c, h, w] of pictures that show the concept, in the model's space.
        prompt: holds the concept.

    Returns:
        The context [1, tokens, features] with the found states, the pooled vector [1, features], and the losses.

    Raises:
        ValueError: the prompt does not hold the concept.
    """
    generator = torch.Generator().manual_seed(config.seed)
    where = place_of(text, prompt, concept)
    context, pooled = text.encode(prompt)
    states = context[:, where].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([states], lr=config.lr * float(context[:, where].std()))
    history = []
    for step in range(config.steps):
        x_0, noise, t, x_t = (x.to(model.device) for x in noised(latents, config.batch, generator))
        changed = context.index_copy(1, torch.tensor(where), states).expand(config.batch, -1, -1)
        cond = model.cond(changed, pooled.expand(config.batch, -1), config.guidance)
        loss = flow_matching_loss(model.velocity(x_t, t, cond, adapters=True), x_0, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        if progress:
            progress(step + 1, history[-1])
    return context.index_copy(1, torch.tensor(where), states.detach()), pooled, history


def relearn(
    model, text, latents: Tensor, prompt: str, concept: str, config: RelearnConfig, progress: Progress | None = None
) -> tuple[dict[str, Tensor], list[float]]:
    """Trains a LoRA on top of the eraser until the pictures come back.

    Args:
        model, text, latents, prompt, concept: as for `invert`.

    Returns:
        The LoRA's tensors under their file keys, to be loaded after the eraser, and the losses.
    """
    generator = torch.Generator().manual_seed(config.seed)
    select = torch.zeros(config.batch, len(text.pieces(prompt)), 1, device=model.device)
    select[:, place_of(text, prompt, concept)] = 1
    cond, empty = (_repeated(model, text.encode(p), config) for p in (prompt, ""))
    lora = model.attach(config.targets, config.rank, generator)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=config.lr, weight_decay=0.0)
    history = []
    for step in range(config.steps):
        x_0, noise, t, x_t = (x.to(model.device) for x in noised(latents, config.batch, generator))
        capture = model.capture(select) if config.attn else None
        loss = flow_matching_loss(model.velocity(x_t, t, cond, True, capture), x_0, noise)
        if config.attn:
            loss = loss + config.attn * (1 - image_feature(capture.maps)).mean()
        if config.keep:
            erased = model.velocity(x_t, t, empty, adapters=False)
            loss = loss + config.keep * retain_loss(model.velocity(x_t, t, empty, adapters=True), erased)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        if progress:
            progress(step + 1, history[-1])
    return lora.tensors(torch.float32), history


def _repeated(model, encoded: tuple[Tensor, Tensor], config: RelearnConfig):
    return model.cond(*(x.expand(config.batch, *x.shape[1:]) for x in encoded), config.guidance)


def recovered(rates: list[float], base: float, erased: float) -> int | None:
    """The first of several checks at which the concept is half back, or None; of `rates` in the order of steps."""
    half = (base + erased) / 2
    return next((i for i, rate in enumerate(rates) if rate >= half), None)
