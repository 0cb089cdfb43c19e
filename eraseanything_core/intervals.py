"""Confidence intervals of rates."""

import math


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927), 95 % by default.

    Raises:
        ValueError: if there is nothing to take a rate of.
    """
    if n < 1:
        raise ValueError("a rate of no images")
    # Unlike the normal interval it stays inside [0, 1] and has a width at 0 of n, where erasers often are.
    p = hits / n
    spread = z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half_width = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half_width), min(1.0, middle + half_width)
