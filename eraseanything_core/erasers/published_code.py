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

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import sampling
from ..attention.columns import attention_columns
from ..concepts import matching
from ..concepts.prompts import shuffle
from ..training import losses, trainer


@dataclass(frozen=True)
class ReferenceConfig:
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
    esd: float = 1.0
    attn: float = 0.001
    lora: float = 0.1
    rsc: float = 0.1
    shuffle_rate: float = 0.9
    synonym_rate: float = 0.5
    guidance_sampling: float = 3.0
    guidance_training: float = 3.5
    guidance_images: float = 1.0  # published: 0, which no guidance embedding was distilled for
    sampling_steps: int = 28
    width: int = 512  # px
    height: int = 512
    seed: int = 0


class AllRows:
    """Asks a forward for columns of every dual block, from text and image queries; see `flux.Capture`.

    Attributes:
        select: [1, text tokens, c], one column a token.
        maps: a block's index to [1, heads, queries, c].
    """

    blocks = None

    def __init__(self, select: Tensor):
        self.select, self.maps = select, {}

    def read(self, q: Tensor, k: Tensor, block: int):
        select = F.pad(self.select, (0, 0, 0, k.shape[2] - self.select.shape[1]))
        self.maps[block] = attention_columns(q, k, select)

    def columns(self) -> Tensor:
        """Those of the last block, [heads, queries, c]."""
        return self.maps[max(self.maps)][0]


class Run:
    """The model, its text encoder and the pictures that a run repeats; `model` is the seam of `flux.FluxModel`."""

    def __init__(self, config: ReferenceConfig, model, text):
        self.config, self.model, self.text, self.encoded = config, model, text, {}
        self.rng = random.Random(config.seed)
        self.noise = torch.Generator().manual_seed(config.seed)
        self.shape = (model.channels, config.height // model.downscale, config.width // model.downscale)
        self.lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
        self.lora.bfloat16()
        self.images = self.pictures()

    def cond(self, prompt: str, guidance: float, count: int = 1):
        if prompt not in self.encoded:
            self.encoded[prompt] = self.text.encode(prompt)
        context, pooled = self.encoded[prompt]
        return self.model.cond(context.expand(count, -1, -1), pooled.expand(count, -1), guidance)

    def velocity(self, x: Tensor, t: float, prompt: str, guidance: float, capture: AllRows | None = None) -> Tensor:
        """v with the adapters on, which they always are."""
        return self.model.velocity(x, torch.tensor([t]), self.cond(prompt, guidance), adapters=True, capture=capture)

    def draw_noise(self, count: int = 1) -> Tensor:
        return torch.randn(count, *self.shape, generator=self.noise).to(self.model.device)

    def pictures(self) -> Tensor:
        """x_0 of the fixed prompt, [images, c, h, w]."""
        config = self.config
        sigmas = sampling.shifted_sigmas(config.sampling_steps, self.model.mu)
        cond = self.cond(config.prompt, config.guidance_images, config.images)
        return list(self.model.trajectory(cond, self.draw_noise(config.images), sigmas))[-1][0]

    def capture(self, places: list[int]) -> AllRows:
        """Columns at token positions, one a position."""
        length = self.encoded[self.config.prompt][0].shape[1]
        return AllRows(F.one_hot(torch.tensor(places), length).float().T[None].to(self.model.device))

    def prompt(self) -> tuple[str, list[int], str]:
        """A shuffled prompt, the positions where the concept stood in it before the synonym came, and the synonym."""
        config, text = self.config, self.config.prompt
        if self.rng.random() < config.shuffle_rate:
            text = shuffle(text, self.rng)
        synonym = self.rng.choice(config.lemmas)
        places = matching.positions(self.text.pieces(text), config.concept)
        if self.rng.random() < config.synonym_rate:
            text = matching.replace(text, config.concept, synonym)
        return text, places, synonym

    def noised(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """A picture at t, the picture, and the noise."""
        row = self.rng.randrange(len(self.images))
        x_0, noise = self.images[row : row + 1], self.draw_noise()
        return (1 - t) * x_0 + t * noise, x_0, noise


def train(config: ReferenceConfig, model, text) -> trainer.EraseResult:
    """Trains the slices of `model`.

    Args:
        config: the run.
        model: the seam, see `flux.FluxModel`.
        text: has `encode(prompt)` and `pieces(prompt)`; see `flux.TextEncoder`.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    run, history, begun, t = Run(config, model, text), {}, time.monotonic(), 0.0
    optimizer = torch.optim.AdamW(run.lora.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    weights = {"esd": config.esd, "attn": config.attn, "lora": config.lora, "rsc": config.rsc}
    for step in range(config.steps):
        if step % 2 == 0:
            t = run.rng.random()
            found = erase_losses(run, t)
        else:
            found = preserve_losses(run, t)
        loss = sum(weights[name] * value for name, value in found.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainer.record(history, found, loss, step)
    seconds = time.monotonic() - begun
    return trainer.EraseResult(run.lora.tensors(torch.float32), history, config.steps, False, seconds, config)


def erase_losses(run: Run, t: float) -> dict[str, Tensor]:
    """The even step: a moving ESD target on pure noise, and the summed attention on a noised picture."""
    config, (prompt, places, _) = run.config, run.prompt()
    noise = run.draw_noise()
    with torch.no_grad():
        neutral = run.velocity(noise, t, config.anchor, config.guidance_sampling)
        concept = run.velocity(noise, t, prompt, config.guidance_sampling)
    student = run.velocity(noise, t, prompt, config.guidance_sampling)
    capture = run.capture(places)
    run.velocity(run.noised(t)[0], t, prompt, config.guidance_training, capture)
    attention = capture.columns().pow(2).sum(0).sqrt().sum()  # an L2 over heads, summed over queries and tokens
    return {"esd": losses.esd_loss(student, concept, neutral, config.eta), "attn": attention}


def preserve_losses(run: Run, t: float) -> dict[str, Tensor]:
    """The odd step, at the t of the even one: the concept's pictures, and the contrast of unlike maps."""
    config, (prompt, places, synonym) = run.config, run.prompt()
    x_t, x_0, noise = run.noised(t)
    capture = run.capture(places)
    v = run.velocity(x_t, t, prompt, config.guidance_training, capture)
    start, at = run.draw_noise(), schedule(run)
    others = [bare_word(run, word, places, start, at) for word in (synonym, *config.words)]
    centre = feature(capture)
    scores = torch.stack([centre @ other for other in others]) / config.tau
    return {"lora": losses.flow_matching_loss(v, x_0, noise), "rsc": scores[0] - torch.logsumexp(scores, 0)}


def schedule(run: Run) -> float:
    """The t of one random step of a sampler with 28 sorted sigmoid-normal times."""
    times = torch.randn(run.config.sampling_steps, generator=run.noise).sigmoid().sort(descending=True).values
    return float(times[run.rng.randrange(len(times))])


def bare_word(run: Run, word: str, places: list[int], start: Tensor, t: float) -> Tensor:
    """The feature of a prompt that is nothing but the word, read where the concept stood in another prompt."""
    capture = run.capture(places)
    with torch.no_grad():
        run.velocity(start, t, word, run.config.guidance_sampling, capture)
    return feature(capture)


def feature(capture: AllRows) -> Tensor:
    """Head 0 over all queries, mean over tokens, of length 1; [queries]."""
    return F.normalize(capture.columns()[0].float().mean(dim=-1), dim=-1)
