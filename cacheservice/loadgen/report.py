"""What all processes have seen together, in histograms with a bounded relative error (HdrHistogram, Tene)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

from cacheservice.loadgen.interval import Interval, Latencies

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
LONGEST_MICROSECONDS = 3_600_000_000
"""An hour; what took longer counts as that."""
_DIGITS = 3


class Histogram:
    """Latencies from a microsecond to an hour, with three digits; in milliseconds outside."""

    def __init__(self) -> None:
        self._counts = HdrHistogram(1, LONGEST_MICROSECONDS, _DIGITS)

    @property
    def count(self) -> int:
        return int(self._counts.total_count)

    @property
    def max(self) -> float:
        return float(self._counts.get_max_value() / 1_000)

    def add(self, latencies: Latencies) -> None:
        for microseconds, count in latencies.items():
            self._counts.record_value(min(max(microseconds, 1), LONGEST_MICROSECONDS), count)

    def at(self, percentiles: Iterable[float]) -> dict[float, float]:
        """The latency that so many percent do not exceed."""
        found = self._counts.get_percentile_to_value_dict(percentiles)
        # A cell's upper end is what the histogram gives, which may be more than any latency there was.
        return {percent: min(value / 1_000, self.max) for percent, value in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class Second:
    """About a second of the load: when it ended, operations a second, and latencies in milliseconds."""

    ended: float
    rate: float
    p50: float
    p99: float
    max: float
    failed: int


class Report:
    """Made from the intervals of `processes` processes, in any order among processes."""

    def __init__(self, processes: int) -> None:
        self.histograms: dict[str, Histogram] = {}
        self.start_delays = Histogram()
        self.failed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        self.misses = 0
        """Keys that gets found no value for."""
        self.not_started = 0
        self.series: list[Second] = []
        self._seconds = [0.0] * processes
        self._processor_seconds = [0.0] * processes
        self._waiting: list[list[Interval]] = [[] for _ in range(processes)]

    @property
    def seconds(self) -> float:
        """How long it took, until the last operation was answered."""
        return max(self._seconds)

    @property
    def count(self) -> int:
        """Operations, failed ones too."""
        return sum(histogram.count for histogram in self.histograms.values())

    @property
    def rate(self) -> float:
        """Operations a second, without failed ones."""
        return (self.count - self.failed.total()) / self.seconds if self.seconds else 0.0

    @property
    def process_share(self) -> float:
        """The processor time of the busiest process for each second; above 1 with several threads at work."""
        spent = zip(self._processor_seconds, self._seconds, strict=True)
        return max(processor / seconds if seconds else 0.0 for processor, seconds in spent)

    def add(self, process: int, interval: Interval) -> None:
        for kind, latencies in interval.latencies.items():
            self.histograms.setdefault(kind, Histogram()).add(latencies)
        self.start_delays.add(interval.start_delays)
        self.failed += interval.failed
        self.errors += interval.errors
        self.messages = interval.messages | self.messages
        self.misses += interval.misses
        self.not_started += interval.not_started
        self._seconds[process] += interval.seconds
        self._processor_seconds[process] += interval.processor_seconds
        self._waiting[process].append(interval)
        if all(self._waiting):
            self._end_second([intervals.pop(0) for intervals in self._waiting])

    def _end_second(self, together: list[Interval]) -> None:
        latencies: Counter[int] = Counter()
        for interval in together:
            for counts in interval.latencies.values():
                latencies.update(counts)
        seconds = max(interval.seconds for interval in together)
        if not seconds:
            return
        p50, p99, most = _quantiles(latencies, (0.5, 0.99, 1.0))
        failed = sum(interval.failed.total() for interval in together)
        before = self.series[-1].ended if self.series else 0.0
        rate = (latencies.total() - failed) / seconds
        self.series.append(Second(before + seconds, rate, p50, p99, most, failed))


def _quantiles(latencies: Counter[int], parts: tuple[float, ...]) -> list[float]:
    """In milliseconds; 0 when there are none."""
    ordered = sorted(latencies.items())
    found = []
    position = seen = 0
    for part in parts:
        while position < len(ordered) and (seen == 0 or seen < part * latencies.total()):
            seen += ordered[position][1]
            position += 1
        found.append(ordered[position - 1][0] / 1_000 if position else 0.0)
    return found
