"""First in, first out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cacheservice.store.queue import EntryQueue


class FIFO:
    """Gives up the entry that came first, whatever its use since; a new value keeps the old place.

    Every operation is O(1).
    """

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue = EntryQueue()

    def get(self, key: str) -> bytes | None:
        return self._queue.get(key)

    def peek(self, key: str) -> bytes | None:
        return self._queue.get(key)

    def add(self, key: str, packed: bytes) -> None:
        self._queue.append(key, packed)

    def replace(self, key: str, packed: bytes) -> None:
        self._queue.replace(key, packed)

    def pop(self, key: str) -> bytes | None:
        return self._queue.pop(key)

    def victims(self) -> Iterator[tuple[str, bytes]]:
        return self._queue.victims()

    def split(self, goes: Callable[[str], bool]) -> FIFO:
        other = FIFO()
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
