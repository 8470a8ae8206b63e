"""What one process has seen in about a second."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from cacheservice.errors import CacheServiceError
from cacheservice.loadgen.histogram import Latencies, cell

_MOST_MESSAGE_CHARACTERS = 200


def _latencies() -> Latencies:
    return defaultdict(int)


@dataclass(slots=True)
class Interval:
    """Counts from one moment to another."""

    seconds: float = 0.0
    latencies: dict[str, Latencies] = field(default_factory=lambda: defaultdict(_latencies))
    """Of each kind of operation, failed ones too."""
    start_delays: Latencies = field(default_factory=_latencies)
    """Between the moments when operations were due and when they were begun."""
    misses: int = 0
    """Keys that gets found no value for, or had to load."""
    failed: Counter[str] = field(default_factory=Counter)
    """Failed operations by kind."""
    errors: Counter[str] = field(default_factory=Counter)
    """The same by reason."""
    messages: dict[str, str] = field(default_factory=dict)
    """Of each reason the first message."""
    processor_seconds: float = 0.0
    """Processor time of the process, with all its threads."""
    not_started: int = 0
    """Operations that were due at the end of it and not begun; told by the last one."""
    is_last: bool = False

    def took(self, kind: str, seconds: float) -> None:
        self.latencies[kind][cell(seconds)] += 1

    def began_late(self, seconds: float) -> None:
        self.start_delays[cell(seconds)] += 1

    def failed_with(self, kind: str, error: CacheServiceError) -> None:
        reason = error.reason or "UNKNOWN"
        self.failed[kind] += 1
        self.errors[reason] += 1
        self.messages.setdefault(reason, error.message[:_MOST_MESSAGE_CHARACTERS])
