"""Prompt-gated erasers: each is as strong as the prompt is about its concept, and off where it is not.

After the facilitated transport of SPM (Lyu et al. 2024): gamma_i = max(overlap of words, similarity of text states),
decided once, when the prompt is encoded. Half-way to a known synonym is enough for all of the eraser: one that is half
on erases few pictures. sum_i gamma_i W_i B_i A_i is then an ordinary LoRA, of that prompt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import matching, prompts
from .headers import Erased

OFF, ON = 0.25, 0.5  # where on the way from the nearest irrelevant word to the farthest synonym a gate is 0, and 1
COMMON = ("person", "tree", "house", "city", "water", "animal", "table", "light", "red", "large", "old", "round")


class Gate:
    """Weighs prompts by how much they are about each of several erased concepts.

    Args:
        erased: the concepts; their synonyms and irrelevant words set the scale of similarity.
        text: has `encode(prompt)` and `pieces(prompt)`; see `flux.TextEncoder`.
    """

    def __init__(self, erased: list[Erased], text):
        self.erased, self.text = erased, text
        self.middle = torch.stack([self._state(word) for word in COMMON]).mean(0)
        self.own = [self._centred(e.names[:1])[0] for e in erased]
        self.scales = [self._scale(e, own) for e, own in zip(erased, self.own, strict=True)]

    def __call__(self, prompt: str) -> list[float]:
        """gamma in [0, 1] for every concept."""
        words = F.normalize(self._words(prompt) - self.middle, dim=1)
        found = []
        for e, own, (low, high) in zip(self.erased, self.own, self.scales, strict=True):
            near = float((words @ own).max()) if len(words) else low
            way = (near - low) / (high - low)
            found.append(max(overlap(prompt, e.names), min(1.0, max(0.0, (way - OFF) / (ON - OFF)))))
        return found

    def _scale(self, e: Erased, own: Tensor) -> tuple[float, float]:
        """The cosines between which a word is on its way: the nearest irrelevant word's and the farthest synonym's."""
        others = tuple(word for word in e.irrelevant or COMMON if not overlap(word, e.names))
        low = float((self._centred(others) @ own).max())
        high = float((self._centred(e.names) @ own).min())
        return low, high if high > low else 1.0

    def _centred(self, words: tuple[str, ...]) -> Tensor:
        """Unit vectors [words, features], common words being the origin."""
        return F.normalize(torch.stack([self._state(word) for word in words]) - self.middle, dim=1)

    def _state(self, word: str) -> Tensor:
        """The text encoder's state of a word in a plain sentence, [features]."""
        sentence = prompts.fill(prompts.TEMPLATES[0], word)
        places = matching.positions(self.text.pieces(sentence), word)
        return self.text.encode(sentence)[0][0, places].float().mean(0)

    def _words(self, prompt: str) -> Tensor:
        """The state of every word of a prompt, [words, features]."""
        pieces, states = self.text.pieces(prompt), self.text.encode(prompt)[0][0].float()
        words: list[list[int]] = []
        for i, piece in enumerate(pieces):
            if piece.startswith("▁") or (piece and not words):
                words.append([i])
            elif piece:
                words[-1].append(i)
        return torch.stack([states[w].mean(0) for w in words]) if words else states[:0]


def overlap(prompt: str, names: tuple[str, ...]) -> float:
    """The share of a name's words that stand in the prompt, of the name that has most of them there."""
    return max(sum(matching.occurs(prompt, w) for w in name.split()) / len(name.split()) for name in names)
