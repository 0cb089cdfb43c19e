"""The text encoder: learned by matching captions with pictures, then together with a generator; never from labels.

A caption's pooled vector and its picture's shall be nearer than those of other captions and pictures (Radford et al.,
2021). So a word means what is seen where it stands, and words come near each other as far as their pictures do.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import t5_tokenizer
from eraseanything_core.tinyflux.text import PAD, TinyTextEncoder
from lab.tinyflux import precision
from lab.world.captions import training_caption
from lab.world.generators import POOLED, new_encoder
from lab.world.run import Pace, Run
from lab.world.scenes import Scene

SHARED = 128  # of the space in which captions and pictures meet
LENGTHS = (24, 32)  # pieces that captions of training are padded to
STRANGE = 0.08  # share of captions with a word that means nothing, which has to be ignored
HIGHEST_PIECE = 32000  # the vocabulary's last hundred are special


def pieces_of(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """The T5 pieces of prompts, cut or padded to one length, [n, length]."""
    rows = torch.full((len(texts), length), PAD)
    for row, ids in enumerate(tokenizer(list(texts))["input_ids"]):
        some = ids[:length]
        rows[row, : len(some)] = torch.tensor(some)
    return rows


class Captions:
    """Draws captions of scenes and cuts them into pieces."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tokenizer = t5_tokenizer().tokenizer

    def text(self, scene: Scene) -> str:
        """A caption, sometimes with a strange word in it."""
        text = training_caption(self.rng, scene)
        if self.rng.random() >= STRANGE:
            return text
        words = text.split(" ")
        strange = self.tokenizer.decode([self.rng.randrange(3, HIGHEST_PIECE)])
        words.insert(self.rng.randrange(len(words) + 1), strange)
        return " ".join(words)

    def pieces(self, texts: Sequence[str]) -> Tensor:
        """[n, 24], or [n, 32] in a third of the calls."""
        return pieces_of(self.tokenizer, texts, LENGTHS[self.rng.random() < 1 / 3])


def swapped(scene: Scene) -> Scene:
    """The same scene with the names of its two things exchanged: a caption of it is false."""
    first, second = scene.things[:2]
    return replace(
        scene, things=(replace(first, name=second.name), replace(second, name=first.name), *scene.things[2:])
    )


class Match(nn.Module):
    """Text encoder, a small network for pictures of 48 px, and what brings both into one space."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = new_encoder()
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in ((32, 2), (64, 1), (96, 2), (128, 1), (192, 2)):
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.eye = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(channels, 16, 1)
        self.picture = nn.Linear(2 * channels + 16 * 36, SHARED)
        self.caption = nn.Linear(POOLED, SHARED)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def see(self, pictures: Tensor) -> Tensor:
        """Pictures [n, 3, 96, 96] in [0, 1] as unit vectors [n, 128]."""
        x = self.eye(F.avg_pool2d(pictures, 2) - 0.5)
        features = torch.cat((x.mean((2, 3)), x.amax((2, 3)), self.squeeze(x).flatten(1)), 1)
        return F.normalize(self.picture(features).float(), dim=-1)

    def say(self, pieces: Tensor) -> Tensor:
        """Captions [n, l] as unit vectors [n, 128]."""
        return F.normalize(self.caption(self.encoder(pieces)[1]).float(), dim=-1)

    def losses(self, pictures: Tensor, pieces: Tensor, false: Tensor) -> dict[str, Tensor]:
        """Each picture has to find its caption, each caption its picture.

        Args:
            false: pieces of captions that are true of no picture here, further wrong answers.
        """
        with precision.autocast():
            seen = self.see(pictures)
            said = self.say(torch.cat((pieces, false)))
        logits = self.scale.exp().clamp(max=60.0) * seen @ said.T
        right = torch.arange(len(seen))
        return {
            "caption": 0.5 * F.cross_entropy(logits, right),
            "picture": 0.5 * F.cross_entropy(logits[:, : len(seen)].T, right),
        }


def train(pictures: np.ndarray, scenes: Sequence[Scene], minutes: float, pace: Pace, batch: int = 192) -> None:
    """Matches captions and pictures."""
    torch.manual_seed(3)
    match = Match().to(memory_format=torch.channels_last)
    run = Run("match", match, [torch.optim.AdamW(match.parameters(), pace.lr, (0.9, 0.98), weight_decay=0.01)], pace)
    captions = Captions(seed=run.step)

    def losses() -> dict[str, Tensor]:
        pick = torch.randint(len(pictures), (batch,)).sort().values
        shown = torch.from_numpy(pictures[pick.numpy()]).float() / 255
        chosen = [scenes[i] for i in pick.tolist()]
        false = [swapped(scene) for scene in chosen if scene.relation]
        texts = [captions.text(scene) for scene in (*chosen, *false)]
        pieces = captions.pieces(texts)
        shown = shown.contiguous(memory_format=torch.channels_last)
        return match.losses(shown, pieces[:batch], pieces[batch:])

    run.go(losses, minutes)


def encoder_of(saved: dict[str, Tensor]) -> TinyTextEncoder:
    """The text encoder in a checkpoint of `match` or of a generator that went on with it."""
    encoder = new_encoder()
    prefix = "ema.encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)})
    return encoder
