"""The published code of EraseAnything as it runs, bugs included: the row to beat.

Written from a description of its schedule, not from its source. What it does differently from the paper, and what is
kept here on purpose:

- the adapters stay on in every prediction of the erasing loss, so its target moves with the student;
- x_t of that loss is noise at every t: a scheduler index that is never reset walks 0.028 of sigma a call and then
  stops, so that all of the sampling (140 of 145 forwards a pair of steps) leads nowhere and is left out here;
- the "null" prompt is an anchor that somebody wrote;
- L_lora is flow matching on pictures of the concept; L_rsc is repelled by the synonym from unlike noise, unlike t,
  one head, and columns of the bare word's prompt that hold end marks and padding;
- token positions are looked up before a synonym replaces the word;
- only the last dual block's map is seen, text queries included, its loss a sum and not a mean;
- LoRA weights in bf16, one learning rate, no clipping, batch 1, three values of guidance.
"""

import random
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import sampling
from ..attention.columns import attention_columns
from ..concepts import matching
from ..concepts.prompts import shuffle
from ..protocols import EncodedPrompt, ErasableModel, TextEncoder
from ..training import loss_scale, losses
from ..training.objective import record_losses
from .trained import TrainedEraser


@dataclass(frozen=True)
class PublishedConfig:
    """The published settings of a run, and what has to be written by hand for it."""

    concept: str
    prompt: str  # holds the concept; the pictures are made from it
    anchor: str  # stands for the null prompt
    lemmas: tuple[str, ...]  # of WordNet; the word itself may be among them
    words: tuple[str, str, str]  # far, mid, no relation: the same for the whole run
    images: int = 6
    steps: int = 200  # every other one erases
    rank: int = 8
    targets: str = "paper"
    lr: float = 1e-3
    weight_decay: float = 1e-5
    eta: float = 1.0
    tau: float = 0.07
    esd_weight: float = 1.0
    attn_weight: float = 0.001
    lora_weight: float = 0.1
    rsc_weight: float = 0.1
    shuffle_rate: float = 0.9
    synonym_rate: float = 0.5
    guidance_sampling: float = 3.0
    guidance_training: float = 3.5
    guidance_images: float = 1.0  # published: 0, which no guidance embedding was distilled for
    sampling_steps: int = 28
    width: int = 512  # px
    height: int = 512
    seed: int = 0


class AllQueries:
    """A request for columns of every dual block from text and image queries; see `protocols.AttentionCapture`.

    Attributes:
        select: [1, text tokens, c], one column a token.
        maps: a block's index to [1, heads, queries, c].
    """

    def __init__(self, select: Tensor) -> None:
        self.select = select
        self.blocks: tuple[int, ...] | None = None
        self.single = False
        self.maps: dict[int, Tensor] = {}

    def read(self, q: Tensor, k: Tensor, block: int) -> None:
        """Reads a block's columns from q and k [1, heads, text + image tokens, d]."""
        image_tokens = k.shape[2] - self.select.shape[1]
        select = F.pad(self.select, (0, 0, 0, image_tokens))
        self.maps[block] = attention_columns(q, k, select)

    def last_block(self) -> Tensor:
        """The columns of the last block, [heads, queries, c]."""
        return self.maps[max(self.maps)][0]


class DrawnPrompt(NamedTuple):
    """A prompt of one step.

    Attributes:
        text: shuffled, perhaps with the synonym in the concept's place.
        positions: tokens of the concept before a synonym replaced it.
        synonym: the one that was drawn, whether or not it is in the text.
    """

    text: str
    positions: list[int]
    synonym: str


class NoisedPicture(NamedTuple):
    """x_t = (1 - t) x_0 + t n of a picture, with both; [1, c, h, w] each."""

    x_t: Tensor
    x_0: Tensor
    noise: Tensor


class PublishedRun:
    """The model, its text encoder, and the pictures that a run repeats."""

    def __init__(self, model: ErasableModel, text: TextEncoder, config: PublishedConfig) -> None:
        self.model = model
        self.text = text
        self.config = config
        self.encodings: dict[str, EncodedPrompt] = {}
        self.rng = random.Random(config.seed)
        self.noise = torch.Generator().manual_seed(config.seed)
        self.shape = (model.channels, config.height // model.downscale, config.width // model.downscale)
        self.lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
        for parameter in self.lora.parameters():
            # As published. The trainer keeps float32: in bf16 a small update rounds to nothing.
            parameter.data = parameter.data.bfloat16()
        self.pictures = self.draw_pictures()

    def encode(self, prompt: str) -> EncodedPrompt:
        """The prompt's encoding, kept from then on."""
        if prompt not in self.encodings:
            self.encodings[prompt] = EncodedPrompt(*self.text.encode(prompt))
        return self.encodings[prompt]

    def cond(self, prompt: str, guidance: float, count: int = 1) -> Any:
        """A batch of `count` equal conditions."""
        context, pooled = self.encode(prompt)
        return self.model.cond(context.expand(count, -1, -1), pooled.expand(count, -1), guidance)

    def velocity(self, x: Tensor, t: float, prompt: str, guidance: float, capture: AllQueries | None = None) -> Tensor:
        """v with the adapters on, which they always are."""
        sigma = torch.tensor([t])
        return self.model.velocity(x, sigma, self.cond(prompt, guidance), adapters=True, capture=capture)

    def draw_noise(self, count: int = 1) -> Tensor:
        """[count, c, h, w] on the model's device."""
        return torch.randn(count, *self.shape, generator=self.noise).to(self.model.device)

    def draw_pictures(self) -> Tensor:
        """x_0 of the fixed prompt, [images, c, h, w]."""
        config = self.config
        sigmas = sampling.shifted_sigmas(config.sampling_steps, self.model.mu)
        cond = self.cond(config.prompt, config.guidance_images, config.images)
        # Drawn once: the whole run repeats these few pictures.
        walk = list(self.model.trajectory(cond, self.draw_noise(config.images), sigmas))
        x_0, _ = walk[-1]
        return x_0

    def capture(self, positions: list[int]) -> AllQueries:
        """A request for columns at token positions, one a position."""
        length = self.encode(self.config.prompt).context.shape[1]
        one_hot = F.one_hot(torch.tensor(positions), length).float()  # [positions, tokens]
        return AllQueries(one_hot.T[None].to(self.model.device))

    def draw_prompt(self) -> DrawnPrompt:
        """The fixed prompt, mostly shuffled, every other time with a synonym in the concept's place."""
        config = self.config
        text = config.prompt
        if self.rng.random() < config.shuffle_rate:
            text = shuffle(text, self.rng)
        synonym = self.rng.choice(config.lemmas)
        # The published code looks the word up here and uses the positions below, where another word may stand.
        positions = matching.positions(self.text.pieces(text), config.concept)
        if self.rng.random() < config.synonym_rate:
            text = matching.replace(text, config.concept, synonym)
        return DrawnPrompt(text, positions, synonym)

    def noised_picture(self, t: float) -> NoisedPicture:
        """One of the pictures at t."""
        row = self.rng.randrange(len(self.pictures))
        x_0 = self.pictures[row : row + 1]
        noise = self.draw_noise()
        return NoisedPicture((1 - t) * x_0 + t * noise, x_0, noise)


def train_published(model: ErasableModel, text: TextEncoder, config: PublishedConfig) -> TrainedEraser:
    """Trains the slices of `model` on the published schedule.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    run = PublishedRun(model, text, config)
    history: dict[str, list[float]] = {}
    start = time.monotonic()
    optimizer = torch.optim.AdamW(run.lora.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loss_scale.start([optimizer], model.dtype)
    weights = {
        "esd": config.esd_weight,
        "attn": config.attn_weight,
        "lora": config.lora_weight,
        "rsc": config.rsc_weight,
    }
    t = 0.0
    for step in range(config.steps):
        # t is drawn in even steps only; the odd step goes on with the same one.
        if step % 2 == 0:
            t = run.rng.random()
            step_losses = erase_losses(run, t)
        else:
            step_losses = preserve_losses(run, t)
        loss = torch.zeros((), device=model.device)
        for name, value in step_losses.items():
            loss = loss + weights[name] * value
        # No clipping and one rate for both kinds of step, as published.
        loss_scale.scaled_step(optimizer, loss)
        record_losses(history, step_losses, loss, step)
    return TrainedEraser(run.lora.tensors(torch.float32), history, time.monotonic() - start)


def erase_losses(run: PublishedRun, t: float) -> dict[str, Tensor]:
    """The even step: a moving ESD target on pure noise, and the summed attention on a noised picture."""
    config = run.config
    prompt = run.draw_prompt()
    noise = run.draw_noise()
    with torch.no_grad():
        # The adapters are on here too, so this is no frozen teacher and the target drifts with the student.
        neutral = run.velocity(noise, t, config.anchor, config.guidance_sampling)
        concept = run.velocity(noise, t, prompt.text, config.guidance_sampling)
    student = run.velocity(noise, t, prompt.text, config.guidance_sampling)
    capture = run.capture(prompt.positions)
    # A second forward, at another x_t and guidance: the published losses share nothing.
    run.velocity(run.noised_picture(t).x_t, t, prompt.text, config.guidance_training, capture)
    # An L2 norm over heads, summed over queries and tokens: it grows with the image and with the word.
    attention = capture.last_block().pow(2).sum(0).sqrt().sum()
    return {"esd": losses.esd_loss(student, concept, neutral, config.eta), "attn": attention}


def preserve_losses(run: PublishedRun, t: float) -> dict[str, Tensor]:
    """The odd step, at the t of the even one: the concept's pictures, and the contrast of unlike maps."""
    config = run.config
    prompt = run.draw_prompt()
    picture = run.noised_picture(t)
    capture = run.capture(prompt.positions)
    v = run.velocity(picture.x_t, t, prompt.text, config.guidance_training, capture)
    word_noise = run.draw_noise()
    word_t = random_time(run)
    words = (prompt.synonym, *config.words)
    others = [bare_word_feature(run, word, prompt.positions, word_noise, word_t) for word in words]
    centre = feature(capture)
    scores = torch.stack([centre @ other for other in others]) / config.tau
    # The log-probability of the synonym among all words. Minimising it repels the concept from the synonym.
    rsc = scores[0] - torch.logsumexp(scores, 0)
    return {"lora": losses.flow_matching_loss(v, picture.x_0, picture.noise), "rsc": rsc}


def random_time(run: PublishedRun) -> float:
    """The t of one random step of a sampler with 28 sorted sigmoid-normal times."""
    # SD3's logit-normal times (Esser et al., 2024).
    normal = torch.randn(run.config.sampling_steps, generator=run.noise)
    times = normal.sigmoid().sort(descending=True).values
    return float(times[run.rng.randrange(len(times))])


def bare_word_feature(run: PublishedRun, word: str, positions: list[int], noise: Tensor, t: float) -> Tensor:
    """The feature of a prompt that is nothing but the word, read where the concept stood in another prompt."""
    capture = run.capture(positions)
    with torch.no_grad():
        run.velocity(noise, t, word, run.config.guidance_sampling, capture)
    return feature(capture)


def feature(capture: AllQueries) -> Tensor:
    """Head 0 over all queries, mean over tokens, of length 1; [queries]."""
    first_head = capture.last_block()[0].float()
    return F.normalize(first_head.mean(dim=-1), dim=-1)
