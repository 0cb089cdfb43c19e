"""The second stage of MACE (Lu et al., CVPR 2024): a LoRA that takes the attention from a concept inside its mask.

L = 1/b sum_b sum_layers | A_b[mask_b, tokens_b] |_F^2

A are the softmax weights of the image's queries on all keys, at noised pictures x_t = (1 - t) x_0 + t n of the concept.
MACE has its masks from a segmentation model. Here they come from the model itself, from the same columns that Attention
Probe shows, or from a function that knows them; for a style every query counts, as it does there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts import matching
from ..protocols import EncodedPrompt, ErasableModel, TextEncoder, TrainableLora
from ..training import loss_scale

NamedPrompt = tuple[str, str]  # a prompt and the word in it that counts
MASK_TIME = 0.72  # where the model's own map points best on TinyFlux, see benchmarks/probe.md
EARLIEST, LATEST, SLOPE = 200, 400, 0.05  # of the density of t, in thousandths
GRID = 1000  # times among which t is drawn

# Pictures x_0 [b, c, h, w] of prompts to what of their queries shows the concept, bool [b, queries].
Masks = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class AttentionConfig:
    """How the LoRA of the attention is trained.

    Attributes:
        prompts: sentences of the concept with its word, from which the pictures are drawn.
        targets: which linears are trained.
        rank: of each.
        pictures: that are drawn once.
        steps: of training.
        batch: pictures a step.
        lr: learning rate of AdamW.
        single: whether single blocks are read as well as dual ones, where a family has both.
        whole: every query counts, for styles; else those above `level` of a map's largest value.
        level: see `whole`.
        width, height: of the pictures, in pixels.
        sampling_steps, guidance: with which they are drawn.
        seed: of all chance.
    """

    prompts: tuple[NamedPrompt, ...]
    targets: str = "add_k+add_v"
    rank: int = 1
    pictures: int = 8
    steps: int = 50
    batch: int = 4
    lr: float = 1e-4
    single: bool = False
    whole: bool = False
    level: float = 0.5
    width: int = 512
    height: int = 512
    sampling_steps: int = 28
    guidance: float = 3.5
    seed: int = 0


def density() -> Tensor:
    """The chance of each of `GRID` times, [GRID], as published: most of it between 0.2 and 0.4."""
    t = torch.arange(GRID, dtype=torch.float64) + 1
    weights = torch.sigmoid(SLOPE * (t - EARLIEST)) - torch.sigmoid(SLOPE * (t - LATEST))
    return weights / weights.sum()


def attention_loss(maps: dict[int, Tensor], masks: Tensor) -> Tensor:
    """The equation above.

    Args:
        maps: a block to [b, heads, queries, columns].
        masks: [b, queries], bool.

    Returns:
        A scalar.
    """
    inside = masks[:, None, :, None]
    sums = []
    for columns in maps.values():
        weights = columns.to(torch.promote_types(columns.dtype, torch.float32))
        sums.append((weights * inside).square().sum())
    return torch.stack(sums).sum() / len(masks)


def token_columns(pieces: Sequence[Sequence[str]], words: Sequence[str]) -> Tensor:
    """One column for every token of each prompt's word, [b, tokens, columns]; what a prompt lacks is empty.

    Args:
        pieces: of each prompt, all of one length.
        words: of each prompt.
    """
    places = [matching.positions(own, word) for own, word in zip(pieces, words, strict=True)]
    select = torch.zeros(len(pieces), len(pieces[0]), max(map(len, places)))
    for row, own in enumerate(places):
        for column, place in enumerate(own):
            select[row, place, column] = 1
    return select


@dataclass
class Pictures:
    """Pictures of the concept with all that a step needs of them.

    Attributes:
        latents: x_0, [n, c, h, w].
        encodings: of their prompts.
        select: [n, tokens, columns], see `token_columns`.
        masks: [n, queries], bool.
    """

    latents: Tensor
    encodings: list[EncodedPrompt]
    select: Tensor
    masks: Tensor


def drawn_pictures(
    model: ErasableModel, text: TextEncoder, config: AttentionConfig, masks: Masks | None, rng: torch.Generator
) -> Pictures:
    """Draws the pictures with the model as it is, and finds their masks.

    Args:
        model: what is attached to it takes part.
        text: its text encoder.
        config: which and how many.
        masks: what knows the masks; None reads them from the model's own attention.
        rng: of the noise.
    """
    chosen = [config.prompts[i % len(config.prompts)] for i in range(config.pictures)]
    prompts = [prompt for prompt, _ in chosen]
    encodings = [text.encode(prompt) for prompt in prompts]
    select = token_columns([text.pieces(prompt) for prompt in prompts], [word for _, word in chosen])
    shape = (config.pictures, model.channels, config.height // model.downscale, config.width // model.downscale)
    noise = torch.randn(shape, generator=rng)
    conds = model.conds(encodings, config.guidance)
    walk = model.trajectory(conds, noise, model.sigmas(config.sampling_steps))
    latents = [x_t for x_t, _ in walk][-1]
    own = own_masks(model, latents, conds, select, config, rng) if masks is None else masks(latents, prompts)
    return Pictures(latents, encodings, select, torch.ones_like(own) if config.whole else own)


def own_masks(
    model: ErasableModel, latents: Tensor, conds: object, select: Tensor, config: AttentionConfig, rng: torch.Generator
) -> Tensor:
    """Where the model itself attends to the word, [b, queries] bool, see `AttentionConfig.level`."""
    t = torch.full((len(latents),), MASK_TIME)
    noise = torch.randn(latents.shape, generator=rng).to(latents)
    noised = (1 - MASK_TIME) * latents + MASK_TIME * noise
    # Dual blocks alone: those of single ones do not show where an object is.
    maps = model.columns(noised, t, conds, adapters=False, capture=model.capture(select))
    mean = torch.stack([columns.mean(1).sum(-1) for columns in maps.values()]).mean(0)
    return (mean > config.level * mean.amax(1, keepdim=True)).cpu()


def train_attention(
    model: ErasableModel, text: TextEncoder, config: AttentionConfig, masks: Masks | None = None
) -> tuple[TrainableLora, list[float]]:
    """Trains the LoRA, which stays attached to the model.

    Args:
        model: student; what is attached to it takes part.
        text: its text encoder.
        config: the settings.
        masks: see `drawn_pictures`.

    Returns:
        The LoRA, and the loss of each step.

    Raises:
        ValueError: a target that the model does not have, or a word that is not in its prompt.
        FloatingPointError: a loss is NaN or infinite.
    """
    rng = torch.Generator().manual_seed(config.seed)
    pictures = drawn_pictures(model, text, config, masks, rng)
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    optimizer = torch.optim.AdamW(lora.parameters(), config.lr)
    loss_scale.start([optimizer], model.dtype)
    chances = density()
    history = []
    for _ in range(config.steps):
        rows = torch.randperm(config.pictures, generator=rng)[: config.batch].tolist()
        t = (torch.multinomial(chances, len(rows), replacement=True, generator=rng) + 1) / GRID
        loss = _loss_of(model, pictures, rows, t, config, rng)
        if not loss.isfinite():
            raise FloatingPointError("the attention loss is not finite: lower the learning rate")
        loss_scale.scaled_step(optimizer, loss)
        history.append(float(loss.detach()))
    return lora, history


def _loss_of(
    model: ErasableModel, pictures: Pictures, rows: list[int], t: Tensor, config: AttentionConfig, rng: torch.Generator
) -> Tensor:
    x_0 = pictures.latents[rows]
    noise = torch.randn(x_0.shape, generator=rng).to(x_0)
    times = t.to(x_0).view(-1, 1, 1, 1)
    conds = model.conds([pictures.encodings[row] for row in rows], config.guidance)
    capture = model.capture(pictures.select[rows])
    capture.single = config.single
    maps = model.columns((1 - times) * x_0 + times * noise, t, conds, adapters=True, capture=capture)
    device = next(iter(maps.values())).device
    return attention_loss(maps, pictures.masks[rows].to(device))
