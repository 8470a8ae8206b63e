"""First in, first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class FIFO:
    """Gives up the entry that came first, whatever its use since; a new value keeps the old place.

    Every operation is O(1).
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self.get = self.peek = self._entries.get

    def put(self, key: str, packed: bytes) -> None:
        self._entries[key] = packed

    def pop(self, key: str) -> bytes | None:
        return self._entries.pop(key, None)

    def evict(self) -> tuple[str, bytes]:
        return self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
