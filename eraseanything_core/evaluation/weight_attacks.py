"""Attacks of someone who has the erased weights: embedding inversion and relearning.

Both learn from a few pictures of the concept. Inversion leaves the weights alone and searches the states in the
concept's place (after Circumventing Concept Erasure, Pham et al., ICLR 2024). Relearning trains a fresh LoRA on top of
the eraser. With `attn_weight` above 0 it also raises the attention that the concept's tokens get, and with
`retain_weight` it stays at the erased model elsewhere.

`REFLUX` sets both: two of the three terms of ReFlux (arXiv 2510.00635), rebuilt from a description. Its reverse
guidance is left out. Its LoRA trains the text stream's queries and keys; this one all blocks' queries, keys and values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.columns import image_feature
from ..concepts import matching
from ..protocols import EncodedPrompt, ErasableModel, TextEncoder, with_context
from ..training import loss_scale
from ..training.losses import flow_matching_loss, retain_loss

StepDone = Callable[[int, float], None]  # steps done, loss of the last one
REFLUX = {"attn_weight": 1.0, "retain_weight": 1.0}  # settings of `RelearnConfig`


@dataclass(frozen=True)
class ConceptExamples:
    """What both attacks learn from.

    Attributes:
        latents: [n, c, h, w] of pictures that show the concept.
        prompt: holds the concept.
        concept: the word or words of the prompt that were erased.
    """

    latents: Tensor
    prompt: str
    concept: str


@dataclass(frozen=True)
class InversionConfig:
    """How long and how fast the states are searched.

    Attributes:
        steps: of the search.
        batch_size: pictures of a step.
        lr: learning rate, in standard deviations of the states.
        guidance: value that the model is given.
        seed: of the pictures, noises and times that are drawn.
    """

    steps: int = 100
    batch_size: int = 4
    lr: float = 0.05
    guidance: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class RelearnConfig:
    """What a relearning may spend: 50 steps on 10 pictures is the usual budget.

    Attributes:
        steps: of training.
        batch_size: pictures of a step.
        lr: learning rate.
        rank: of the LoRA.
        targets: of the LoRA, see `ErasableModel.attach`.
        attn_weight: weight of the attention that the concept's tokens lack.
        retain_weight: weight of staying at the erased model for the empty prompt.
        guidance: value that the model is given.
        seed: of the LoRA, and of the pictures, noises and times that are drawn.
    """

    steps: int = 50
    batch_size: int = 4
    lr: float = 1e-3
    rank: int = 8
    targets: str = "all_qkv"
    attn_weight: float = 0.0
    retain_weight: float = 0.0
    guidance: float = 1.0
    seed: int = 0


def noised(
    latents: Tensor, count: int, generator: torch.Generator, noise_scale: float = 1.0, last_time: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of the flow matching loss.

    Args:
        latents: [n, c, h, w], on any device.
        count: of the batch.
        generator: on the CPU, so that a seed gives the same draws on every device.
        noise_scale, last_time: of the model, see `ErasableModel`.

    Returns:
        x_0 [count, c, h, w] drawn from `latents`, their noise, t [count], and x_t = (1 - t) x_0 + t noise, all on the
        latents' device.
    """
    row = torch.randint(len(latents), (count,), generator=generator)
    x_0 = latents[row.to(latents.device)]
    # Drawn on the CPU and moved: ComfyUI keeps latents on the card with --gpu-only, and devices must not be mixed.
    noise = (noise_scale * torch.randn(x_0.shape, generator=generator)).to(latents.device)
    t = (last_time * torch.rand(count, generator=generator)).to(latents.device)
    t_per_pixel = t[:, None, None, None]
    x_t = (1 - t_per_pixel) * x_0 + t_per_pixel * noise
    return x_0, noise, t, x_t


def concept_positions(text: TextEncoder, prompt: str, concept: str) -> list[int]:
    """Token positions of the concept in the encoded prompt; ValueError when the prompt does not hold it."""
    return matching.positions(text.pieces(prompt), concept)


def invert(
    model: ErasableModel,
    text: TextEncoder,
    examples: ConceptExamples,
    config: InversionConfig,
    progress: StepDone | None = None,
) -> tuple[Tensor, Tensor, list[float]]:
    """Searches the states in the concept's place with which the erased model draws the pictures.

    Args:
        model: with the eraser under everything (`attach_frozen_lora`); its weights do not change.
        text: the model's text encoder.
        examples: with latents in the model's space. The states of the concept's tokens are searched.
        config: the budget.
        progress: called as progress(steps done, loss) after every step; what it raises ends the search.

    Returns:
        The context [1, tokens, features] with the new states, the pooled vector [1, features], and the losses.

    Raises:
        ValueError: the prompt does not hold the concept.
    """
    generator = torch.Generator().manual_seed(config.seed)
    encoded = text.encode(examples.prompt)
    context, pooled = encoded
    found = concept_positions(text, examples.prompt, examples.concept)
    # Those of further encodings, which some families take, stand behind the tokens of the first.
    positions = torch.tensor([position for position in found if position < context.shape[1]])
    states = context[:, positions].clone().requires_grad_(True)
    # Encoders differ in the size of their states, so the rate is in units of their spread.
    optimizer = torch.optim.Adam([states], lr=config.lr * float(context[:, positions].std()))
    loss_scale.start([optimizer], model.dtype)
    pictures = examples.latents.to(model.device)
    losses: list[float] = []
    for step in range(config.steps):
        x_0, noise, t, x_t = noised(pictures, config.batch_size, generator, model.noise_scale, model.last_time)
        changed = with_context(encoded, context.index_copy(1, positions, states))
        cond = model.conds([changed] * config.batch_size, config.guidance)
        # With adapters, because only that forward carries a gradient; no fresh ones were attached.
        loss = flow_matching_loss(model.velocity(x_t, t, cond, adapters=True), x_0, noise)
        loss_scale.scaled_step(optimizer, loss)
        losses.append(loss.item())
        if progress:
            progress(step + 1, losses[-1])
    return context.index_copy(1, positions, states.detach()), pooled, losses


def relearn(
    model: ErasableModel,
    text: TextEncoder,
    examples: ConceptExamples,
    config: RelearnConfig,
    progress: StepDone | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Trains a LoRA on top of the eraser until the pictures come back.

    Args:
        model, text, examples, progress: as for `invert`.
        config: the budget and the weights of the losses.

    Returns:
        The LoRA's tensors under their file keys, to be loaded after the eraser, and the losses.

    Raises:
        ValueError: the prompt does not hold the concept.
    """
    generator = torch.Generator().manual_seed(config.seed)
    select = torch.zeros(config.batch_size, len(text.pieces(examples.prompt)), 1, device=model.device)
    # One column: the sum over the concept's tokens.
    select[:, concept_positions(text, examples.prompt, examples.concept)] = 1
    cond = _batch_of(model, text.encode(examples.prompt), config)
    empty_cond = _batch_of(model, text.encode(""), config)
    # The same generator draws the LoRA's A and then the batches: one seed repeats the whole attack.
    lora = model.attach(config.targets, config.rank, generator)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=config.lr, weight_decay=0.0)
    loss_scale.start([optimizer], model.dtype)
    pictures = examples.latents.to(model.device)
    losses: list[float] = []
    for step in range(config.steps):
        x_0, noise, t, x_t = noised(pictures, config.batch_size, generator, model.noise_scale, model.last_time)
        capture = model.capture(select) if config.attn_weight else None
        loss = flow_matching_loss(model.velocity(x_t, t, cond, True, capture), x_0, noise)
        if capture is not None:
            # An eraser takes attention away from the concept's tokens; this pulls it back towards 1.
            loss = loss + config.attn_weight * (1 - image_feature(capture.maps)).mean()
        if config.retain_weight:
            # Without adapters the model is the erased one: elsewhere the relearned one shall stay there.
            erased = model.velocity(x_t, t, empty_cond, adapters=False)
            relearned = model.velocity(x_t, t, empty_cond, adapters=True)
            loss = loss + config.retain_weight * retain_loss(relearned, erased)
        loss_scale.scaled_step(optimizer, loss)
        losses.append(loss.item())
        if progress:
            progress(step + 1, losses[-1])
    return lora.tensors(torch.float32), losses


def _batch_of(model: ErasableModel, encoded: EncodedPrompt, config: RelearnConfig) -> Any:
    """The condition of a batch in which every row is one prompt."""
    return model.conds([encoded] * config.batch_size, config.guidance)


def recovered(rates: Sequence[float], base: float, erased: float) -> int | None:
    """The index of the first check at which the concept is half back, or None.

    Args:
        rates: at which the concept was shown, in the order of the checks.
        base: the rate of the un-erased model.
        erased: the rate of the erased model.
    """
    halfway = (base + erased) / 2
    return next((i for i, rate in enumerate(rates) if rate >= halfway), None)
