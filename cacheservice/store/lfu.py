"""Least frequently used, in constant time (Shah, Mitra and Matani, 2010)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class LFU:
    """Gives up the entry with the fewest uses since it came; of several, the one longest unused.

    Entries stand in one queue for each number of uses. Every operation is O(1), but for an eviction after
    the last entry with the fewest uses has gone: that looks through the numbers of uses that occur.
    """

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}
        self._queues: dict[int, OrderedDict[str, bytes]] = {}
        self._fewest = 1

    def get(self, key: str) -> bytes | None:
        uses = self._uses.get(key)
        if uses is None:
            return None
        packed = self._take(key, uses)
        self._append(key, uses + 1, packed)
        return packed

    def peek(self, key: str) -> bytes | None:
        uses = self._uses.get(key)
        return None if uses is None else self._queues[uses][key]

    def put(self, key: str, packed: bytes) -> None:
        uses = self._uses.get(key)
        if uses is None:
            self._fewest = 1
            self._append(key, 1, packed)
        else:
            self._take(key, uses)
            self._append(key, uses + 1, packed)

    def pop(self, key: str) -> bytes | None:
        uses = self._uses.pop(key, None)
        return None if uses is None else self._take(key, uses)

    def evict(self) -> tuple[str, bytes]:
        if not self._uses:
            raise KeyError("there is no entry to evict")
        if self._fewest not in self._queues:
            self._fewest = min(self._queues)
        key = next(iter(self._queues[self._fewest]))
        del self._uses[key]
        return key, self._take(key, self._fewest)

    def __len__(self) -> int:
        return len(self._uses)

    def __iter__(self) -> Iterator[str]:
        return iter(self._uses)

    def _append(self, key: str, uses: int, packed: bytes) -> None:
        self._uses[key] = uses
        queue = self._queues.get(uses)
        if queue is None:
            queue = self._queues[uses] = OrderedDict()
        queue[key] = packed

    def _take(self, key: str, uses: int) -> bytes:
        queue = self._queues[uses]
        packed = queue.pop(key)
        if not queue:
            del self._queues[uses]
        return packed
