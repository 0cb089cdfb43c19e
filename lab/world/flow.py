"""The generators' training: rectified flow on the latents, text encoder and generator together; then guidance.

Flow: v = n - x_0 at x_t = (1 - t) x_0 + t n, the caption dropped one time in ten. Guidance, for TinyFlux: the input g
learns to give v(c, g) = v(c) + (g - 1) (v(c) - v(empty)), which two forwards of the model before give.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lab.tinyflux import precision
from lab.tinyflux.generator import draw_times
from lab.world.files import load, newest
from lab.world.generators import GENERATORS, Generator
from lab.world.muon import Muon
from lab.world.run import Pace, Run
from lab.world.scenes import Scene
from lab.world.text import LENGTHS, Captions, encoder_of, pieces_of

DROPPED = 0.1  # share of captions that are left out
DROPPED_POOLED = 0.5  # share of pooled vectors that are set to zero: LoRAs act on tokens, so those have to matter
GUIDANCE = (1.0, 5.0)  # what is distilled
TEXT_RATE = 1.0  # of the generator's learning rate


def optimizers(generator: Generator, lr: float, text: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest, slower for the text encoder where it learns at all."""
    blocks = []
    rest = []
    for name, parameter in generator.net.named_parameters():
        matrix = parameter.ndim == 2 and "blocks" in name and "mod" not in name
        (blocks if matrix else rest).append(parameter)
    groups = [{"params": rest}]
    if text:
        groups.append({"params": list(generator.encoder.parameters()), "scale": TEXT_RATE})
    return [Muon(blocks, lr), torch.optim.AdamW(groups, lr, (0.9, 0.98), weight_decay=0.0, fused=True)]


class Teaching:
    """Batches of latents and captions, and the loss of a generator on them.

    Args:
        compiled: needs a C++ compiler; it saves about a third of the time.
    """

    def __init__(self, generator: Generator, latents: np.ndarray, scenes: Sequence[Scene], seed: int, compiled: bool):
        self.generator = generator
        self.latents = latents
        self.scenes = scenes
        self.captions = Captions(seed)
        self.said: Callable[..., Tensor] = self.say
        self.velocity: Callable[..., Tensor] = generator.velocity
        if compiled:
            for length in LENGTHS:
                generator.rope(length)  # here: the compiled code only looks them up
            self.said = torch.compile(self.say, dynamic=False)
            self.velocity = torch.compile(generator.velocity, dynamic=False)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Latents [n, 16, 12, 12] and pieces of their captions [n, l]."""
        pick = torch.randint(len(self.latents), (count,)).sort().values
        texts = []
        for number in pick.tolist():
            dropped = self.captions.rng.random() < DROPPED
            texts.append("" if dropped else self.captions.text(self.scenes[number]))
        x_0 = self.generator.own(torch.from_numpy(self.latents[pick.numpy()]).float())
        return x_0, self.captions.pieces(texts)

    def flow(self, count: int) -> dict[str, Tensor]:
        """The loss of rectified flow."""
        x_0, pieces = self.batch(count)
        noise = torch.randn_like(x_0)
        time = draw_times(count)
        x = torch.lerp(x_0, noise, time[:, None, None, None])
        kept = (torch.rand(count, 1) >= DROPPED_POOLED).float()
        with precision.autocast():
            v = self.said(x, time, pieces, kept, torch.ones(count))
        return {"flow": (v.float() - (noise - x_0)).pow(2).mean()}

    def say(self, x: Tensor, time: Tensor, pieces: Tensor, kept: Tensor, guidance: Tensor) -> Tensor:
        """The velocity by text encoder and generator; `kept` [n, 1] is zero where the pooled vector is left out."""
        states, pooled = self.generator.encoder(pieces)
        return self.generator.velocity(x, time, states, pooled * kept, guidance)

    def guidance(self, count: int, teacher: Generator) -> dict[str, Tensor]:
        """The loss against two forwards of the model before."""
        x_0, pieces = self.batch(count)
        time = draw_times(count)
        x = torch.lerp(x_0, torch.randn_like(x_0), time[:, None, None, None])
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(count)
        one = torch.ones(count)
        with precision.autocast():
            with torch.no_grad():
                states, pooled = teacher.encoder(pieces)
                empty = pieces_of(self.captions.tokenizer, [""] * count, states.shape[1])
                nothing, _ = teacher.encoder(empty)
                pooled = pooled * (torch.rand(count, 1) >= DROPPED_POOLED)
                with_caption = teacher.velocity(x, time, states, pooled, one).float()
                without = teacher.velocity(x, time, nothing, torch.zeros_like(pooled), one).float()
            v = self.velocity(x, time, states, pooled, guidance).float()
        target = with_caption + (guidance - 1)[:, None, None, None] * (with_caption - without)
        return {"guidance": (v - target).pow(2).mean()}


def trained(name: str) -> Generator:
    """A generator with the averaged weights of its newest checkpoint; guidance, where it is distilled, included.

    Raises:
        FileNotFoundError: it has not been trained.
    """
    path = newest(f"{name}-guided") or newest(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not trained yet: run `python -m lab.world.train {name}`")
    generator = GENERATORS[name]()
    weights = {k.removeprefix("ema."): v for k, v in load(path).items() if k.startswith("ema.")}
    if name == "tinyz":
        # A committed checkpoint has the text encoder only once, with TinyFlux.
        weights |= {f"encoder.{k}": v for k, v in _text(name).state_dict().items()}
    generator.load_state_dict(weights)
    return generator.eval().requires_grad_(False)


def train(
    name: str, latents: np.ndarray, scenes: Sequence[Scene], minutes: float, pace: Pace, batch: int = 64,
    compiled: bool = True,
) -> None:  # fmt: skip
    """Trains a generator by rectified flow; TinyFlux takes the text encoder along, TinyZ takes TinyFlux's as it is."""
    torch.manual_seed(5)
    generator = GENERATORS[name]()
    text_learns = name == "tinyflux"
    run = Run(name, generator, optimizers(generator, pace.lr, text_learns), pace)
    if run.step == 0 or not text_learns:
        generator.encoder.load_state_dict(_text(name).state_dict())
        run.ema |= {k: v.clone() for k, v in generator.state_dict().items() if k.startswith("encoder.")}
    generator.encoder.requires_grad_(text_learns)
    teaching = Teaching(generator, latents, scenes, seed=run.step, compiled=compiled)
    run.go(lambda: teaching.flow(batch), minutes)


def _text(name: str) -> nn.Module:
    """The text encoder that a generator begins with: matched to pictures, or as TinyFlux left it."""
    path = newest("tinyflux") if name == "tinyz" else None
    path = path or newest("match")
    if path is None:
        raise FileNotFoundError("there is no text encoder yet: run `python -m lab.world.train text`")
    return encoder_of(load(path))


def distil(
    latents: np.ndarray, scenes: Sequence[Scene], minutes: float, pace: Pace, batch: int = 64, compiled: bool = True
) -> None:
    """Distils guidance into TinyFlux; the text encoder stays as it is."""
    teacher = GENERATORS["tinyflux"]()
    path = newest("tinyflux")
    if path is None:
        raise FileNotFoundError("TinyFlux is not trained yet: run `python -m lab.world.train tinyflux`")
    weights = {k.removeprefix("ema."): v for k, v in load(path).items() if k.startswith("ema.")}
    teacher.load_state_dict(weights)
    teacher.eval().requires_grad_(False)
    generator = GENERATORS["tinyflux"]()
    generator.load_state_dict(weights)
    generator.encoder.requires_grad_(False)
    run = Run("tinyflux-guided", generator, optimizers(generator, pace.lr, text=False), pace)
    teaching = Teaching(generator, latents, scenes, seed=run.step + 7, compiled=compiled)
    run.go(lambda: teaching.guidance(batch, teacher), minutes)
