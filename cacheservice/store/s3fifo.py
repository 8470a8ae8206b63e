"""S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

SMALL_SHARE = 10
"""The small queue holds one entry in so many."""
ENOUGH_USES = 2
"""Uses in the small queue that earn a place in the main queue."""
MOST_USES = 3
"""Uses beyond this number are not counted."""


class S3FIFO:
    """Gives up what came and was not used again soon; so one scan does not drive out what is in use.

    New entries enter a small queue. What has been used enough when its turn comes goes on to the main
    queue, the rest is given up, but remembered: if it comes again soon it enters the main queue at once.
    There, what has been used since its last turn gets another. Reads move nothing. `evict` is amortised
    O(1), everything else O(1); the memory of keys given up is bounded by the number of entries.
    """

    def __init__(self) -> None:
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._main: OrderedDict[str, bytes] = OrderedDict()
        self._ghosts: OrderedDict[str, None] = OrderedDict()
        self._uses: dict[str, int] = {}

    def get(self, key: str) -> bytes | None:
        packed = self.peek(key)
        if packed is not None:
            self._use(key)
        return packed

    def peek(self, key: str) -> bytes | None:
        packed = self._main.get(key)
        return self._small.get(key) if packed is None else packed

    def put(self, key: str, packed: bytes) -> None:
        if key in self._main:
            self._main[key] = packed
            self._use(key)
        elif key in self._small:
            self._small[key] = packed
            self._use(key)
        elif key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = packed
        else:
            self._small[key] = packed

    def pop(self, key: str) -> bytes | None:
        self._uses.pop(key, None)
        packed = self._main.pop(key, None)
        return self._small.pop(key, None) if packed is None else packed

    def evict(self) -> tuple[str, bytes]:
        while True:
            if self._small and len(self._small) * SMALL_SHARE >= len(self):
                key, packed = self._small.popitem(last=False)
                if self._uses.pop(key, 0) < ENOUGH_USES:
                    self._remember(key)
                    return key, packed
                self._main[key] = packed
            else:
                key, packed = self._main.popitem(last=False)
                uses = self._uses.pop(key, 0)
                if not uses:
                    return key, packed
                self._main[key] = packed
                if uses > 1:
                    self._uses[key] = uses - 1

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __iter__(self) -> Iterator[str]:
        yield from self._small
        yield from self._main

    def _use(self, key: str) -> None:
        uses = self._uses.get(key, 0)
        if uses < MOST_USES:
            self._uses[key] = uses + 1

    def _remember(self, key: str) -> None:
        self._ghosts[key] = None
        while len(self._ghosts) > max(1, len(self._main)):
            self._ghosts.popitem(last=False)
