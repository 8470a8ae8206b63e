"""What all processes have seen together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cacheservice.loadgen.histogram import Histogram
from cacheservice.loadgen.interval import Interval


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
        histogram = Histogram()
        for interval in together:
            for latencies in interval.latencies.values():
                histogram.add(latencies)
        seconds = max(interval.seconds for interval in together)
        if not seconds:
            return
        p50, p99 = histogram.at((50, 99)).values()
        failed = sum(interval.failed.total() for interval in together)
        before = self.series[-1].ended if self.series else 0.0
        rate = (histogram.count - failed) / seconds
        self.series.append(Second(before + seconds, rate, p50, p99, histogram.max, failed))
