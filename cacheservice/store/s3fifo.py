"""S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Self

from cacheservice.store.generations import Generations
from cacheservice.store.ghosts import FINGERPRINT, Ghosts
from cacheservice.store.queue import EntryQueue

SMALL_SHARE = 0.1
"""The part of the entries that the small queue holds."""
ENOUGH_USES = 2
"""Uses in the small queue that earn a place in the main queue."""
MAX_TURNS = 64
"""Entries that go on to the main queue, at most, before one is given up all the same: where all are in use it
matters little which, and a queue of thousands would be gone through."""


class S3FIFO:
    """Gives up what came and was not used again soon; so one scan does not drive out what is in use.

    New entries enter a small queue. What has been used enough when its turn comes goes on to the main
    queue, the rest is given up, but remembered: if it comes again soon it enters the main queue at once.
    There, what has been used since its last turn gets another. Every operation is O(1), amortised.

    The main queue of the paper goes round step by step, and counts uses; this one is as good, and smaller.
    """

    __slots__ = ("_ghosts", "_main", "_share", "_small", "_uses")

    def __init__(self) -> None:
        self._small = EntryQueue()
        self._uses: dict[str, int] = {}
        """Of the entries in the small queue that were used."""
        self._main = Generations()
        self._ghosts = Ghosts()
        self._share = SMALL_SHARE

    def get(self, key: str) -> bytes | None:
        return self._main.most.get(key) or self._use(key)

    @classmethod
    def get_many(cls, policies: list[Self], keys: list[str]) -> list[bytes | None]:
        return [
            policy._main.most.get(key) or policy._use(key) for policy, key in zip(policies, keys, strict=True)
        ]

    def peek(self, key: str) -> bytes | None:
        small, main = self._small, self._main
        return (
            main.most.get(key)
            or main.twice.get(key)
            or main.once.get(key)
            or main.due.get(key)
            or small.newer.get(key)
            or small.oldest.get(key)
        )

    def add(self, key: str, packed: bytes) -> None:
        if self._comes_again(hash(key) & FINGERPRINT):
            self._main.once[key] = packed
        else:
            self._small.newer[key] = packed

    def replace(self, key: str, packed: bytes) -> None:
        self.get(key)
        if not self._main.replace(key, packed):
            self._small.replace(key, packed)

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
                    main.once[key] = packed
                    in_main += 1
                    turns += 1
                    continue
                self._ghosts.add(hash(key) & FINGERPRINT, in_main)
            else:
                key, packed = (main.due or main.set_apart()).popitem()
                in_main -= 1
                self._left_main(key, in_small)
            turns = 0
            yield key, packed

    def split(self, goes: Callable[[str], bool]) -> Self:
        other = type(self)()
        other._small = self._small.split(goes)
        other._uses = {key: uses for key, uses in self._uses.items() if goes(key)}
        self._uses = {key: uses for key, uses in self._uses.items() if key not in other._uses}
        other._main = self._main.split(goes)
        other._ghosts = self._ghosts.copy()
        other._share = self._share
        return other

    def compact(self) -> None:
        self._small.compact()
        uses = self._uses
        self._uses = {key: uses[key] for key, _ in self._small.items() if key in uses}
        self._main.compact()

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def items(self) -> Iterator[tuple[str, bytes]]:
        return self.hottest()

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        return chain(self._main.hottest(), self._small.hottest())

    def _use(self, key: str) -> bytes | None:
        """`get` of what is not among those of the main queue that were used most."""
        small = self._small
        packed = small.newer.get(key)
        if packed is None:
            packed = self._main.use(key)
            if packed is not None:
                return packed
            packed = small.oldest.get(key)
            if packed is None:
                return None
        uses = self._uses.get(key, 0)
        if uses < ENOUGH_USES:
            self._uses[key] = uses + 1
        return packed

    def _comes_again(self, ghost: int) -> bool:
        """Whether a key that is not here was given up so lately that it belongs into the main queue."""
        return self._ghosts.take(ghost, self._main)

    def _left_main(self, key: str, in_small: int) -> None:
        """The key was given up after a time in the main queue, with so many in the small one."""
