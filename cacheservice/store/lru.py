"""Least recently used (Denning, "The Working Set Model for Program Behavior", CACM 1968)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class LRU:
    """Gives up the entry whose last use is longest ago. Every operation is O(1)."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self.peek = self._entries.get

    def get(self, key: str) -> bytes | None:
        packed = self._entries.get(key)
        if packed is not None:
            self._entries.move_to_end(key)
        return packed

    def put(self, key: str, packed: bytes) -> None:
        self._entries[key] = packed
        self._entries.move_to_end(key)

    def pop(self, key: str) -> bytes | None:
        return self._entries.pop(key, None)

    def evict(self) -> tuple[str, bytes]:
        return self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
