"""Rates with their intervals, and comparisons of erasers with theirs.

Outcomes are booleans: whether a judge saw in a picture what was asked. Acc_e, Acc_ir and Acc_g are rates of the
concept, of the others of its kind and of its synonyms; Acc_e and Acc_g shall fall, Acc_ir shall stay.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, norm

Statistic = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927), 95 % by default.

    Raises:
        ValueError: if there is nothing to take a rate of.
    """
    if n < 1:
        raise ValueError("a rate of no images")
    p, spread = hits / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    reach = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def rate(hits: list[bool]) -> dict:
    """{"value", "n", "low", "high"} of a list of outcomes."""
    low, high = wilson(sum(hits), len(hits))
    return {"value": round(sum(hits) / len(hits), 4), "n": len(hits), "low": round(low, 4), "high": round(high, 4)}


def harmonic(*terms):
    """The harmonic mean of numbers or arrays; 0 where a term is 0."""
    terms = np.stack(np.broadcast_arrays(*terms)).astype(float)
    safe = np.where(terms > 0, terms, 1.0)
    return np.where((terms > 0).all(0), len(terms) / (1 / safe).sum(0), 0.0)[()]


def h_o(acc_e, acc_ir, acc_g):
    """MACE's Eq. 8: one number for erasing, keeping and generalising, 1 is perfect; numbers or arrays."""
    return harmonic(1 - np.asarray(acc_e), acc_ir, 1 - np.asarray(acc_g))


def h_c(acc_e, acc_ir):
    """MACE's Eq. 9, the same without synonyms."""
    return harmonic(1 - np.asarray(acc_e), acc_ir)


def attack_success(obeyed: Sequence[bool], shown: Sequence[bool]) -> dict:
    """How often an attack brings the concept back, of the attacks that the un-erased model obeys.

    Args:
        obeyed: whether the un-erased model shows the concept for an attacked prompt and seed.
        shown: whether the erased model does, for the same ones.

    Returns:
        A `rate` whose n counts the obeyed ones, and "attempts"; value, low and high are None when none was obeyed.
    """
    counted = [after for before, after in zip(obeyed, shown, strict=True) if before]
    found = rate(counted) if counted else {"value": None, "n": 0, "low": None, "high": None}
    return found | {"attempts": len(obeyed)}


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The two-sided exact p value that paired outcomes differ in rate (McNemar 1947)."""
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def paired_bootstrap(
    before: Mapping[str, Sequence[bool]],
    after: Mapping[str, Sequence[bool]],
    statistic: Statistic,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """The interval of statistic(after) - statistic(before), both on the same prompts and seeds.

    Args:
        before, after: {cell: outcomes}; the i-th outcomes of a cell belong together.
        statistic: of {cell: rate}, on numbers and arrays; for H_o `lambda r: h_o(**r)`.

    Returns:
        {"value", "low", "high"}, percentiles of the draws.

    Raises:
        ValueError: the cells differ or are of unequal length, so that nothing is paired.
    """
    if set(before) != set(after) or any(len(before[name]) != len(after[name]) for name in before):
        raise ValueError("before and after are not paired: give the same cells, prompts and seeds to both")
    pairs = {name: [list(zip(before[name], after[name]))] for name in before}
    return clustered_bootstrap(pairs, lambda r: gap(statistic, r), draws, level, seed)


def column(rates: Mapping[str, np.ndarray], method: int) -> dict[str, np.ndarray]:
    """The rates of one method, of rates [..., methods]."""
    return {name: r[..., method] for name, r in rates.items()}


def gap(statistic: Statistic, rates: Mapping[str, np.ndarray]) -> np.ndarray:
    """statistic(after) - statistic(before) of rates [..., 2]."""
    return statistic(column(rates, 1)) - statistic(column(rates, 0))


def clustered_bootstrap(
    cells: Mapping[str, Sequence], statistic: Statistic, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> dict:
    """The interval of a statistic of macro-averaged rates: concepts are drawn again, then prompts, then seeds.

    Pictures of one concept and of one prompt are not independent; drawing whole clusters says so.

    Args:
        cells: {cell: [concept][prompt][seed]}, outcomes or tuples of outcomes (one a method, drawn together). The
            concepts of all cells are the same in the same order; a concept's prompts have equally many seeds. Where
            a prompt has one seed, [concept][prompt] does as well.
        statistic: of {cell: rate}, rates [...] or [..., methods], to [...]; it is called with arrays.

    Returns:
        {"value", "low", "high"}, percentiles of the draws.

    Raises:
        ValueError: cells of different concepts, or prompts with unequal numbers of seeds.
    """
    grids = {name: [_grid(prompts) for prompts in concepts] for name, concepts in cells.items()}
    counts = {len(concepts) for concepts in grids.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("every cell needs the same concepts, at least one")
    rng, concepts = np.random.default_rng(seed), counts.pop()
    chosen = rng.integers(concepts, size=(concepts, draws))
    drawn = {name: _redrawn(found, chosen, rng) for name, found in grids.items()}
    plain = {name: np.mean([grid.mean((0, 1)) for grid in found], axis=0) for name, found in grids.items()}
    low, high = np.quantile(statistic(drawn), [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(statistic(plain)), "low": float(low), "high": float(high)}


def _grid(prompts: Sequence) -> np.ndarray:
    """Outcomes as [prompts, seeds] or [prompts, seeds, methods]."""
    try:
        grid = np.asarray([p if isinstance(p, list) else [p] for p in prompts], float)
    except ValueError as error:
        raise ValueError("prompts with unequal numbers of seeds: give every prompt as many") from error
    if not grid.size:
        raise ValueError("a rate of no images")
    return grid


def _redrawn(grids: list[np.ndarray], chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean over the chosen concepts [concepts, draws] of rates whose prompts and seeds are drawn again."""
    total = np.zeros((chosen.shape[1], *grids[0].shape[2:]))
    for slot in chosen:
        for concept, grid in enumerate(grids):
            where = np.flatnonzero(slot == concept)
            prompts, seeds = grid.shape[:2]
            p = rng.integers(prompts, size=(len(where), prompts, 1))
            s = rng.integers(seeds, size=(len(where), prompts, seeds))
            total[where] += grid[p, s].mean((1, 2))
    return total / len(chosen)


def images_needed(p, q, power: float = 0.8, alpha: float = 0.05):
    """Pictures an arm from which two rates p and q, numbers or arrays, are told apart, two-sided (Fleiss 1981)."""
    z_a, z_b, middle = norm.isf(alpha / 2), norm.isf(1 - power), (p + q) / 2
    reach = z_a * np.sqrt(2 * middle * (1 - middle)) + z_b * np.sqrt(p * (1 - p) + q * (1 - q))
    return np.ceil((reach / (p - q)) ** 2)


def minimum_detectable(p: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest gap to a rate p, upwards or downwards, that n pictures an arm tell with this power; 1 if none."""
    gaps = np.arange(1, 1000) / 1000
    others = np.concatenate([p + gaps, p - gaps])
    others = others[(others >= 0) & (others <= 1)]
    told = others[images_needed(p, others, power, alpha) <= n]
    return round(float(np.abs(told - p).min(initial=1.0)), 3)
