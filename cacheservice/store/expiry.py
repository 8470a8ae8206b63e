"""Which entries of a segment die soon."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from cacheservice.store.entry import dead_at, dead_before

TICK_MS = 1_000
HORIZON_MS = 32_000
"""How far ahead the index knows. The looks at all entries, which it is made from, take about 0.3 us an entry:
with a million of them one percent and a half of a core. Further ahead they would be rarer, but more entries
in the index, at some two hundred bytes each where few share a second."""
REFRESH_MS = 8_000
"""How long before the horizon is reached the index is to be made again."""

_NO_TICK = 1 << 63


class NearExpiry:
    """Keys by the tick in which they die, as far as the next half minute goes (a calendar queue:
    Brown, CACM 1988).

    An entry that lives longer costs nothing here: somebody has to look at all entries before the horizon
    comes near, and `refresh` from what was found.
    """

    __slots__ = ("_buckets", "_earliest", "horizon", "limit")

    def __init__(self, now: int) -> None:
        self._buckets: dict[int, dict[str, None]] = {}
        self._earliest = _NO_TICK
        """No bucket is for a tick before this one."""
        self._set_horizon(now)

    def is_outdated(self, now: int) -> bool:
        return now >= self.horizon - REFRESH_MS

    def refresh(self, entries: Iterable[tuple[str, bytes]], now: int) -> None:
        """Takes note of all `entries` of the segment that die before the horizon, which is set anew."""
        self._set_horizon(now)
        limit, first = self.limit, now // TICK_MS
        ends = [dead_before(tick * TICK_MS) for tick in range(first, self.horizon // TICK_MS)]
        rows: list[dict[str, None]] = [{} for _ in ends]
        for key, packed in entries:
            if packed < limit:
                # Takes a third of the time that reading the numbers does.
                place = bisect_right(ends, packed)
                if place:
                    rows[place - 1][key] = None
                else:
                    self.add(key, packed)
        self._buckets |= {tick: row for tick, row in enumerate(rows, first) if row}
        self._earliest = min(self._buckets, default=_NO_TICK)

    def add(self, key: str, packed: bytes) -> None:
        """Takes note of an entry, which must be less than `limit`."""
        tick = dead_at(packed) // TICK_MS
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {key: None}
            self._earliest = min(self._earliest, tick)
        else:
            bucket[key] = None

    def remove(self, key: str, packed: bytes) -> None:
        """Forgets an entry, which must be less than `limit`."""
        tick = dead_at(packed) // TICK_MS
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket.pop(key, None)
            if not bucket:
                del self._buckets[tick]

    def take_due(self, now: int, limit: int) -> list[str]:
        """Takes out up to `limit` keys whose tick is over."""
        end = now // TICK_MS
        if self._earliest >= end:
            return []
        keys: list[str] = []
        for tick in sorted(tick for tick in self._buckets if tick < end):
            bucket = self._buckets[tick]
            if len(keys) + len(bucket) > limit:
                keys += [bucket.popitem()[0] for _ in range(limit - len(keys))]
                break
            keys += bucket
            del self._buckets[tick]
        self._earliest = min(self._buckets, default=_NO_TICK)
        return keys

    def _set_horizon(self, now: int) -> None:
        self.horizon = (now + HORIZON_MS) // TICK_MS * TICK_MS
        self.limit = dead_before(self.horizon)
