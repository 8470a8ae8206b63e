"""Least frequently used, in constant time (Shah, Mitra and Matani, 2010), with ageing.

Ageing by halving is that of TinyLFU (Einziger, Friedman and Manes, ACM Transactions on Storage 2017).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain

from cacheservice.store.queue import EntryQueue

MOST_USES = 15
"""Uses beyond this number are not counted."""
USES_PER_AGE = 3
"""The counts are halved after so many uses for each entry that is held."""


class LFU:
    """Gives up the entry with the fewest uses of late; of several, the one that had so many first.

    Entries stand in one queue for each number of uses. Pure counts never forget: what was used much last
    week stays. So all counts are halved now and then, which takes time in proportion to the entries;
    everything else is O(1).
    """

    __slots__ = ("_queues", "_since_halving", "_uses")

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}
        self._queues: defaultdict[int, EntryQueue] = defaultdict(EntryQueue)
        self._since_halving = 0

    def get(self, key: str) -> bytes | None:
        uses = self._uses.get(key)
        if uses is None:
            return None
        packed = self._take(key, uses)
        self._append(key, min(uses + 1, MOST_USES), packed)
        return packed

    def peek(self, key: str) -> bytes | None:
        uses = self._uses.get(key)
        return None if uses is None else self._queues[uses].get(key)

    def add(self, key: str, packed: bytes) -> None:
        self._append(key, 1, packed)

    def replace(self, key: str, packed: bytes) -> None:
        uses = self._uses[key]
        self._take(key, uses)
        self._append(key, min(uses + 1, MOST_USES), packed)

    def pop(self, key: str) -> bytes | None:
        uses = self._uses.pop(key, None)
        return None if uses is None else self._take(key, uses)

    def victims(self) -> Iterator[tuple[str, bytes]]:
        while self._uses:
            fewest = min(self._queues)
            queue = self._queues[fewest]
            key, packed = queue.popleft()
            if not queue:
                del self._queues[fewest]
            del self._uses[key]
            yield key, packed

    def split(self, goes: Callable[[str], bool]) -> LFU:
        other = LFU()
        for uses, queue in list(self._queues.items()):
            moved = queue.split(goes)
            if moved:
                other._queues[uses] = moved
            if not queue:
                del self._queues[uses]
        self._since_halving //= 2
        other._since_halving = self._since_halving
        other._uses = {key: uses for key, uses in self._uses.items() if goes(key)}
        self._uses = {key: uses for key, uses in self._uses.items() if key not in other._uses}
        return other

    def compact(self) -> None:
        for queue in self._queues.values():
            queue.compact()
        self._uses = {key: uses for uses, queue in self._queues.items() for key, _ in queue.items()}

    def __len__(self) -> int:
        return len(self._uses)

    def items(self) -> Iterator[tuple[str, bytes]]:
        return chain.from_iterable(queue.items() for queue in self._queues.values())

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        return chain.from_iterable(
            self._queues[uses].hottest() for uses in sorted(self._queues, reverse=True)
        )

    def _append(self, key: str, uses: int, packed: bytes) -> None:
        self._uses[key] = uses
        self._queues[uses].append(key, packed)
        self._since_halving += 1
        if self._since_halving > USES_PER_AGE * len(self._uses):
            self._halve()

    def _take(self, key: str, uses: int) -> bytes:
        queue = self._queues[uses]
        packed = queue.pop(key)
        assert packed is not None
        if not queue:
            del self._queues[uses]
        return packed

    def _halve(self) -> None:
        self._since_halving = 0
        queues, self._queues = self._queues, defaultdict(EntryQueue)
        for uses in sorted(queues):
            halved = max(1, uses // 2)
            for key, packed in queues[uses].items():
                self._uses[key] = halved
                self._queues[halved].append(key, packed)
