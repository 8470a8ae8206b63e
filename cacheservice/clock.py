"""Time as an argument, and versions that grow with every write.

Everything at or below node/ takes a Clock, so that a whole cluster can run under virtual time.
"""

from __future__ import annotations

import time
from typing import Protocol

LOGICAL_BITS = 16
"""Bits of a version below the milliseconds: 65,536 writes a millisecond before it runs ahead."""

MAX_AHEAD_MS = 60_000
"""How far a version from elsewhere may pull this clock ahead of its own wall clock."""


class Clock(Protocol):
    """A source of time in whole milliseconds."""

    def now_ms(self) -> int:
        """Time since some fixed moment; never goes back. For durations and expiry."""
        ...

    def wall_ms(self) -> int:
        """Time since 1970, as far as this machine knows; may jump. For versions alone."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, now_ms: int = 1_000_000, wall_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._wall_offset_ms = wall_ms - now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def wall_ms(self) -> int:
        return self._now_ms + self._wall_offset_ms

    def advance(self, ms: int) -> None:
        """Lets `ms` milliseconds (not negative) pass."""
        if ms < 0:
            raise ValueError(f"time does not go back: {ms} ms")
        self._now_ms += ms

    def jump_wall(self, ms: int) -> None:
        """Sets the wall clock forward, or back, by `ms` milliseconds."""
        self._wall_offset_ms += ms


class HybridLogicalClock:
    """Versions that are close to the wall clock and respect causality across nodes.

    Kulkarni, Demirbas, Madeppa, Avva and Leone, "Logical Physical Clocks", OPODIS 2014. A reading is a
    uint64: milliseconds since 1970 shifted left by LOGICAL_BITS, plus a counter. Where the counter
    overflows it carries into the milliseconds, and the clock runs ahead until the wall catches up.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0
        self._highest = 0
        self.is_above_all = True
        """Whether every reading is above everything observed; not so after one too far ahead to follow."""
        self.too_far_ahead = 0
        """How many of those there were."""

    def next_many(self, count: int) -> range:
        """So many readings, in order, each as from `next`."""
        first = max(self._last + 1, self._clock.wall_ms() << LOGICAL_BITS)
        self._last = first + count - 1
        return range(first, first + count)

    def next(self, after: int = 0) -> int:
        """A reading above every earlier one, above everything observed, and above `after`."""
        self._last = max(self._last + 1, self._clock.wall_ms() << LOGICAL_BITS)
        return self._last if self._last > after else after + 1

    def reading(self) -> int:
        """As `next`, but above those too far ahead to follow, too."""
        return max(self.next(), self._highest)

    def observe(self, version: int) -> None:
        """Takes note of a reading from elsewhere, so that later ones here are above it.

        One that is more than MAX_AHEAD_MS ahead comes from a broken clock and is not followed: it would
        drag every node's clock along for good.
        """
        if version > self._last:
            if (version >> LOGICAL_BITS) <= self._clock.wall_ms() + MAX_AHEAD_MS:
                self._last = version
            else:
                self.is_above_all = False
                self._highest = max(self._highest, version)
                self.too_far_ahead += 1
