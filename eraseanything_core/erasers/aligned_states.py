"""Text states for a closed form: each token of a concept's sentence, and the token that it shall read as.

All tokens count and not only the word's: a text encoder mixes them, so the concept shows in the states of the words
beside it and of the padding as well.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..concepts import matching
from .uce import TextStates

PADDING = 16  # states that stand for a prompt's padding, evenly over it
SAME = 1e-4  # relative distance up to which a token reads as its guide already

ReadStates = Callable[[str], Tensor]  # a prompt to its states [tokens, columns]
ReadPieces = Callable[[str], Sequence[str]]  # a prompt to the pieces of these tokens; "" is none of its own


class Pair(NamedTuple):
    """A sentence of the concept, the word of it that is erased, and what it shall read as."""

    prompt: str
    word: str
    guide: str


def guide_positions(pieces: Sequence[str], word: str, guide: Sequence[str]) -> list[int]:
    """For every token of a prompt the token of its guide that stands in the same place.

    The tokens before the word are counted from the start and those behind it from the end, so that guides of any length
    fit. The word's own tokens go to what stands between these, the last one as often as needed.

    Args:
        pieces: of the prompt.
        word: as it stands there.
        guide: the pieces of the guide.
    """
    own = matching.positions(pieces, word)
    first, stop = own[0], own[-1] + 1
    length, guide_length = _length(pieces), _length(guide)
    middle = max(1, guide_length - first - (length - stop))
    places = []
    for i in range(len(pieces)):
        if i < first:
            place = i
        elif i < stop:
            place = first + min(i - first, middle - 1)
        else:
            # Words behind the concept, the end of the text, and padding.
            place = guide_length - length + i
        places.append(min(max(place, 0), len(guide) - 1))
    return places


def _length(pieces: Sequence[str]) -> int:
    """Tokens up to the last one of the text itself."""
    own = [i for i, piece in enumerate(pieces) if piece]
    return own[-1] + 1 if own else 0


def chosen_positions(pieces: Sequence[str]) -> tuple[list[int], Tensor]:
    """Which tokens of a prompt are used, and the root of how many each stands for.

    Returns:
        All of the text's own tokens with the one behind them, and `PADDING` of the rest.
    """
    own = min(_length(pieces) + 1, len(pieces))
    padding = len(pieces) - own
    step = max(1.0, padding / PADDING)
    chosen = [own + int(step * i) for i in range(min(padding, PADDING))]
    weights = [1.0] * own + [step] * len(chosen)
    return [*range(own), *chosen], torch.tensor(weights).sqrt()


def text_states(pairs: Sequence[Pair], kept: Sequence[str], read: ReadStates, pieces: ReadPieces) -> TextStates:
    """The states of sentences for an edit, each row times the root of how many tokens it stands for.

    Args:
        pairs: sentences of the concept with their guides.
        kept: prompts that must read as before.
        read: the states that the edited linears are given.
        pieces: of the same tokens.
    """
    erased_rows: list[Tensor] = []
    guide_rows: list[Tensor] = []
    kept_rows: list[Tensor] = []
    for pair in pairs:
        own_pieces = pieces(pair.prompt)
        places = torch.tensor(guide_positions(own_pieces, pair.word, pieces(pair.guide)))
        chosen, weights = chosen_positions(own_pieces)
        erased = weights[:, None] * read(pair.prompt)[chosen].float()
        guide = weights[:, None] * read(pair.guide)[places[chosen]].float()
        # An encoder that reads from left to right says nothing of a word before it comes.
        differs = (guide - erased).norm(dim=1) > SAME * erased.norm(dim=1)
        erased_rows.append(erased[differs])
        guide_rows.append(guide[differs])
        kept_rows.append(erased[~differs])
    for prompt in kept:
        chosen, weights = chosen_positions(pieces(prompt))
        kept_rows.append(weights[:, None] * read(prompt)[chosen].float())
    return TextStates(torch.cat(erased_rows), torch.cat(guide_rows), torch.cat(kept_rows))


def pooled_states(pairs: Sequence[Pair], kept: Sequence[str], read: ReadStates) -> TextStates:
    """The same for the vector that a text encoder makes of a whole prompt, [1, columns] each."""
    erased = torch.cat([read(pair.prompt) for pair in pairs])
    guides = torch.cat([read(pair.guide) for pair in pairs])
    return TextStates(erased, guides, torch.cat([read(prompt) for prompt in kept]))
