"""A queue of entries of which any can be taken out: what the eviction policies are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from sys import getsizeof
from typing import Self

_SMALL_BYTES = 512 - getsizeof(b"")
"""Of this size or less, objects share a page, and one that stays keeps the memory of all."""


class EntryQueue:
    """Packed entries by key, in the order in which they were appended. Every operation is O(1), amortised.

    A dict keeps that order and costs a third of the memory of an OrderedDict, without anything for the
    garbage collector to visit. But to find its first entry it looks through the places of all that were
    removed before it, whereas its last is at hand. So the oldest entries stand backwards in a dict of their
    own.
    """

    __slots__ = ("newer", "oldest")

    def __init__(self) -> None:
        self.newer: dict[str, bytes] = {}
        self.oldest: dict[str, bytes] = {}
        """The first of all, the very first as the last."""

    def peek(self, key: str) -> bytes | None:
        return self.newer.get(key) or self.oldest.get(key)

    def add(self, key: str, packed: bytes) -> None:
        """Adds an entry whose key is not in the queue."""
        self.newer[key] = packed

    def replace(self, key: str, packed: bytes) -> None:
        """Gives an entry that is in the queue a new content in its old place."""
        part = self.newer if key in self.newer else self.oldest
        part[key] = packed

    def pop(self, key: str) -> bytes | None:
        return self.newer.pop(key, None) or self.oldest.pop(key, None)

    def victims(self) -> Iterator[tuple[str, bytes]]:
        """Takes out one entry after the other, that which was appended first at first."""
        while self.oldest or self.newer:
            oldest = self.oldest or self.set_apart()
            while oldest:
                yield oldest.popitem()

    def set_apart(self) -> dict[str, bytes]:
        """Makes all of the queue `oldest`, which must be empty, and is returned."""
        self.oldest = backwards(self.newer)
        self.newer = {}
        return self.oldest

    def split(self, goes: Callable[[str], bool]) -> Self:
        """Moves the entries whose key `goes` into a new queue; the order stays as it was."""
        other = type(self)()
        self.newer, other.newer = split(self.newer, goes)
        self.oldest, other.oldest = split(self.oldest, goes)
        return other

    def compact(self) -> None:
        """As `moved`, for both dicts."""
        self.newer, self.oldest = moved(self.newer), moved(self.oldest)

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Keys and entries from first to last. The queue must not be changed meanwhile."""
        return chain(reversed(self.oldest.items()), self.newer.items())

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        """Keys and entries from last to first. The queue must not be changed meanwhile."""
        return chain(reversed(self.newer.items()), self.oldest.items())

    def __len__(self) -> int:
        return len(self.newer) + len(self.oldest)


def backwards(entries: dict[str, bytes]) -> dict[str, bytes]:
    """The same, the first as the last."""
    return {key: packed for key, packed in reversed(entries.items())}  # noqa: C416  (dict() takes longer)


def split(
    entries: dict[str, bytes], goes: Callable[[str], bool]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Those that stay and those whose key `goes`, in the order in which they were."""
    going = {key: packed for key, packed in entries.items() if goes(key)}
    return {key: packed for key, packed in entries.items() if key not in going}, going


def moved(entries: dict[str, bytes]) -> dict[str, bytes]:
    """The same in a dict of the size that it needs, with keys and small entries in a new place in memory."""
    return {(key + "-")[:-1]: _moved(packed) for key, packed in entries.items()}


def _moved(packed: bytes) -> bytes:
    return bytes(bytearray(packed)) if len(packed) <= _SMALL_BYTES else packed
