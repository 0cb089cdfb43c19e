"""Everything that a run asks of the teacher, computed before the pairs that need it.

An epoch is `refresh_every` pairs on one set of trajectories. Its points are known before any pair runs, because all
chance comes from the seed and the pair's number, and with `importance_sampling` from the first answers. So the
teacher answers in advance, once a point and in large batches, and a pair runs the student alone. This leaves the
objective as it is. Five settings do change it:

- With `importance_sampling` points count by how often they are drawn; see `importance`.
- With fewer trajectories than the run has pairs, pairs share sentences and points.
- `rsc_samples` limits the points of the reverse self-contrastive loss further.
- `on_policy_share` takes some x_t from the student's walk instead of the teacher's.
- With `walk` "neutral" they lie on trajectories of the neutral prompts, and v is the teacher's for these. With
  `anchor_pictures` they lie on straight lines to these pictures instead.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..concepts import prompts
from ..protocols import ErasableModel
from . import trajectories
from .config import EraseConfig
from .draws import Draw, Point, draw_epoch, missing_targets
from .features import teacher_features
from .importance import erase_chances
from .plan import TEACHER_BATCHES, Plan, conds, generator
from .trajectories import Trajectories, at_points_of, highest_times, latent_shape, noisy_walk, own_times, run_sigmas

Walk = Iterator[tuple[Tensor, Tensor | None]]  # (x_t, v) before each step, and (x_0, None) at the end
Report = Callable[[int, int], None]  # (evaluations of the teacher that are done, how many an epoch takes)


@dataclass(frozen=True)
class Epoch:
    """The trajectories of `refresh_every` pairs, and what each pair takes from them.

    Attributes:
        concept: trajectories of sentences that hold the concept.
        retain: trajectories of retained prompts; None when no loss uses them.
        draws: a pair's number to its draws, `gradient_accumulation_steps` of them.
    """

    concept: Trajectories
    retain: Trajectories | None
    draws: dict[int, list[Draw]]

    def tensors(self) -> dict[str, Tensor]:
        """What cannot be drawn again from the seed, by name: `concept.x`, `retain.v` and so on."""
        tensors = {f"concept.{name}": array for name, array in self.concept.arrays().items()}
        if self.retain:
            tensors |= {f"retain.{name}": array for name, array in self.retain.arrays().items()}
        return tensors


def student_rows(config: EraseConfig, number: int, rows: int) -> int:
    """How many of an epoch's first `rows` trajectories the student walks; none in the first, where it is the teacher.

    Args:
        config: the run's settings.
        number: of the epoch.
        rows: trajectories of one kind.
    """
    return config.student_rows(rows) if number else 0


class TrajectoryCache:
    """Computes an epoch's trajectories and the teacher's answers on them, within one bound of memory.

    Args:
        model: student and teacher in one.
        plan: the run's.
        report: called after every forward of an epoch's preparation; one evaluation is one sequence through the model.

    Attributes:
        sigmas: [s + 1], the times of the run's sampler.
        erase_steps: those at which the erasing losses may draw their points, on one trajectory at least.
        allocated: bytes of the present epoch's arrays, which share the bound `cache_gib`.
    """

    def __init__(self, model: ErasableModel, plan: Plan, report: Report | None = None) -> None:
        self.model = model
        self.plan = plan
        self.config = plan.config
        self.pictures = plan.pictures
        assert bool(plan.config.anchor_pictures) == (self.pictures is not None), "pictures belong to their hash"
        self.sigmas = run_sigmas(model, plan.config)
        self.erase_steps = (highest_times(model, plan.config)[:-1] >= plan.config.erase_time).nonzero()[:, 0].tolist()
        self.allocated = 0
        self.report = report
        self.done = 0
        self.total = 0

    def epoch(self, number: int, stored: dict[str, Tensor] | None = None, covered: int = 0) -> Epoch:
        """The trajectories, draws and teacher's answers of an epoch.

        The caller lets go of the epoch before, whose arrays this one's take the place of.

        Args:
            number: of the epoch, which begins at pair `number * refresh_every`.
            stored: what `Epoch.tensors` gave for this epoch in a run that was stopped.
            covered: the first pair that has no answers in `stored`; the run may have had fewer steps then.

        Raises:
            OSError: the disk has no room for the arrays beyond the bound of memory.
        """
        self.allocated = 0
        if self.config.importance_sampling:
            return self._epoch_by_importance(number, stored, covered)
        # All points of the epoch, before any pair runs: so the teacher can answer in large batches.
        draws = self._draws(number)
        # Each loss has points of its own, and its answers are computed there alone, not along whole walks.
        erase_points = missing_targets(draws, "erase", covered)
        retain_points = missing_targets(draws, "retain", covered)
        rsc_points = missing_targets(draws, "rsc", covered)
        self.done = 0
        self.total = self._evaluations(number, not stored, erase_points, retain_points, rsc_points)

        concept, retain = self._restore(number, stored) if stored else self._walk_epoch(number)
        concept = self._with_answers(concept, number, erase_points)
        concept = self._with_word_features(concept, rsc_points)
        return Epoch(concept, self._with_retained_answers(retain, number, retain_points), draws)

    def _epoch_by_importance(self, number: int, stored: dict[str, Tensor] | None, covered: int) -> Epoch:
        """The same where the answers at all of the concept's points decide which of them are drawn; see `epoch`."""
        sentences, retained = self._sources(number)
        # A stored epoch has them all.
        erase_points = [] if stored else [(row, step) for row in range(len(sentences)) for step in self.erase_steps]
        self.done = 0
        self.total = self._evaluations(number, not stored, erase_points, [], [])
        concept, retain = self._restore(number, stored) if stored else self._walk_epoch(number)
        concept = self._with_answers(concept, number, erase_points)
        draws = draw_epoch(self.config, concept, retain, number, erase_chances(concept, self.erase_steps))
        retain_points = missing_targets(draws, "retain", covered)
        rsc_points = missing_targets(draws, "rsc", covered)
        # These are known only now: the bar gets longer once.
        self.total += self._evaluations(number, False, [], retain_points, rsc_points)
        concept = self._with_word_features(concept, rsc_points)
        return Epoch(concept, self._with_retained_answers(retain, number, retain_points), draws)

    def times(self, number: int, rows: int) -> Tensor:
        """The times of an epoch's trajectories: [s + 1], or [rows, s + 1] with `own_times`."""
        if not self.config.own_times:
            return self.sigmas
        # From the epoch's number alone, for a run that goes on.
        return own_times(self.model, self.config, rows, generator(self.config.seed, -1 - number - 2**40))

    def walk(self, sources: Sequence[Any], number: int, rng: torch.Generator, student_count: int = 0) -> Trajectories:
        """New trajectories, a few at a time.

        Args:
            sources: a prompt, or a sentence that stands for the one of its prompts that is walked, for each trajectory.
            number: of the epoch.
            rng: draws the noise.
            student_count: so many of the first trajectories are the student's, the others the teacher's.
        """
        rows = len(sources)
        sigmas = self.times(number, rows)
        shape = latent_shape(self.model, self.config)
        # On the CPU and all at once: the draw depends neither on the device nor on the batch size.
        noise = torch.randn(rows, *shape, generator=rng)
        draws = None
        if self.config.walk_noise:
            draws = torch.randn(rows, len(self.sigmas) - 1, *shape, generator=rng)
        x = self.allocate((rows, len(self.sigmas), *shape))
        v = self.allocate((rows, len(self.sigmas) - 1, *shape))
        walked = sigmas[..., : len(self._walked_times())]
        # Student and teacher never share a batch, for one forward has its adapters either on or off.
        for part in (*self._batches(range(student_count)), *self._batches(range(student_count, rows))):
            cond = conds(self.model, self.plan, [self._walked(sources[i]) for i in part])
            times = walked if walked.ndim == 1 else walked[part].T
            if draws is None:
                walk = self.model.trajectory(cond, noise[part], times, adapters=part[0] < student_count)
            else:
                walk = noisy_walk(self.model, cond, noise[part], times, draws[part], self.config.walk_noise)
            steps = self._counted(walk, len(part))
            # Rows of a part are neighbours. A slice of them is a view, which `collect` can write through.
            inside = slice(part[0], part[-1] + 1)
            trajectories.collect(steps, x[inside], v[inside])
        return Trajectories(list(sources), x, v, sigmas)

    def _walked_times(self) -> Tensor:
        """The times of a walk; without the last step where nothing asks for the teacher's answer there.

        Retained prompts need x_t of the last step, which is where such a walk ends.
        """
        config = self.config
        by_importance = config.importance_sampling and config.shared_points and not config.rsc_weight
        last = len(self.sigmas) - 2
        return self.sigmas[:-1] if by_importance and last not in self.erase_steps else self.sigmas

    def fill_velocities(
        self, walks: Trajectories, points: Sequence[Point], prompt_of: Callable[[Any], prompts.Prompt], out: Tensor
    ) -> None:
        """Computes the teacher's velocity at points.

        Args:
            walks: the trajectories.
            points: (trajectory, step) pairs.
            prompt_of: a trajectory's source to the prompt that the teacher gets.
            out: [p, s, c, h, w]; the entries at the points are replaced.
        """
        for part in self._batches(points):
            row, step = torch.tensor(part).T
            x_t, sigma, _ = walks.at(row, step, self.model.device)
            cond = conds(self.model, self.plan, [prompt_of(walks.sources[i]) for i in row])
            # The cache is float32 on the CPU, whatever the model computes in.
            out[row, step] = self.model.velocity(x_t, sigma, cond, adapters=False).to(out)
            self._count(len(part))

    def allocate(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros in memory or, beyond the bound, on disk; see `trajectories.allocate`."""
        array = trajectories.allocate(shape, self.config.cache_gib, self.allocated)
        self.allocated += array.nbytes
        return array

    def _sources(self, number: int) -> tuple[list[prompts.Sentence], list[prompts.Prompt]]:
        """What the trajectories of an epoch are made from: sentences and retained prompts, each list in turn."""
        concept = _in_turn(self.plan.sentences, number, self.config.cached_trajectories)
        retain = _in_turn(self.plan.retained, number, self.config.retained_rows())
        return concept, retain

    def _draws(self, number: int) -> dict[int, list[Draw]]:
        """The draws of an epoch, before its trajectories are walked: only their number and times matter."""
        nothing = torch.empty(0)
        sentences, retained = self._sources(number)
        concept = Trajectories(sentences, nothing, nothing, self.times(number, len(sentences)))
        retain = Trajectories(retained, nothing, nothing, self.times(number, len(retained))) if retained else None
        return draw_epoch(self.config, concept, retain, number)

    def _evaluations(
        self,
        number: int,
        walks: bool,
        erase_points: Sequence[Point],
        retain_points: Sequence[Point],
        rsc_points: Sequence[Point],
    ) -> int:
        """How many sequences the model is given in an epoch.

        Args:
            number: of the epoch.
            walks: whether its trajectories are walked, and not restored.
            erase_points: of the erasing loss, which also needs the neutral prompt's answer at each.
            retain_points: of the preserving loss.
            rsc_points: of the contrastive loss, which needs each word's answer at each.
        """
        sentences, retained = self._sources(number)
        steps = len(self._walked_times()) - 1
        walked = 0 if self.pictures is not None else len(sentences)
        walked += 0 if self.config.shared_points else len(retained)
        total = steps * walked if walks else 0
        total += sum(row < self._concept_asked_anew(number, len(sentences)) for row, _ in erase_points)
        total += sum(row < self._retain_asked_anew(number, len(retained)) for row, _ in retain_points)
        words = len(sentences[0].irrelevant) + (sentences[0].synonym is not None)
        asked = 0 if self.config.walk == "neutral" else len(erase_points)
        return total + asked + words * len(rsc_points)

    def _concept_asked_anew(self, number: int, rows: int) -> int:
        """On how many of the concept's first trajectories the teacher has not been asked; on pictures' it never was."""
        return rows if self.pictures is not None else student_rows(self.config, number, rows)

    def _retain_asked_anew(self, number: int, rows: int) -> int:
        """How many of the first retained prompts the teacher has not walked with itself."""
        return rows if self.config.shared_points else student_rows(self.config, number, rows)

    def _counted(self, walk: Walk, rows: int) -> Walk:
        """The same walk of so many trajectories; each of its evaluations is counted."""
        for x_t, v_t in walk:
            yield x_t, v_t
            if v_t is not None:
                self._count(rows)

    def _count(self, evaluations: int) -> None:
        self.done += evaluations
        if self.report:
            self.report(self.done, self.total)

    def _walk_epoch(self, number: int) -> tuple[Trajectories, Trajectories | None]:
        """New trajectories of sentences that hold the concept, and of retained prompts."""
        # Pairs draw from numbers from 0 on; the negative ones are the epochs'.
        rng = generator(self.config.seed, -1 - number)
        sentences, retained = self._sources(number)
        if self.pictures is None:
            concept = self.walk(sentences, number, rng, student_rows(self.config, number, len(sentences)))
        else:
            concept = self._lines(self.pictures, number, sentences, rng)
        if not retained:
            return concept, None
        if self.config.shared_points:
            return concept, at_points_of(concept, retained, self.allocate((len(retained), *concept.v.shape[1:])))
        return concept, self.walk(retained, number, rng, student_rows(self.config, number, len(retained)))

    def _lines(
        self, pictures: Tensor, number: int, sentences: list[prompts.Sentence], rng: torch.Generator
    ) -> Trajectories:
        """Straight lines from new noise to the user's pictures in turn; the teacher is asked on them afterwards."""
        rows = _in_turn(range(len(pictures)), number, len(sentences))
        shape = latent_shape(self.model, self.config)
        noise = self.model.noise_scale * torch.randn(len(rows), *shape, generator=rng)
        x = self.allocate((len(rows), len(self.sigmas), *shape))
        sigmas = self.times(number, len(rows))
        x.copy_(trajectories.lines(pictures[rows], noise, sigmas))
        v = self.allocate((len(rows), len(self.sigmas) - 1, *shape))
        return Trajectories(sentences, x, v, sigmas)

    def _restore(self, number: int, stored: dict[str, Tensor]) -> tuple[Trajectories, Trajectories | None]:
        """The trajectories of a stopped run."""
        arrays: dict[str, dict[str, Tensor]] = {"concept": {}, "retain": {}}
        for name, tensor in stored.items():
            kind, _, attribute = name.partition(".")
            # Copied: the stored tensors map a file, which is replaced while the epoch lasts.
            arrays[kind][attribute] = self.allocate(tuple(tensor.shape)).copy_(tensor)
        sentences, retained = self._sources(number)
        concept = Trajectories(sentences, sigmas=self.times(number, len(sentences)), **arrays["concept"])
        if not retained:
            return concept, None
        if self.config.shared_points:
            return concept, at_points_of(concept, retained, arrays["retain"]["v"])
        return concept, Trajectories(retained, sigmas=self.times(number, len(retained)), **arrays["retain"])

    def _with_answers(self, concept: Trajectories, number: int, points: Sequence[Point]) -> Trajectories:
        """The teacher's velocities at the concept's points, for the sentence and for its neutral prompt."""
        student_count = self._concept_asked_anew(number, len(concept.sources))
        if self.config.walk == "neutral":  # v is the neutral prompt's, and no other answer is needed
            return self._with_teacher(concept, points, student_count, self._walked)
        # The teacher's own walk has its velocity for the sentence, which is not the one that names an unasked look.
        asked_anew = len(concept.sources) if self.config.unasked else student_count
        concept = self._with_teacher(concept, points, asked_anew, lambda sentence: sentence.teacher_concept())
        return self._with_neutral(concept, points)

    def _with_retained_answers(
        self, retain: Trajectories | None, number: int, points: Sequence[Point]
    ) -> Trajectories | None:
        """The teacher's velocities for retained prompts, where they are asked."""
        if not retain:
            return None
        asked_anew = self._retain_asked_anew(number, len(retain.sources))
        return self._with_teacher(retain, points, asked_anew, lambda prompt: prompt)

    def _with_teacher(
        self,
        walks: Trajectories,
        points: Sequence[Point],
        student_count: int,
        prompt_of: Callable[[Any], prompts.Prompt],
    ) -> Trajectories:
        """The teacher's own velocity where the student walked; elsewhere the walk itself has left it."""
        student_points = [(row, step) for row, step in points if row < student_count]
        self.fill_velocities(walks, student_points, prompt_of, walks.v)
        return walks

    def _with_neutral(self, concept: Trajectories, points: Sequence[Point]) -> Trajectories:
        """The teacher's velocity for each sentence's neutral prompt."""
        neutral = concept.neutral
        if neutral is None:
            neutral = self.allocate(tuple(concept.v.shape))
        self.fill_velocities(concept, points, lambda sentence: sentence.neutral, neutral)
        return replace(concept, neutral=neutral)

    def _with_word_features(self, concept: Trajectories, points: Sequence[Point]) -> Trajectories:
        """The teacher's attention features of synonym and irrelevant words; see `features.teacher_features`."""
        word_features = concept.word_features
        # Each point is 1 + K sequences for the teacher, so the batch is smaller than that of the velocities.
        for part in _split(points, self.config.batch_size):
            row, step = torch.tensor(part).T
            x_t, sigma, _ = concept.at(row, step, self.model.device)
            sentences = [concept.sources[i] for i in row]
            features = teacher_features(self.model, self.plan, sentences, x_t, sigma)
            if word_features is None:
                # How many words and queries there are is known from the first answer on.
                word_features = self.allocate((*concept.v.shape[:2], *features.shape[1:]))
            word_features[row, step] = features.to(word_features)
            self._count(len(part) * features.shape[1])
        return replace(concept, word_features=word_features)

    def _walked(self, source: prompts.Sentence | prompts.Prompt) -> prompts.Prompt:
        """The prompt of a trajectory."""
        if isinstance(source, prompts.Prompt):
            return source
        return source.neutral if self.config.walk == "neutral" else source.concept

    def _batches(self, items: Iterable[Any]) -> Iterator[list[Any]]:
        """Items in lists as long as the teacher's batch."""
        return _split(list(items), TEACHER_BATCHES * self.config.batch_size)


def _split(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _in_turn(sources: Sequence[Any], number: int, rows: int) -> list[Any]:
    """The sources of epoch `number` when every epoch takes the next `rows` of them, from the start again at the end."""
    # Modulo: a run with fewer sentences than trajectories uses them again.
    return [sources[(number * rows + i) % len(sources)] for i in range(rows)]
