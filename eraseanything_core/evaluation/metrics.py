"""Rates with their intervals."""

import math


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
