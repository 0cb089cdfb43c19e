"""Whether a concept is gone from a model, read from the model's own pictures by the frozen model alone.

For each sentence three pictures x_0 are drawn from one noise: x_c by the teacher, x_n by the teacher from the neutral
sentence, and x_s by the student. Two readings say where x_s lies between x_n (0) and x_c (1):

- nearness: the projection <x_s - x_n, x_c - x_n> / |x_c - x_n|^2. It is above 1/2 where x_s is nearer to x_c.
- likelihood: d(x) is the teacher's flow-matching error under the neutral sentence minus that under the concept's,
  mean over noise levels t of |v(x_t, n) - (e - x)|^2 - |v(x_t, c) - (e - x)|^2 at x_t = (1 - t) x + t e. The reading
  is (d(x_s) - d(x_n)) / (d(x_c) - d(x_n)).

No judge is needed, so this works for any concept of any model. It cannot read a sentence from which the teacher's two
pictures are alike: where the original model does not draw the concept, nothing can be seen to go.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..intervals import wilson
from ..protocols import ErasableModel
from .plan import TEACHER_BATCHES

LEVELS = (0.4, 0.6, 0.8)  # t of the likelihood: below, a picture explains itself; above, nothing is left of it
# Of the mean of both readings; above it a picture shows the concept. Chosen on TinyFlux's six validation concepts.
THRESHOLD = 0.7
BATCH = TEACHER_BATCHES  # pictures in one forward: no more than the estimate counts with the smallest batch
Conds = Callable[[ErasableModel, Sequence[int]], Any]  # a model and numbers of sentences to a batch of conditions


@dataclass(frozen=True)
class HeldOut:
    """Sentences that are looked at, and what their pictures are drawn from.

    Attributes:
        asked: conditions of the sentences that the student is looked at with.
        concept: conditions of the sentences with the concept. They are the same, but for a look that no prompt names.
        neutral: conditions of their neutral sentences.
        noise: [n, c, h, w], one a sentence.
        sigmas: [steps + 1], the times of the sampler.
        seed: of the noise of the likelihood.
        count: called with the forwards that were made, one a picture and condition.
        known_concept, known_neutral: x_0 of sentences, by their numbers, that the teacher has drawn already.
    """

    asked: Conds
    concept: Conds
    neutral: Conds
    noise: Tensor
    sigmas: Tensor
    seed: int = 0
    count: Callable[[int], None] = lambda forwards: None
    known_concept: Mapping[int, Tensor] = field(default_factory=dict)
    known_neutral: Mapping[int, Tensor] = field(default_factory=dict)

    def first(self, count: int) -> "HeldOut":
        """The first sentences alone, with their noise."""
        return replace(self, noise=self.noise[:count])

    def batches(self, known: Container[int] = ()) -> list[list[int]]:
        """The numbers of the sentences but the known ones, a forward's at a time."""
        rows = [row for row in range(len(self.noise)) if row not in known]
        return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]

    @torch.no_grad()
    def pictures(
        self, model: ErasableModel, conds: Conds, adapters: bool, known: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """x_0 of every sentence, [n, c, h, w] on the CPU; those that are known are not drawn again.

        Raises:
            FloatingPointError: a picture is not finite. No reading of it would be above the threshold, so a broken
                model would pass for one from which the concept is gone.
        """
        drawn = dict(known or {})
        for rows in self.batches(drawn):
            walk = list(model.trajectory(conds(model, rows), self.noise[rows], self.sigmas, adapters))
            x_0, _ = walk[-1]
            drawn |= zip(rows, x_0.float().cpu(), strict=True)
            self.count(len(rows) * (len(self.sigmas) - 1))
        latents = torch.stack([drawn[row] for row in range(len(self.noise))])
        if not latents.isfinite().all():
            raise FloatingPointError("the model draws NaN or infinity: lower the learning rates, or check the LoRA")
        return latents


@dataclass(frozen=True)
class Reading:
    """Where each of n pictures lies between the teacher's neutral picture (0) and its picture of the concept (1).

    Attributes:
        nearness: [n], by distance.
        likelihood: [n], by the teacher's flow-matching error.
    """

    nearness: Tensor
    likelihood: Tensor

    def mean(self) -> Tensor:
        """[n], both readings together, each limited to [0, 1]."""
        # Where the teacher's two pictures are nearly alike a reading can be far outside.
        return (self.nearness.clamp(0, 1) + self.likelihood.clamp(0, 1)) / 2

    def shows(self) -> Tensor:
        """[n], whether a picture still shows the concept."""
        return self.mean() > THRESHOLD


class PictureReader:
    """The teacher's two pictures of each sentence, drawn once, and readings of others.

    Args:
        model: the teacher is this model without its adapters.
        held_out: the sentences.

    Attributes:
        x_c, x_n: [n, c, h, w], the teacher's pictures of the concept and of the neutral sentence.
        readable: [n], whether the teacher explains its picture of the concept better by the concept than its neutral
            picture. Where it is False the pictures are alike and nothing can be read.
    """

    def __init__(self, model: ErasableModel, held_out: HeldOut) -> None:
        self.model = model
        self.held_out = held_out
        # One draw for all pictures of a sentence: their errors then differ by the pictures alone.
        rng = torch.Generator().manual_seed(held_out.seed)
        shape = held_out.noise.shape
        self.errors = [model.noise_scale * torch.randn(shape, generator=rng) for _ in LEVELS]
        self.x_c = held_out.pictures(model, held_out.concept, False, held_out.known_concept)
        self.x_n = held_out.pictures(model, held_out.neutral, False, held_out.known_neutral)
        self.d_c = self._preference(self.x_c)
        self.d_n = self._preference(self.x_n)
        self.readable = self.d_c > self.d_n

    def student(self) -> Tensor:
        """The pictures of the model with its adapters as they are now, [n, c, h, w]."""
        return self.held_out.pictures(self.model, self.held_out.asked, adapters=True)

    def read(self, x_s: Tensor) -> Reading:
        """The reading of pictures [n, c, h, w], one for each sentence."""
        line = self.x_c - self.x_n
        nearness = ((x_s - self.x_n) * line).sum((1, 2, 3)) / line.square().sum((1, 2, 3))
        likelihood = (self._preference(x_s) - self.d_n) / (self.d_c - self.d_n)
        return Reading(nearness, likelihood)

    @torch.no_grad()
    def _preference(self, x: Tensor) -> Tensor:
        """d(x), [n]: by how much the concept's sentence explains each picture better than the neutral one."""
        preference = torch.zeros(len(x))
        for t, noise in zip(LEVELS, self.errors, strict=True):
            x_t = (1 - t) * x + t * noise
            target = noise - x
            for rows in self.held_out.batches():
                without = self._error(x_t[rows], t, self.held_out.neutral(self.model, rows), target[rows])
                with_it = self._error(x_t[rows], t, self.held_out.concept(self.model, rows), target[rows])
                preference[rows] += (without - with_it) / len(LEVELS)
                self.held_out.count(2 * len(rows))
        return preference

    def _error(self, x_t: Tensor, t: float, cond: Any, target: Tensor) -> Tensor:
        """The teacher's mean squared error [b] at one noise level."""
        sigma = torch.full((len(x_t),), t, device=self.model.device)
        velocity = self.model.velocity(x_t.to(self.model.device), sigma, cond, adapters=False)
        return (velocity.float().cpu() - target).square().mean((1, 2, 3))


@dataclass(frozen=True)
class Verdict:
    """What a look has seen: how many pictures still show the concept, and what became of the neighbours'.

    Attributes:
        shown: pictures that still show the concept.
        readable: pictures that can be read; of the others the original model does not draw the concept.
        pictures: pictures that were drawn.
        reading: mean reading of the readable pictures; 1 is the original model, 0 the neutral sentence.
        kept: neighbours' pictures that still show the neighbour.
        neighbours: neighbours' pictures that can be read.
        drift: |x_s - x| / |x| over the neighbours' pictures.
    """

    shown: int
    readable: int
    pictures: int
    reading: float
    kept: int
    neighbours: int
    drift: float

    @classmethod
    def of(cls, concept: "PictureReader", x_s: Tensor, neighbours: "PictureReader", kept_x_s: Tensor) -> "Verdict":
        """The verdict on the student's pictures of the concept and of its neighbours."""
        reading = concept.read(x_s)
        kept = neighbours.read(kept_x_s)
        readable = concept.readable
        change = kept_x_s - neighbours.x_c
        return cls(
            shown=int((reading.shows() & readable).sum()),
            readable=int(readable.sum()),
            pictures=len(readable),
            reading=float(reading.mean()[readable].mean()),
            kept=int((kept.shows() & neighbours.readable).sum()),
            neighbours=int(neighbours.readable.sum()),
            drift=float(change.norm() / neighbours.x_c.norm()),
        )

    @property
    def gone(self) -> bool:
        """Whether no picture that can be read shows the concept."""
        return self.readable > 0 and self.shown == 0

    def scores(self) -> dict[str, float]:
        """The look as points of the run's curves; what could not be read has none."""
        scores = {"drift": self.drift}
        if self.readable:
            scores["shown"] = self.shown / self.readable
            scores["reading"] = self.reading
        if self.neighbours:
            scores["kept"] = self.kept / self.neighbours
        return scores

    def text(self) -> str:
        """One or two sentences for the user, with a 95 % interval."""
        if not self.readable:
            return (
                f"nothing can be said: in none of {self.pictures} held-out pictures does the original model draw the "
                "concept so that it can be told from the neutral sentence"
            )
        low, high = wilson(self.shown, self.readable)
        lead = "gone" if self.gone else "not gone"
        text = f"{lead}: {self.shown} of {self.readable} held-out pictures still show it ({low:.0%} to {high:.0%})"
        if self.readable < self.pictures:
            text += f"; {self.pictures - self.readable} more could not be read"
        if self.neighbours:
            text += f"; {self.kept} of {self.neighbours} neighbours are kept"
        return text + f", others moved by {self.drift:.0%}"


def look_forwards(pictures: int, steps: int) -> tuple[int, int]:
    """Forwards of the model, one a picture and condition: once for the teacher, and for each look at the student."""
    read = 2 * len(LEVELS)
    return 2 * pictures * (steps + read), pictures * (steps + read)
