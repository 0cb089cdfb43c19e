"""A model and a text encoder of a few numbers each, in the default dtype, for what has to hold to the last digit."""

import zlib
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import nn

from eraseanything_core.lora.adapter import Lora
from eraseanything_core.lora.keys import LinearSlice
from eraseanything_core.protocols import EncodedPrompt
from eraseanything_core.sampling import euler, shifted_sigmas

TOKENS = 8
FEATURES = 5
HIDDEN = 6


class ToyText:
    """A word is a token, and its state a fixed random vector."""

    def pieces(self, text):
        words = [f"▁{word}" for word in text.split()]
        return [*words, *[""] * (TOKENS - len(words))]

    def encode(self, text):
        states = [self.state(piece) for piece in self.pieces(text)]
        context = torch.stack(states)[None]
        return EncodedPrompt(context, context.mean(1))

    def state(self, piece):
        rng = torch.Generator().manual_seed(zlib.crc32(piece.encode()))
        return torch.randn(FEATURES, generator=rng)


class ToyModel:
    """v = tanh(x / 2 + t) + M tanh(W h), h the mean of the text's states; the LoRA is on W.

    The latent's cells attend to the tokens e of the text by softmax(x Q W e), which v does not depend on.

    Attributes:
        asked: one (rows, adapters, gradient) a forward.
    """

    device = torch.device("cpu")
    channels, downscale, mu, last_time, noise_scale = 2, 4, 0.5, 1.0, 1.0

    def __init__(self):
        rng = torch.Generator().manual_seed(7)
        self.dtype = torch.get_default_dtype()
        self.module = nn.Module()
        self.module.text = nn.Linear(FEATURES, HIDDEN, bias=False)
        self.module.text.weight.data.copy_(torch.randn(HIDDEN, FEATURES, generator=rng))
        self.module.requires_grad_(False)
        self.out = torch.randn(2 * 4 * 4, HIDDEN, generator=rng) / 2
        self.query = torch.randn(2, HIDDEN, generator=rng)
        self.lora = None
        self.frozen = None  # (B A [HIDDEN, FEATURES], whether it is the student's alone)
        self.asked = []

    def attach(self, targets, rank, generator):
        part = LinearSlice("text", "text", 0, HIDDEN, FEATURES)
        self.lora = Lora([part], rank, generator)
        return self.lora

    def attach_frozen_lora(self, tensors, strength=1.0, student=False):
        up, down = tensors["transformer.text.lora_B.weight"], tensors["transformer.text.lora_A.weight"]
        self.frozen = (strength * up @ down).to(self.out), student

    def embedder(self):
        return "text", "transformer.text"

    def capture(self, select, blocks=None):
        return SimpleNamespace(select=select, maps={})

    def conds(self, encodings, guidance):
        return torch.cat([encoded.context for encoded in encodings])

    def sigmas(self, steps, mu=None):
        return shifted_sigmas(steps, self.mu).to(self.dtype)

    def velocity(self, x_t, sigma, cond, adapters, capture=None):
        with torch.set_grad_enabled(adapters and torch.is_grad_enabled()):
            self.asked.append((len(x_t), adapters, torch.is_grad_enabled()))
            hidden = self.tokens(cond, adapters).mean(1)
            t = sigma[:, None, None, None].to(x_t)
            return (x_t / 2 + t).tanh() + (hidden.tanh() @ self.out.T).view_as(x_t)

    def tokens(self, cond, adapters):
        """W e of every token, [b, tokens, HIDDEN]."""
        hidden = self.module.text(cond)
        if self.frozen is not None and (adapters or not self.frozen[1]):
            hidden = hidden + cond @ self.frozen[0].T
        return self.lora.add_to_output([0], cond, hidden) if adapters else hidden

    def columns(self, x_t, sigma, cond, adapters, capture):
        with torch.set_grad_enabled(adapters and torch.is_grad_enabled()):
            self.asked.append((len(x_t), adapters, torch.is_grad_enabled()))
            queries = x_t.flatten(2).transpose(1, 2) @ self.query
            weights = (queries @ self.tokens(cond, adapters).transpose(1, 2)).softmax(-1)
            capture.maps[0] = (weights @ capture.select.to(weights))[:, None]
        return capture.maps

    @torch.no_grad()
    def trajectory(self, cond, noise, sigmas, adapters=False):
        yield from euler(lambda x, t: self.velocity(x, t, cond, adapters), noise, sigmas)

    def uninterrupted(self):
        return nullcontext()
