"""Prompt-gated erasers: each is as strong as the prompt is about its concept, and off where it is not.

After the facilitated transport of SPM (Lyu et al. 2024): gamma_i = max(overlap of words, similarity of text states),
decided once, when the prompt is encoded. Half-way to a known synonym is enough for all of the eraser: one that is half
on erases few pictures. sum_i gamma_i W_i B_i A_i is then an ordinary LoRA, of that prompt.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import matching, prompts
from ..protocols import TextEncoder
from .headers import ErasedConcept

# Where a gate is 0, and where it is 1, on the way from the nearest irrelevant word to the farthest synonym.
OFF = 0.25
ON = 0.5
COMMON_WORDS = (
    "person",
    "tree",
    "house",
    "city",
    "water",
    "animal",
    "table",
    "light",
    "red",
    "large",
    "old",
    "round",
)


class PromptGate:
    """Weighs prompts by how much they are about each of several erased concepts.

    Args:
        erased: the concepts; their synonyms and irrelevant words set the scale of similarity.
        text: the text encoder.

    Attributes:
        centre: the mean state of common words, [features], from which directions are measured.
        concept_directions: a unit vector [features] of each concept.
        scales: of each concept, the cosines at which a word is on its way: the start and the end of the way.
    """

    def __init__(self, erased: Sequence[ErasedConcept], text: TextEncoder) -> None:
        self.erased = erased
        self.text = text
        # States of all words share a large part, which would make every cosine near 1.
        self.centre = torch.stack([self._word_state(word) for word in COMMON_WORDS]).mean(0)
        self.concept_directions: list[Tensor] = []
        self.scales: list[tuple[float, float]] = []
        for concept in erased:
            direction = self._directions(concept.names[:1])[0]
            self.concept_directions.append(direction)
            self.scales.append(self._scale(concept, direction))

    def __call__(self, prompt: str) -> list[float]:
        """gamma in [0, 1] for every concept."""
        words = F.normalize(self._prompt_states(prompt) - self.centre, dim=1)
        gates = []
        for concept, direction, scale in zip(self.erased, self.concept_directions, self.scales, strict=True):
            low, high = scale
            # A prompt is as near as its nearest word. One without any is as far as an irrelevant word.
            nearest = float((words @ direction).max()) if len(words) else low
            way = (nearest - low) / (high - low)
            similarity = min(1.0, max(0.0, (way - OFF) / (ON - OFF)))
            gates.append(max(word_overlap(prompt, concept.names), similarity))
        return gates

    def _scale(self, concept: ErasedConcept, direction: Tensor) -> tuple[float, float]:
        """The cosine of the nearest irrelevant word, and that of the farthest synonym."""
        # Without the concept's own words: "star fish" may be irrelevant to `star`, and is no measure of what is far.
        others = tuple(word for word in concept.irrelevant or COMMON_WORDS if not word_overlap(word, concept.names))
        low = float((self._directions(others) @ direction).max())
        high = float((self._directions(concept.names) @ direction).min())
        # A synonym that is farther than an irrelevant word is no end of a way; the concept itself has the cosine 1.
        return low, high if high > low else 1.0

    def _directions(self, words: Sequence[str]) -> Tensor:
        """Unit vectors [words, features] from the centre."""
        states = torch.stack([self._word_state(word) for word in words])
        return F.normalize(states - self.centre, dim=1)

    def _word_state(self, word: str) -> Tensor:
        """The text encoder's state of a word in a plain sentence, [features]."""
        sentence = prompts.fill(prompts.DEFAULT_TEMPLATES[0], word)
        positions = matching.positions(self.text.pieces(sentence), word)
        context, _ = self.text.encode(sentence)
        return context[0, positions].float().mean(0)

    def _prompt_states(self, prompt: str) -> Tensor:
        """The state of every word of a prompt, [words, features]."""
        context, _ = self.text.encode(prompt)
        states = context[0].float()
        words: list[list[int]] = []  # the positions of each word's pieces
        for i, piece in enumerate(self.text.pieces(prompt)):
            # "▁" is the blank before a word; the first piece may lack it, and special tokens are empty.
            starts_word = piece.startswith("▁") or not words
            if piece and starts_word:
                words.append([i])
            elif piece:
                words[-1].append(i)
        if not words:
            return states[:0]
        return torch.stack([states[positions].mean(0) for positions in words])


def word_overlap(prompt: str, names: Sequence[str]) -> float:
    """The share of a name's words that stand in the prompt, of the name that has most of them there."""
    shares = []
    for name in names:
        words = name.split()
        present = sum(matching.occurs(prompt, word) for word in words)
        shares.append(present / len(words))
    return max(shares)
