"""Least recently used (Denning, "The Working Set Model for Program Behavior", CACM 1968)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cacheservice.store.queue import EntryQueue


class LRU:
    """Gives up the entry whose last use is longest ago. Every operation is O(1)."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue = EntryQueue()

    def get(self, key: str) -> bytes | None:
        queue = self._queue
        packed = queue.newer.pop(key, None) or queue.oldest.pop(key, None)
        if packed is not None:
            queue.newer[key] = packed
        return packed

    def peek(self, key: str) -> bytes | None:
        queue = self._queue
        return queue.newer.get(key) or queue.oldest.get(key)

    def add(self, key: str, packed: bytes) -> None:
        self._queue.newer[key] = packed

    def replace(self, key: str, packed: bytes) -> None:
        self._queue.pop(key)
        self._queue.newer[key] = packed

    def pop(self, key: str) -> bytes | None:
        return self._queue.pop(key)

    def victims(self) -> Iterator[tuple[str, bytes]]:
        return self._queue.victims()

    def split(self, goes: Callable[[str], bool]) -> LRU:
        other = LRU()
        other._queue = self._queue.split(goes)
        return other

    def compact(self) -> None:
        self._queue.compact()

    def __len__(self) -> int:
        return len(self._queue)

    def items(self) -> Iterator[tuple[str, bytes]]:
        return self._queue.items()

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        return self._queue.hottest()
