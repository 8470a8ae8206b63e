"""Least frequently used, in constant time (Shah, Mitra and Matani, 2010), with ageing.

Ageing by halving is that of TinyLFU (Einziger, Friedman and Manes, ACM Transactions on Storage 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Self

from cacheservice.store.queue import backwards, moved, split

USES_PER_AGE = 3
"""The counts are halved after so many uses for each entry that is held."""


class LFU:
    """Gives up the entry with the fewest uses of late; of several, the one that had so many first.

    Entries stand in one dict for each number of uses, and are found by looking through all of them: a
    dict that tells which would cost more than a hundred bytes an entry. So there are four: to count
    further than to four brings a tenth of a point of hit ratio at most. Where none has a single use left,
    all have one less, which leaves them room to be told apart. Pure counts never forget: what was used much
    last week stays. So all counts are halved now and then, when something is to be given up, which takes
    time in proportion to the entries; everything else is O(1), amortised.
    """

    __slots__ = ("_due", "_four", "_one", "_three", "_two", "_uses")

    def __init__(self) -> None:
        self._due: dict[str, bytes] = {}
        """The first of those with one use, the very first as the last."""
        self._one: dict[str, bytes] = {}
        self._two: dict[str, bytes] = {}
        self._three: dict[str, bytes] = {}
        self._four: dict[str, bytes] = {}
        self._uses = 0
        """Since the counts were halved."""

    def get(self, key: str) -> bytes | None:
        four = self._four
        packed = four.pop(key, None)
        if packed is None:
            return self._rise(key)
        four[key] = packed
        self._uses += 1
        return packed

    @classmethod
    def get_many(cls, policies: list[Self], keys: list[str]) -> list[bytes | None]:
        return [policy.get(key) for policy, key in zip(policies, keys, strict=True)]

    def peek(self, key: str) -> bytes | None:
        return (
            self._four.get(key)
            or self._three.get(key)
            or self._two.get(key)
            or self._one.get(key)
            or self._due.get(key)
        )

    def add(self, key: str, packed: bytes) -> None:
        self._one[key] = packed
        self._uses += 1

    def replace(self, key: str, packed: bytes) -> None:
        self.get(key)
        for part in (self._four, self._three, self._two):
            if key in part:
                part[key] = packed
                return

    def pop(self, key: str) -> bytes | None:
        return (
            self._four.pop(key, None)
            or self._three.pop(key, None)
            or self._two.pop(key, None)
            or self._one.pop(key, None)
            or self._due.pop(key, None)
        )

    def victims(self) -> Iterator[tuple[str, bytes]]:
        left = len(self)
        while left:
            if self._uses > USES_PER_AGE * left:
                self._halve()
            if not self._due:
                self._set_apart()
            left -= 1
            yield self._due.popitem()

    def split(self, goes: Callable[[str], bool]) -> Self:
        other = type(self)()
        self._due, other._due = split(self._due, goes)
        self._one, other._one = split(self._one, goes)
        self._two, other._two = split(self._two, goes)
        self._three, other._three = split(self._three, goes)
        self._four, other._four = split(self._four, goes)
        self._uses //= 2
        other._uses = self._uses
        return other

    def compact(self) -> None:
        self._due, self._one = moved(self._due), moved(self._one)
        self._two, self._three, self._four = moved(self._two), moved(self._three), moved(self._four)

    def __len__(self) -> int:
        return len(self._due) + len(self._one) + len(self._two) + len(self._three) + len(self._four)

    def items(self) -> Iterator[tuple[str, bytes]]:
        return self.hottest()

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        falling = (self._four, self._three, self._two, self._one)
        return chain(*(reversed(part.items()) for part in falling), self._due.items())

    def _rise(self, key: str) -> bytes | None:
        """`get` of what was not used four times."""
        packed = self._three.pop(key, None)
        if packed is not None:
            self._four[key] = packed
        else:
            packed = self._two.pop(key, None)
            if packed is not None:
                self._three[key] = packed
            else:
                packed = self._one.pop(key, None) or self._due.pop(key, None)
                if packed is None:
                    return None
                self._two[key] = packed
        self._uses += 1
        return packed

    def _set_apart(self) -> None:
        """Makes those due that were used least; there must be some."""
        while not self._one:
            self._one, self._two, self._three, self._four = self._two, self._three, self._four, {}
        self._due = backwards(self._one)
        self._one = {}

    def _halve(self) -> None:
        self._uses = 0
        self._one.update(self._two)
        self._one.update(self._three)
        self._two, self._three, self._four = self._four, {}, {}
