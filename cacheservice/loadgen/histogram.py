"""Latencies with a fixed relative precision over a wide range, as in HdrHistogram (Gil Tene).

A latency is counted in a cell of its first four decimal digits, in microseconds: exactly below 10 ms, and
less than a thousandth too low above. What takes longer than an hour counts as that. So there are at most
57,601 cells: 10,000 below 10 ms, 9,000 for each power of ten up to 1,000 s, and 2,601 up to the hour.
All of them together take some 6 MB.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import ceil

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
LONGEST_MICROSECONDS = 3_600_000_000

Latencies = defaultdict[int, int]
"""How often there was each latency, by its `cell`."""

_EXACT = 10_000


def cell(seconds: float) -> int:
    """The least latency, in microseconds, that is counted with this one."""
    microseconds = int(seconds * 1e6)
    if microseconds < _EXACT:
        return microseconds
    microseconds = min(microseconds, LONGEST_MICROSECONDS)
    unit: int = 10 ** (len(str(microseconds)) - 4)
    return microseconds - microseconds % unit


class Histogram:
    """In milliseconds outside; 0 for what there is not."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    @property
    def count(self) -> int:
        return self._counts.total()

    @property
    def max(self) -> float:
        return max(self._counts, default=0) / 1_000

    def add(self, latencies: Latencies) -> None:
        self._counts.update(latencies)

    def at(self, percentiles: Iterable[float]) -> dict[float, float]:
        """The least latency that so many percent do not exceed, by percentile in ascending order."""
        cells = iter(sorted(self._counts.items()))
        count = self.count
        found = {}
        latency = seen = 0
        for percent in sorted(percentiles):
            # Rounded, as 99.9 % of 1,000 are to be 999 whatever the binary fractions say.
            rank = min(count, max(1, ceil(round(percent * count / 100, 6))))
            while seen < rank:
                latency, times = next(cells)
                seen += times
            found[percent] = latency / 1_000
        return found
