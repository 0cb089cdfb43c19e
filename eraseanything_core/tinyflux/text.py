"""TinyFlux's text encoder: a small T5-style encoder over ComfyUI's own T5 pieces.

It is trained before the generator (`lab/tinyflux/text_training.py`) to tag every piece with the word of the world
that it belongs to. So the meaning of a word sits at the word's own pieces, as it mostly does in T5.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD = 0  # T5's padding piece
VOCABULARY_SIZE = 32128  # T5's
LENGTH = 32  # pieces of a prompt, at least


class Layer(nn.Module):
    """Pre-norm self-attention with a learned bias for relative positions, and a gated feed-forward."""

    def __init__(self, width: int, heads: int, reach: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.reach = reach  # pieces; everything farther away shares one bias
        self.norm1 = nn.RMSNorm(width)
        self.norm2 = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 6 * width, bias=False)  # gate and value, 3 * width each
        self.down = nn.Linear(3 * width, width, bias=False)
        self.near = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """One layer.

        Args:
            x: [b, l, width].
            mask: [b, l], true at real pieces.

        Returns:
            [b, l, width].
        """
        b, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        position = torch.arange(length, device=x.device)
        distance = position[:, None] - position[None, :]
        near = self.near[:, distance.clamp(-self.reach, self.reach) + self.reach]
        # A finite value instead of -inf: a row of an empty prompt would be NaN.
        bias = near[None].masked_fill(~mask[:, None, None, :], -1e4).to(q.dtype)  # [b, heads, l, l]
        attended = F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(b, length, width)
        x = x + self.out(attended)
        gate, value = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value)


class TinyTextEncoder(nn.Module):
    """T5 pieces [b, l] to states [b, l, 128], zero at padding, and a pooled vector [b, 64]."""

    def __init__(self, width: int = 128, pooled: int = 64, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        # T5's vocabulary is large: a narrow embedding that is widened keeps the file small.
        self.embed = nn.Embedding(VOCABULARY_SIZE, 64)
        self.widen = nn.Linear(64, width, bias=False)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.pool = nn.Linear(width, pooled)
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes prompts.

        Args:
            pieces: [b, l], padded with `PAD`.

        Returns:
            States [b, l, 128] and pooled vectors [b, 64].
        """
        mask = pieces != PAD
        x = self.widen(self.embed(pieces))
        for layer in self.layers:
            x = layer(x, mask)
        states = self.norm(x) * mask[..., None]
        # The mean over real pieces only; the clamp is for a prompt that has none.
        pooled = self.pool(states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
        return states, pooled


def piece_ids(tokenizer: Any, texts: list[str]) -> Tensor:
    """The T5 pieces of some prompts, the end token included.

    Args:
        tokenizer: the tokenizer of transformers inside ComfyUI's T5 tokenizer.
        texts: n prompts.

    Returns:
        [n, l] with l at least 32, padded on the right.
    """
    rows = tokenizer(texts)["input_ids"]
    length = max(LENGTH, *(len(row) for row in rows))
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
