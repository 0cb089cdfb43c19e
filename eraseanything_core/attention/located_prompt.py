"""Where concepts stand in a prompt as it is really encoded, and which rows of a forward hold that prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts.matching import holds, locate
from ..quoting import quoted

# Of a token's encoding, by which two encodings of one text may differ: a few times what bfloat16 rounds, 1/256. Another
# word at the token, or elsewhere in the prompt, changes it by far more.
ROUNDING = 0.02


@dataclass(frozen=True)
class LocatedPrompt:
    """A prompt as it is really encoded, and where concepts stand in it.

    Attributes:
        pieces: one string a token, of all the text encoders whose tokens a model takes, one after the other.
        spans: {concept: every token position of it}.
        notes: sentences on what counts as a concept though it is spelt otherwise.
        contexts: encodings of the prompt: for each, one [1, tokens, features] a text encoder.
    """

    pieces: list[str]
    spans: dict[str, list[int]]
    notes: tuple[str, ...]
    contexts: tuple[tuple[Tensor, ...], ...]

    def rows(self, *texts: Tensor) -> Tensor:
        """[b], true where a forward's texts [b, tokens, features] begin or end with the prompt's encoding.

        The encoding itself is compared: a sampler mixes positive and negative prompts in one batch, and nothing else
        in a forward says which row is which.
        """
        matches = torch.stack([_rows_with(context, texts) for context in self.contexts])
        return matches.any(0)

    def at_start(self, text: Tensor) -> Tensor:
        """[b], true where a text [b, tokens, features] begins with the prompt's encoding; for one text encoder."""
        matches = [_same(text[:, : context.shape[1]], context) for (context,) in self.contexts]
        return torch.stack(matches).any(0)

    def columns(self, *texts: Tensor) -> Tensor:
        """[b, tokens of all texts], one at the concepts' tokens in each of the texts' encodings of the prompt.

        ComfyUI repeats a text for cross-attention when another one in the batch is longer: every copy counts.
        """
        device = texts[0].device
        all_positions = [position for span in self.spans.values() for position in span]
        positions = torch.tensor(all_positions, device=device)
        selects = [torch.zeros(text.shape[:2], device=text.device) for text in texts]
        for context in self.contexts:
            rows = _rows_with(context, texts)
            start = 0  # of this text encoder's tokens among `pieces`
            # Not strict: where the numbers of encodings differ, no row matches and nothing is set.
            for encoding, text, select in zip(context, texts, selects, strict=False):
                count = encoding.shape[1]
                own = positions[(positions >= start) & (positions < start + count)] - start
                for first in _copy_starts(count, text.shape[1]):
                    copies = rows & _same(text[:, first : first + count], encoding)
                    select[copies.nonzero(), first + own] = 1.0
                start += count
        return torch.cat(selects, dim=1)

    def table(self) -> str:
        """A line for each concept with its tokens, then the notes."""
        lines = []
        for concept, positions in self.spans.items():
            tokens = ", ".join(f"{i} {quoted(self.pieces[i])}" for i in positions)
            lines.append(f"{concept}: tokens {tokens}")
        return "\n".join([*lines, *self.notes])


def _copy_starts(count: int, length: int) -> list[int]:
    """Where copies of `count` tokens may begin in a text of `length`; Flux 2 has one at its end, after padding."""
    repeats = range(0, length - count + 1, count)
    return sorted({*repeats, max(length - count, 0)})


def _rows_with(context: tuple[Tensor, ...], texts: tuple[Tensor, ...]) -> Tensor:
    """[b], where every one of a forward's texts begins or ends with its encoding of the prompt."""
    # All text encoders have to agree: two prompts may share the encoding of one of them.
    rows = torch.ones(len(texts[0]), dtype=torch.bool, device=texts[0].device)
    if len(context) != len(texts):
        return ~rows
    for encoding, text in zip(context, texts, strict=True):
        count = encoding.shape[1]
        rows = rows & (_same(text[:, :count], encoding) | _same(text[:, -count:], encoding))
    return rows


def _same(text: Tensor, encoding: Tensor) -> Tensor:
    """[b], where rows of a text [b, tokens, features] are the encoding [1, tokens, features] up to `ROUNDING`."""
    if text.shape[1:] != encoding.shape[1:]:
        return torch.zeros(len(text), dtype=torch.bool, device=text.device)
    # Not bit for bit: a card rounds otherwise when a LoRA is in the text encoder or a part of it in main memory.
    encoding = encoding.to(text.device, torch.float32)
    error = (text.float() - encoding).norm(dim=-1)
    # By token: one other word among 512 tokens would vanish in a norm over all of them.
    return (error <= ROUNDING * encoding.norm(dim=-1)).all(1)


def locate_concepts(
    encodings: Sequence[list[str]],
    concepts: Sequence[str],
    fuzzy: bool,
    contexts: Sequence[tuple[Tensor, ...]],
    quoted: bool = False,
) -> LocatedPrompt:
    """Finds concepts in an encoded prompt, in the singular and the plural.

    Args:
        encodings: the pieces of the prompt, a list for each text encoder.
        concepts: the words to find.
        fuzzy: whether misspelt words count.
        contexts: see `LocatedPrompt`.
        quoted: whether a further encoding holds but a part of the prompt, where a concept may be missing.

    Raises:
        ValueError: no concept is given, or an encoding does not hold one; the message names its words.
    """
    if not concepts:
        raise ValueError("the concept is empty: type the word to look for")
    pieces: list[str] = []
    spans: dict[str, list[int]] = {concept: [] for concept in concepts}
    # Positions count through all encodings, as their pieces stand one after the other.
    notes: dict[str, None] = {}  # a set in order
    for index, encoding in enumerate(encodings):
        for concept in concepts:
            # The first encoding holds the whole prompt, so a concept that it lacks is an error there.
            if quoted and index > 0 and not holds(encoding, concept, fuzzy):
                continue
            matches, note = locate(encoding, concept, fuzzy)
            for span in matches:
                spans[concept] += [len(pieces) + position for position in span]
            if note:
                notes[note] = None
        pieces += encoding
    return LocatedPrompt(pieces, spans, tuple(notes), tuple(contexts))
