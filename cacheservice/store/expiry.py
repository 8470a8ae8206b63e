"""Which entries are due to be removed when."""

from __future__ import annotations

TICK_MS = 1_000


class ExpiryIndex:
    """Keys by the second in which they die: a calendar queue (Brown, CACM 1988) with exact removal.

    A key stands in at most one bucket. Adding and removing are O(1); `due` costs as much as it yields.
    """

    def __init__(self, now: int) -> None:
        self._buckets: dict[int, set[str]] = {}
        self._next_tick = now // TICK_MS

    def add(self, key: str, dead_at: int) -> None:
        """Notes that `key` dies at `dead_at` ms (not 0)."""
        tick = dead_at // TICK_MS
        self._next_tick = min(self._next_tick, tick)
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {key}
        else:
            bucket.add(key)

    def remove(self, key: str, dead_at: int) -> None:
        """Forgets `key`, which was added with `dead_at`."""
        tick = dead_at // TICK_MS
        bucket = self._buckets.get(tick)
        if bucket is None:
            return
        bucket.discard(key)
        if not bucket:
            del self._buckets[tick]

    def due(self, now: int, limit: int) -> list[str]:
        """Takes out up to `limit` keys that have died by `now`, to the tick; fewer when there are no more."""
        taken: list[str] = []
        while self._next_tick < now // TICK_MS and len(taken) < limit:
            bucket = self._buckets.get(self._next_tick)
            if bucket is None:
                self._next_tick += 1
                continue
            while bucket and len(taken) < limit:
                taken.append(bucket.pop())
            if not bucket:
                del self._buckets[self._next_tick]
        return taken
