"""Gates of erasers: each is as strong as an encoded prompt is about its concept, and off where it is not.

After the facilitated transport of SPM (Lyu et al. 2024): sum_i gamma_i W_i B_i A_i with gamma_i by the prompt. Here
gamma_i is read from the text states that are sampled. So it belongs to each row of a batch, and no text has to be kept
in step with them. What the states of a concept look like is learnt once, from the text encoder.
"""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import matching
from ..protocols import TextEncoder
from .gate_texts import GateTexts
from .headers import ErasedConcept

# Where a gate is 0, and where it is 1, on the way from the nearest kept text to the farthest that names the concept.
# Both are near the kept texts: a picture that is erased without need is better than one that is not erased.
OFF = 0.2
ON = 0.3
KEPT_SHARE = 0.95  # of the kept texts lie below the start of the way: a few words may be unknown to the text encoder
NAMED_SHARE = 0.0
# Names that no state tells from kept words still have a way of this length: erasing goes before keeping.
SHORTEST_WAY = 0.25
RIDGE = 0.1  # of the regression, whose inputs have the length 1
PADDING = 2  # tokens of padding that are read of a text, at least
POSSESSIVE_ENDINGS = ("'", "'s", "’", "’s")


class Recogniser:
    """Tells text states of one kind from others: ridge regression from states to 1 and 0.

    Args:
        states: [n, features].
        labels: [n], 1 where a state is of the kind, 0 elsewhere.
        used: [n], which states count; all do by default.

    Attributes:
        unseen: [n], the value of each state by the regression on all others.
    """

    def __init__(self, states: Tensor, labels: Tensor, used: Tensor | None = None) -> None:
        used = torch.ones(len(states), dtype=torch.bool) if used is None else used
        self.mean = states[used].mean(0)
        # Text encoders have a few features that are far larger than all others.
        deviation = states[used].std(0)
        self.deviation = deviation.clamp(min=1e-3 * float(deviation.max()))
        inputs = self._inputs(states).double()
        targets = labels.double()
        # Both kinds count the same, however many there are of each.
        positive = targets[used].mean()
        weights = used * torch.where(targets > 0, 0.5 / positive, 0.5 / (1 - positive))
        covariance = _inverse_of_sum(inputs[used], weights[used])
        self.direction = covariance @ (inputs.T @ (weights * targets))
        leverage = weights * ((inputs @ covariance) * inputs).sum(1)
        values = inputs @ self.direction
        self.unseen = ((values - leverage * targets) / (1 - leverage)).float()
        self.direction = self.direction.float()

    def __call__(self, states: Tensor) -> Tensor:
        """About 1 where states [..., tokens, features] are of the kind, about 0 elsewhere, [..., tokens]."""
        return self._inputs(states) @ self.direction.to(states)

    def _inputs(self, states: Tensor) -> Tensor:
        scaled = (states - self.mean.to(states)) / self.deviation.to(states)
        return F.pad(F.normalize(scaled, dim=-1), (0, 1), value=1.0)  # the last one is the offset


def _inverse_of_sum(inputs: Tensor, weights: Tensor) -> Tensor:
    """(sum_i w_i x_i x_i^T + RIDGE)^-1, [features, features]."""
    rows, features = inputs.shape
    weighted = inputs * weights.sqrt()[:, None]
    if rows >= features:
        return torch.linalg.inv(weighted.T @ weighted + RIDGE * torch.eye(features).double())
    # Woodbury: a large text encoder has more features than there are states.
    inner = torch.linalg.inv(weighted @ weighted.T + RIDGE * torch.eye(rows).double())
    return (torch.eye(features).double() - weighted.T @ inner @ weighted) / RIDGE


class EncodedText:
    """A text as the text encoder gives it to the model.

    Attributes:
        states: of its words and of some of its padding, [tokens, features].
        names: for each time that the name stands there, the rows of `states` that are its tokens.
        spellings: how it is written there, each time.
    """

    def __init__(self, text: str, encoder: TextEncoder, name: str = "") -> None:
        pieces = encoder.pieces(text)
        context, _ = encoder.encode(text)
        words = [i for i, piece in enumerate(pieces) if piece]
        others = [i for i, piece in enumerate(pieces) if not piece]
        # The end token, and padding at even distances: it is most of a text, and its states are much alike.
        read = [*words, *others[:1], *others[1 :: max(1, len(others) // PADDING)]]
        self.states = context[0, read].float()
        tokens = named_tokens(pieces, name) if name else []
        self.names = [[read.index(i) for i in each] for each in tokens]
        self.spellings = [spelled(pieces, each) for each in tokens]


def named_tokens(pieces: Sequence[str], name: str) -> list[list[int]]:
    """The tokens of each occurrence of a name, without its possessive ending, which is that of all names."""
    occurrences = []
    for span in matching.find_spans(pieces, name):
        tokens = list(span)
        for i in range(1, len(span)):
            if "".join(pieces[token] for token in span[i:]).casefold() in POSSESSIVE_ENDINGS:
                tokens = tokens[:i]
                break
        occurrences.append(tokens)
    return occurrences


def spelled(pieces: Sequence[str], tokens: Sequence[int]) -> str:
    """What some tokens spell."""
    return "".join(pieces[token] for token in tokens).replace("▁", " ").strip()


class Lesson:
    """The states of all texts, from which a recogniser is learnt.

    Args:
        kept: texts that name nothing of the concept.
        naming: texts that name it.
    """

    def __init__(self, kept: Sequence[EncodedText], naming: Sequence[EncodedText]) -> None:
        self.states = torch.cat([text.states for text in (*kept, *naming)])
        self.kept: list[range] = []  # the rows of each text
        self.names: list[tuple[str, list[int]]] = []  # each occurrence of a name: its spelling and its rows
        start = 0
        for text in (*kept, *naming):
            if not text.names:
                self.kept.append(range(start, start + len(text.states)))
            for spelling, tokens in zip(text.spellings, text.names, strict=True):
                self.names.append((spelling, [start + token for token in tokens]))
            start += len(text.states)

    def learnt(self, left_out: Collection[str]) -> tuple[Recogniser, Tensor, dict[str, Tensor]]:
        """A recogniser, and how well it knows what it has not seen.

        Args:
            left_out: spellings that count neither as a name nor as anything else.

        Returns:
            The recogniser, the value of each kept text, and for each spelling the values of its occurrences.
        """
        labels = torch.zeros(len(self.states))
        used = torch.ones(len(self.states), dtype=torch.bool)
        for spelling, rows in self.names:
            labels[rows] = 1.0
            used[rows] = spelling not in left_out
        recogniser = Recogniser(self.states, labels, used)
        of_kept = torch.stack([recogniser.unseen[rows].max() for rows in self.kept])
        of_names: dict[str, list[Tensor]] = {}
        for spelling, rows in self.names:
            if spelling not in left_out:
                of_names.setdefault(spelling, []).append(recogniser.unseen[rows].max())
        return recogniser, of_kept, {spelling: torch.stack(values) for spelling, values in of_names.items()}


class ConceptReader:
    """Reads how much text states are about one concept.

    Args:
        concept: its names are recognised among its irrelevant words and kept prompts.
        encoder: the text encoder.

    Attributes:
        recogniser: of the tokens of a name; padding is among the others.
        low, high: the values between which a text is on its way to the concept.
        unread: spellings of a name that the text encoder does not tell from other words.
    """

    def __init__(self, concept: ErasedConcept, encoder: TextEncoder) -> None:
        texts = GateTexts(concept, encoder)
        kept = [EncodedText(text, encoder) for text in texts.kept()]
        naming = [EncodedText(text, encoder, name) for text, name in texts.naming()]
        lesson = Lesson(kept, naming)
        plain = {spelling for name in concept.names for spelling in plain_spellings(name, encoder)}
        self.unread: set[str] = set()
        while True:
            self.recogniser, of_kept, of_names = lesson.learnt(self.unread)
            nearest_kept = float(of_kept.quantile(KEPT_SHARE))
            unread = set()
            for spelling, values in of_names.items():
                if spelling not in plain and float(values.min()) < nearest_kept + SHORTEST_WAY:
                    unread.add(spelling)
            if not unread:
                break
            # With words that it does not know, the regression would look for what such words have in common.
            self.unread |= unread
        self.high = float(torch.cat(list(of_names.values())).min())
        self.low = min(nearest_kept, self.high - SHORTEST_WAY)

    def __call__(self, states: Tensor) -> Tensor:
        """gamma in [0, 1] of texts, [b], from their states [b, tokens, features]."""
        way = (self.recogniser(states).amax(1) - self.low) / (self.high - self.low)
        return ((way - OFF) / (ON - OFF)).clamp(0, 1)


def plain_spellings(name: str, encoder: TextEncoder) -> list[str]:
    """A name as it is typed, which must be recognised."""
    pieces = encoder.pieces(name)
    return [spelled(pieces, tokens) for tokens in named_tokens(pieces, name)]


class PromptGate:
    """Weighs encoded prompts by how much they are about each of several erased concepts.

    Args:
        erased: the concepts.
        encoder: the text encoder that encodes the prompts.

    Attributes:
        features: of a token.
        readers: one a concept.
    """

    def __init__(self, erased: Sequence[ErasedConcept], encoder: TextEncoder) -> None:
        self.features = encoder.encode("")[0].shape[2]
        self.readers = [ConceptReader(concept, encoder) for concept in erased]

    def __call__(self, context: Tensor) -> Tensor:
        """gamma in [0, 1] of every prompt and concept, [b, concepts].

        Args:
            context: the text states of the prompts, [b, tokens, features].
        """
        states = context.float()
        return torch.stack([reader(states) for reader in self.readers], dim=1)
