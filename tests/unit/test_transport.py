"""SPM's facilitated transport: strengths by the equation, on texts whose states are known."""

import math

import pytest
import torch

from eraseanything_core.lora.headers import ErasedConcept
from eraseanything_core.lora.transport import transport
from eraseanything_core.protocols import EncodedPrompt

STATES = {"red": (1.0, 0.0), "scarlet": (3.0, 4.0), "giant": (0.0, 2.0), "dog": (-1.0, 0.0)}
PADDING = (10.0, 10.0)  # by which any two texts are alike


class Text:
    """A state a word, and padding up to four tokens, or none."""

    def __init__(self, length=4):
        self.length = length

    def pieces(self, text):
        pieces = [f"▁{word}" for word in text.split()]
        return pieces + [""] * (self.length - len(pieces))

    def encode(self, text):
        rows = [STATES.get(piece.casefold().strip("▁"), PADDING) for piece in self.pieces(text)]
        return EncodedPrompt(torch.tensor(rows or [PADDING])[None], torch.zeros(1, 2))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def of(prompt, *names, length=4):
    return transport(prompt, [ErasedConcept(names)], Text(length))[0]


def test_words_in_common_count_by_their_share():
    assert of("a Red house", "red") == 1, "whatever its case, and wherever it stands"
    assert of("red", "red giant") == pytest.approx(max(0.5, cosine((-9, -10, 0, 0), (-9, -10, -10, -8))))
    assert of("a giant dog", "red giant") == 0.5, "the second of its two tokens"


def test_other_words_count_by_their_states_about_the_empty_prompt():
    assert of("scarlet", "red") == pytest.approx(cosine((3 - 10, 4 - 10), (1 - 10, 0 - 10)))
    # By the states as they are, with three tokens of padding in common, it would be 0.98.
    assert of("house scarlet", "red") == 0, "another place"


def test_the_best_of_the_names_counts_for_each_eraser():
    erased = [ErasedConcept(("dog",)), ErasedConcept(("red", "scarlet")), ErasedConcept(("house",))]
    dog, red, house = transport("scarlet", erased, Text())
    assert red == 1 and house == 0
    assert dog == pytest.approx(cosine((3 - 10, 4 - 10), (-1 - 10, 0 - 10)))


def test_nothing_is_turned_round():
    """A negative cosine would train the concept in."""
    STATES["far"] = (20.0, 20.0)
    assert of("far", "red") == 0


def test_texts_of_unlike_length():
    """Where a family encodes a text in as many tokens as it has, the shorter one has nothing there."""
    wanted = cosine((3 - 10, 4 - 10, 0, 2), (1 - 10, 0 - 10, 0, 0))
    assert of("scarlet giant", "red", length=0) == pytest.approx(wanted)
