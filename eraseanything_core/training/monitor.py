"""Looks at a run from pictures that it does not train on, always from the same noise.

Three scores, each read by the frozen model; see `gone`:

- shown: the share of the concept's held-out pictures that still show it.
- kept: the share of the neighbours' pictures that still show the neighbour. The run stops when nothing is shown and
  the neighbours are kept.
- drift: |x_s - x| / |x| over the neighbours' pictures, student against teacher.

`reading` is the mean of all readings of the concept: 1 for the un-erased model, 0 where the pictures are those of the
neutral sentences. It moves before `shown` does.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..concepts import prompts
from ..protocols import ErasableModel
from .config import EraseConfig
from .gone import Conds, HeldOut, PictureReader, Verdict, look_forwards
from .plan import Plan, conds, generator
from .trajectories import run_sigmas
from .trajectory_cache import Report

CONCEPTS = 0  # the two sets of held-out sentences
NEIGHBOURS = 1
LOOK_PIXELS = 256  # the longest side of a look's pictures
GONE_LOOKS = 3  # looks in a row without the concept that end a run
KEPT = 0.75  # share of the neighbours that have to be kept as well
# How the learning rates follow the looks.
# Mean reading above which the rates have done too little: they are doubled, as they are while a picture shows the
# concept. It is low because a first look may find the concept gone that comes back once the rest is held.
UNMOVED = 0.3
DAMAGED = 1.0  # drift above which they have done too much: they are halved
HIGHEST_FACTOR = 2.0
LEFT_OUT = "{}"  # the neutral text where nothing stands in the concept's place
# How eta follows them: it is doubled after each look but the first that still sees the concept in so many pictures, or
# whose mean reading is above `UNMOVED`.
STILL_SHOWN = 0.4
HIGHEST_ETA = 2.0
Scores = dict[str, list[float]]  # `pair` and one list a score


def stop_reason(config: EraseConfig, scores: Scores) -> str:
    """Why a run stops before its last pair; empty when it goes on."""
    if not scores.get("pair"):
        return ""
    pair = scores["pair"][-1]
    drift = scores["drift"][-1]
    # The drift first: a model that is damaged must not pass for one from which the concept is gone.
    if config.stop_drift and drift > config.stop_drift:
        return f"stopped after step {pair}: the drift of {drift:.3f} is above {config.stop_drift:g}"
    if config.stop_when_gone and is_gone(scores):
        return f"stopped after step {pair}: no picture showed the concept in {GONE_LOOKS} looks, neighbours are kept"
    return ""


def is_gone(scores: Scores) -> bool:
    """Whether the last three looks saw the concept in none of its pictures, and the last one most of its neighbours.

    One look is not enough: a concept may go before its neighbours have come back to where they were.
    """
    # A concept that the original model does not draw has no share: nothing can be seen to go.
    gone = scores.get("shown", [])[-GONE_LOOKS:] == [0.0] * GONE_LOOKS
    return gone and ("kept" not in scores or scores["kept"][-1] >= KEPT)


def first_factor(config: EraseConfig) -> float:
    """What the learning rates are multiplied by until the first look.

    Where a word is only left out, as of an attribute, nearly every first look found that the rates were too low.
    """
    return HIGHEST_FACTOR if config.adapt_rate and config.neutral == LEFT_OUT else 1.0


def look_factors(config: EraseConfig, scores: Scores) -> list[float]:
    """What the learning rates are multiplied by after each look.

    It follows from the looks alone, so a resumed run repeats the one that was never stopped.
    """
    factor = first_factor(config)
    factors = []
    looks = zip(scores.get("reading", []), scores.get("shown", []), scores.get("drift", []), strict=False)
    for reading, shown, drift in looks:
        if drift > DAMAGED:
            factor /= 2
        elif shown or reading > UNMOVED:
            factor = min(2 * factor, HIGHEST_FACTOR)
        factors.append(factor)
    return factors


def look_factor(config: EraseConfig, scores: Scores) -> float:
    """What the learning rates of the next pair are multiplied by."""
    factors = look_factors(config, scores) if config.adapt_rate else []
    return factors[-1] if factors else first_factor(config)


def look_eta(config: EraseConfig, scores: Scores) -> float:
    """Eta of the next pair: where higher rates alone leave the concept in its pictures, training pushes further."""
    if not config.adapt_rate:
        return config.eta
    looks = list(zip(scores.get("shown", []), scores.get("reading", []), strict=False))[1:]
    stuck = [look for look, (shown, reading) in enumerate(looks) if shown >= STILL_SHOWN or reading > UNMOVED]
    return max(config.eta, min(HIGHEST_ETA, config.eta * 2 ** len(stuck)))


def rate_notes(config: EraseConfig, scores: Scores) -> list[str]:
    """A line for each look after which the learning rates were changed, and one for eta."""
    notes = []
    before = first_factor(config)
    if before != 1.0:
        notes.append(f"the learning rates began at {before:g} times those set: nothing stands in the concept's place")
    factors = look_factors(config, scores) if config.adapt_rate else []
    for pair, factor in zip(scores.get("pair", []), factors, strict=False):
        # After the last pair nothing follows that a rate could change.
        if factor != before and pair < config.steps:
            why = "the pictures had hardly changed" if factor > before else "the neighbours' pictures were others"
            notes.append(f"from step {pair + 1:.0f} on the learning rates were {factor:g} times those set: {why}")
        before = factor
    eta = look_eta(config, scores)
    if eta != config.eta:
        notes.append(
            f"eta ended at {eta:g} instead of {config.eta:g}: higher rates alone left the concept in its pictures"
        )
    return notes


def bounds(config: EraseConfig) -> dict[str, float]:
    """The scores at which the run stops, by name; only those that are set."""
    limits = {}
    if config.stop_when_gone:
        limits["shown"] = 0.0
    if config.stop_drift:
        limits["drift"] = config.stop_drift
    return limits


class Monitor:
    """The teacher's pictures, drawn once, and looks at the student's.

    Args:
        model: student and teacher; its LoRA is attached.
        plan: the run's, with monitoring on.
        report: called with the forwards for the teacher's pictures that are done, and how many there are.

    Attributes:
        concept: reads pictures of the held-out sentences.
        neighbours: reads pictures of the held-out sentences with words that must stay.
        verdict: of the last look; None before the first.
        previews: latents [3, c, h, w] of the last look: concept before, concept now, neighbour now.
    """

    def __init__(self, model: ErasableModel, plan: Plan, report: Report | None = None) -> None:
        pictures = len(plan.monitor_sentences) + len(plan.monitor_retained)
        count = Tally(report, look_forwards(pictures, plan.config.look_steps)[0]).add
        self.concept = PictureReader(model, held_out(model, plan, plan.monitor_sentences, CONCEPTS, count))
        self.neighbours = PictureReader(model, held_out(model, plan, plan.monitor_retained, NEIGHBOURS, count))
        self.verdict: Verdict | None = None
        self.previews: Tensor | None = None

    def look(self) -> dict[str, float]:
        """The scores of the student as it is now."""
        x_s = self.concept.student()
        kept_x_s = self.neighbours.student()
        self.verdict = Verdict.of(self.concept, x_s, self.neighbours, kept_x_s)
        self.previews = torch.stack((self.concept.x_c[0], x_s[0], kept_x_s[0]))
        return self.verdict.scores()


class Tally:
    """Adds up forwards and reports them.

    Args:
        report: called with the forwards that are done, and how many there are; None says nothing.
        total: how many there are at most.
    """

    def __init__(self, report: Report | None, total: int) -> None:
        self.report = report
        self.total = total
        self.done = 0

    def add(self, forwards: int) -> None:
        """So many more are done; what comes after the last one belongs to no preparation."""
        if self.report and self.done < self.total:
            self.done = min(self.total, self.done + forwards)
            self.report(self.done, self.total)

    def finish(self) -> None:
        """Fewer were needed than there could be."""
        self.add(self.total - self.done)


def held_out(
    model: ErasableModel,
    plan: Plan,
    sentences: Sequence[prompts.Sentence],
    number: int,
    count: Callable[[int], None] = lambda forwards: None,
) -> HeldOut:
    """Held-out sentences with their noise.

    Args:
        model, plan: see `Monitor`.
        sentences: the first ones of the plan's.
        number: of the set, `CONCEPTS` or `NEIGHBOURS`; each has a noise of its own.
        count: see `HeldOut`.
    """
    config = plan.config
    height = look_side(config.height) // model.downscale
    width = look_side(config.width) // model.downscale
    # The complement of the seed: no draw here changes the training's own.
    rng = generator(~config.seed, number)
    noise = torch.randn(len(sentences), model.channels, height, width, generator=rng)
    sigmas = run_sigmas(model, dataclasses.replace(config, sampling_steps=config.look_steps))

    concept = [sentence.teacher_concept() for sentence in sentences]
    neutral = [sentence.neutral for sentence in sentences]

    def conds_of(asked: Sequence[prompts.Prompt]) -> Conds:
        return lambda model, rows: conds(model, plan, [asked[i] for i in rows])

    def known(asked: Sequence[prompts.Prompt]) -> dict[int, Tensor]:
        return {i: plan.drawn[each.text, i] for i, each in enumerate(asked) if (each.text, i) in plan.drawn}

    return HeldOut(
        asked=conds_of([sentence.concept for sentence in sentences]),
        concept=conds_of(concept),
        neutral=conds_of(neutral),
        noise=noise,
        sigmas=sigmas,
        seed=config.seed,
        count=count,
        # The second set has another noise.
        known_concept=known(concept) if number == CONCEPTS else {},
        known_neutral=known(neutral) if number == CONCEPTS else {},
    )


def look_side(pixels: int) -> int:
    """A side of a look's pictures, in pixels.

    Each side is limited on its own, so a look at a wide picture may be square.
    """
    return min(LOOK_PIXELS, pixels)
