"""Latency by percentile, with the last of ever smaller parts stretched, as is usual for such histograms."""

from __future__ import annotations

from cacheservice.loadgen.histogram import Histogram

_STEPS = 320
_STEPS_A_POWER = 40
"""Of ten: so many percentiles on the way from 90 to 99, and so on."""
_TICKS = {
    1: "0",
    2: "50",
    10: "90",
    100: "99",
    1_000: "99.9",
    10_000: "99.99",
    100_000: "99.999",
    1_000_000: "99.9999",
}
"""Percentiles by their place: one operation of so many is beyond it."""


def curve(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Places and latencies in milliseconds, of at most 320 percentiles. The histogram is not empty."""
    # What is beyond the last single operation would be the longest latency again and again.
    least_left = 1 / histogram.count
    lefts = [10 ** (-step / _STEPS_A_POWER) for step in range(_STEPS)]
    found = histogram.at(100 * (1 - left) for left in lefts if left >= least_left)
    return [100 / (100 - percentile) for percentile in found], list(found.values())


def ticks(count: int) -> dict[int, str]:
    """Places and labels, as far as the curve of so many operations goes, and not much farther."""
    return {place: label for place, label in _TICKS.items() if place <= 10 * count}
