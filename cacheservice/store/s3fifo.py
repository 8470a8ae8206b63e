"""S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Self

from cacheservice.store.ghosts import FINGERPRINT, Ghosts
from cacheservice.store.queue import EntryQueue

SMALL_SHARE = 0.1
"""The part of the entries that the small queue holds."""
ENOUGH_USES = 2
"""Uses in the small queue that earn a place in the main queue."""
MOST_USES = 3
"""Uses beyond this number are not counted."""
MAX_TURNS = 64
"""Entries that get another turn, at most, before one is given up all the same: where all are in use it
matters little which, and a queue of thousands would be gone through three times."""


class S3FIFO:
    """Gives up what came and was not used again soon; so one scan does not drive out what is in use.

    New entries enter a small queue. What has been used enough when its turn comes goes on to the main
    queue, the rest is given up, but remembered: if it comes again soon it enters the main queue at once.
    There, what has been used since its last turn gets another. Reads move nothing. Every operation is O(1).
    """

    __slots__ = ("_ghosts", "_main", "_share", "_small", "_uses")

    def __init__(self) -> None:
        self._small = EntryQueue()
        self._main = EntryQueue()
        self._uses: dict[str, int] = {}
        self._ghosts = Ghosts()
        self._share = SMALL_SHARE

    def get(self, key: str) -> bytes | None:
        main, small = self._main, self._small
        packed = main.newer.get(key) or small.newer.get(key) or main.oldest.get(key) or small.oldest.get(key)
        if packed is not None:
            uses = self._uses.get(key, 0)
            if uses < MOST_USES:
                self._uses[key] = uses + 1
        return packed

    def peek(self, key: str) -> bytes | None:
        main, small = self._main, self._small
        if key in main.newer:
            return main.newer[key]
        if key in small.newer:
            return small.newer[key]
        if key in main.oldest:
            return main.oldest[key]
        return small.oldest.get(key)

    def add(self, key: str, packed: bytes) -> None:
        queue = self._main if self._comes_again(key) else self._small
        queue.newer[key] = packed

    def replace(self, key: str, packed: bytes) -> None:
        main, small = self._main, self._small
        for part in (main.newer, small.newer, main.oldest, small.oldest):
            if key in part:
                part[key] = packed
                break
        self._uses[key] = min(self._uses.get(key, 0) + 1, MOST_USES)

    def pop(self, key: str) -> bytes | None:
        self._uses.pop(key, None)
        return self._main.pop(key) or self._small.pop(key)

    def victims(self) -> Iterator[tuple[str, bytes]]:
        small, main, uses = self._small, self._main, self._uses
        in_small, in_main = len(small), len(main)
        turns = 0
        while in_small or in_main:
            if in_small and (in_small >= self._share * (in_small + in_main) or not in_main):
                key, packed = (small.oldest or small.set_apart()).popitem()
                in_small -= 1
                if uses.pop(key, 0) >= ENOUGH_USES and turns < MAX_TURNS:
                    main.newer[key] = packed
                    in_main += 1
                    turns += 1
                    continue
                self._ghosts.add(hash(key) & FINGERPRINT, in_main)
            else:
                key, packed = (main.oldest or main.set_apart()).popitem()
                used = uses.pop(key, 0)
                if used and turns < MAX_TURNS:
                    main.newer[key] = packed
                    if used > 1:
                        uses[key] = used - 1
                    turns += 1
                    continue
                in_main -= 1
                self._left_main(key, in_small)
            turns = 0
            yield key, packed

    def split(self, goes: Callable[[str], bool]) -> Self:
        other = type(self)()
        other._small = self._small.split(goes)
        other._main = self._main.split(goes)
        other._uses = {key: uses for key, uses in self._uses.items() if goes(key)}
        self._uses = {key: uses for key, uses in self._uses.items() if key not in other._uses}
        other._ghosts = self._ghosts.copy()
        other._share = self._share
        return other

    def compact(self) -> None:
        self._small.compact()
        self._main.compact()
        uses = self._uses
        self._uses = {key: uses[key] for key, _ in self.items() if key in uses}

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def items(self) -> Iterator[tuple[str, bytes]]:
        return chain(self._small.items(), self._main.items())

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        return chain(self._main.hottest(), self._small.hottest())

    def _comes_again(self, key: str) -> bool:
        """Whether the key, which is not here, was given up so lately that it belongs into the main queue."""
        return self._ghosts.take(hash(key) & FINGERPRINT, self._main)

    def _left_main(self, key: str, in_small: int) -> None:
        """The key was given up after a time in the main queue, with so many in the small one."""
