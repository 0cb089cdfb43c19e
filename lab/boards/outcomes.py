"""Figures of boards from outcomes, with their intervals, and sentences on what EraseAnything does not beat."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from eraseanything_core.evaluation.metrics import clustered_bootstrap, h_c, h_o
from eraseanything_core.intervals import wilson
from lab.boards.board import OURS, REFERENCES, Figure

Outcomes = dict[str, list[list[list[bool]]]]  # {cell: [concept][prompt][training]}


def means(concepts: list[list[list[bool]]]) -> list[float]:
    """Of every prompt, over the trainings: those see the same noise, so they are no further pictures."""
    return [float(np.mean(seeds)) for prompts in concepts for seeds in prompts]


def figure(shares: list[float]) -> Figure:
    """A rate over prompts, Wilson's interval.

    Raises:
        ValueError: if there is nothing to take a rate of.
    """
    low, high = wilson(sum(shares), len(shares))
    return Figure(round(float(np.mean(shares)), 4), round(low, 4), round(high, 4), len(shares))


def share(concepts: list[list[list[bool]]]) -> Figure:
    """The rate over the prompts of all concepts."""
    return figure(means(concepts))


def combined(outcomes: Outcomes, statistic) -> Figure:
    """A statistic of macro-averaged rates; concepts, prompts and trainings are drawn again."""
    interval = clustered_bootstrap(outcomes, statistic)
    value, low, high = (round(interval[part], 6) for part in ("value", "low", "high"))
    return Figure(value, low, high, sum(map(len, (p for c in outcomes.values() for p in c))))


def overall(rates) -> np.ndarray:
    """H_o of the rates."""
    return h_o(rates["acc_e"], rates["acc_ir"], rates["acc_g"])


def balance(rates) -> np.ndarray:
    """H_c of the rates."""
    return h_c(rates["acc_e"], rates["acc_ir"])


def beside(*cells: list) -> list:
    """Outcomes of the same prompts and seeds as tuples, so that they are drawn together."""
    return [
        [list(zip(*seeds, strict=True)) for seeds in zip(*prompts, strict=True)] for prompts in zip(*cells, strict=True)
    ]


def gap(ours: Outcomes, theirs: Outcomes, statistic) -> Figure:
    """statistic(ours) - statistic(theirs), drawn together: the prompts and seeds are the same."""
    paired = {name: beside(ours[name], theirs[name]) for name in ours}
    sides = lambda rates, side: {name: r[..., side] for name, r in rates.items()}  # noqa: E731
    return combined(paired, lambda rates: statistic(sides(rates, 0)) - statistic(sides(rates, 1)))


def lost(outcomes: dict[str, Outcomes], statistic, name: str, where: str = "", others: Sequence = ()) -> Iterator[str]:
    """Sentences on the reference rows, and on `others`, that EraseAnything is not measured to beat."""
    for row in (*REFERENCES, *others):
        won = gap(outcomes[OURS], outcomes[row], statistic)
        if won.low <= 0:
            yield f"{name}{where}: {OURS} minus {row!r} is {won.text()}"


def obeyed(outcomes: dict[str, Outcomes]) -> dict[str, Outcomes]:
    """The outcomes of every row, of the prompts that the un-erased model obeys; a concept without any is left out."""
    base = outcomes["un-erased"]

    def counted(name: str, concepts: list) -> list:
        pairs = [zip(mine, before, strict=True) for mine, before in zip(concepts, base[name], strict=True)]
        left = [[seeds for seeds, before in prompts if any(before)] for prompts in pairs]
        return [prompts for prompts in left if prompts]

    return {row: {name: counted(name, concepts) for name, concepts in own.items()} for row, own in outcomes.items()}


def by_concept(concepts: tuple[str, ...], own: Outcomes, base: Outcomes) -> dict[str, dict[str, float]]:
    """The rate of every concept, of the prompts that the un-erased model obeys; none of those, no rate."""
    rates: dict[str, dict[str, float]] = {name: {} for name in own}
    for place, concept in enumerate(concepts):
        one = {row: {name: [cell[name][place]] for name in own} for row, cell in (("un-erased", base), (OURS, own))}
        for name, left in obeyed(one)[OURS].items():
            rates[name] |= {concept: round(float(np.mean(means(left))), 4)} if left else {}
    return rates


def unbeaten(outcomes: dict[str, Outcomes], others: Sequence = ()) -> tuple[str, ...]:
    """What `lost` says of each column of pictures that shall not show the concept."""
    return tuple(
        sentence
        for column in outcomes[OURS]
        for sentence in lost(
            {row: {column: own[column]} for row, own in outcomes.items()},
            lambda rates: 1 - next(iter(rates.values())),
            "share not shown",
            f", {column}",
            others,
        )
    )


def crossing(rates: np.ndarray, steps: tuple[int, ...], within: float | None = None) -> np.ndarray:
    """How much of the longest relearning brings half of what was erased back; 1: not even all of it.

    Args:
        rates: [..., 1 + steps], the un-erased model's and those after each number of steps.
        steps: from 0 on.
        within: where between the two checks it lies, 0 to 1; None takes a straight line between them.
    """
    base = rates[..., 0]
    after = rates[..., 1:]
    half = (base + after[..., 0]) / 2
    place = np.ones_like(half)
    for i in reversed(range(1, len(steps))):
        low = after[..., i - 1]
        high = after[..., i]
        risen = (half - low) / np.where(high > low, high - low, 1) if within is None else within
        crossed = (steps[i - 1] + risen * (steps[i] - steps[i - 1])) / steps[-1]
        place = np.where((low < half) & (half <= high), crossed, place)
    return np.where(after[..., 0] >= half, 0, place)


def bracketed(cell: list, statistic) -> Figure:
    """A statistic of `within`; its interval also holds that nobody looked between two checks."""
    line, least, most = (
        combined({"": cell}, lambda rates, within=within: statistic(rates[""], within)) for within in (None, 0, 1)
    )
    return replace(line, low=least.low, high=most.high)


def half_back(base: list, after: list[list], steps: tuple[int, ...]) -> Figure:
    """`crossing` of the outcomes of the un-erased model and after each number of steps."""
    return bracketed(beside(base, *after), lambda rates, within: crossing(rates, steps, within))


def shallower(base: list, after: dict[str, list[list]], steps: tuple[int, ...]) -> Iterator[str]:
    """Sentences on the reference rows of which half is not measured to be back sooner than of EraseAnything."""
    n = 1 + len(steps)
    for row in REFERENCES:
        won = bracketed(
            beside(base, *after[OURS], base, *after[row]),
            lambda rates, within: (
                crossing(rates[..., :n], steps, within)
                - crossing(rates[..., n:], steps, None if within is None else 1 - within)
            ),
        )
        if won.low <= 0:
            yield f"half back: {OURS} minus {row!r} is {won.text()}"
