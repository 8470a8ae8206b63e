"""Ranks by Zipf's law, each in constant time and without a table.

Rejection-inversion: W. Hörmann and G. Derflinger, Rejection-inversion to generate variates from monotone
discrete distributions, ACM TOMACS 6(3), 1996.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, expm1, log
from random import Random

_SAME_AS_ONE = 1e-9


def zipf(count: int, alpha: float, rng: Random) -> Callable[[], int]:
    """Draws a rank from 0 to `count` - 1: r in proportion to (r + 1) ** -alpha, with an `alpha` above 0."""
    random = rng.random
    power = 1 - alpha
    is_harmonic = abs(power) < _SAME_AS_ONE
    # Where rounding would lead beyond the last rank.
    least_base = (count + 0.5) ** power if power < 0 else 0.0

    def integral(x: float) -> float:
        """Of x ** -alpha, from 1."""
        return log(x) if is_harmonic else expm1(power * log(x)) / power

    def inverse(area: float) -> float:
        return exp(area) if is_harmonic else max(1 + power * area, least_base) ** (1 / power)

    most = integral(count + 0.5)
    width = integral(1.5) - 1 - most
    surely = 2 - inverse(integral(2.5) - 2.0**-alpha)
    """A point so little left of its rank always lies under the rank's bar."""

    def draw() -> int:
        while True:
            area = most + random() * width
            x = inverse(area)
            rank = min(int(x + 0.5), count) or 1
            if rank - x <= surely or area >= integral(rank + 0.5) - float(rank) ** -alpha:
                return rank - 1

    return draw
