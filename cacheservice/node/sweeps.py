"""What concerns many keys of this node at once: in slices, with other work between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from heapq import nlargest

from cacheservice.clock import Clock
from cacheservice.node.fences import Fence, Kind
from cacheservice.store import Entry, PartitionedStore, Store, unpack

MAX_NAMESPACES = 10_000
OTHERS = "*"
FRAMING_BYTES = 128
SEGMENTS_PER_PAGE = 32
"""What a page of a scan looks through at most, some hundred thousand keys, when few begin with the prefix."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a page may hold; it has one entry at least, whatever that one's size."""

    entries: int
    size: int
    """Bytes of keys and tags, and of values if they are wanted."""
    with_values: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the entries that a scan has found, and the position to go on from; None at the end."""

    entries: list[tuple[str, Entry]]
    next_position: int | None
    now: int
    """The moment of the scan, as of Clock.now_ms."""


class Sweeps:
    """Invalidations, scans and counts of what is here. A slice takes a millisecond or two."""

    def __init__(self, store: Store | PartitionedStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def remove(self, fence: Fence, counts: Callable[[str, int], bool]) -> int:
        """Removes what the fence covers; how many of those keys, each given with its version, count.

        By tag it costs as much as that many deletes, by prefix also a look at every key.
        """
        if fence.kind is Kind.TAG:
            steps = self._store.invalidate_tag(fence.pattern, fence.version)
        else:
            steps = self._store.invalidate_prefix(fence.pattern, fence.version)
        counted = 0
        for removed in steps:
            counted += sum(counts(key, version) for key, version in removed)
            await asyncio.sleep(0)
        return counted

    async def scan(self, prefix: str, start: int, limits: Limits, lists: Callable[[str], bool]) -> Page:
        """Entries whose key begins with the prefix, of those keys that it `lists`, from a position on.

        0 is the first position.
        """
        entries: list[tuple[str, Entry]] = []
        size = 0
        now = self._clock.now_ms()
        steps = self._store.scan(prefix, now, start)
        for looked_through, (end, found) in enumerate(steps, 1):
            for position, key, packed in found:
                if not lists(key):
                    continue
                entry = unpack(packed)
                size += _listed_bytes(key, entry, limits.with_values)
                if len(entries) == limits.entries or (entries and size > limits.size):
                    return Page(entries, position, now)
                entries.append((key, entry))
            if looked_through == SEGMENTS_PER_PAGE:
                return Page(entries, end, now)
            await asyncio.sleep(0)
        return Page(entries, None, now)

    async def usage(self, limit: int) -> dict[str, tuple[int, int]]:
        """Entries and bytes of the `limit` largest namespaces; "" stands for keys without one.

        Of more than MAX_NAMESPACES the rest are told together, as OTHERS.
        """
        usage: dict[str, tuple[float, float]] = {}
        for found in self._store.usage():
            for namespace, (entries, size) in found.items():
                name = namespace if namespace in usage or len(usage) < MAX_NAMESPACES else OTHERS
                before = usage.get(name, (0.0, 0.0))
                usage[name] = before[0] + entries, before[1] + size
            await asyncio.sleep(0)
        largest = nlargest(limit, usage.items(), key=lambda item: item[1][1])
        return {name: (round(entries), round(size)) for name, (entries, size) in largest}


def _listed_bytes(key: str, entry: Entry, with_value: bool) -> int:
    tags = sum(map(len, entry.tags))
    return FRAMING_BYTES + len(key.encode()) + tags + (len(entry.value) if with_value else 0)
