"""A queue of entries of which any can be taken out: what the eviction policies are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from sys import getsizeof

_AT_A_TIME = 64
_SMALL_BYTES = 512 - getsizeof(b"")
"""Of this size or less, objects share a page, and one that stays keeps the memory of all."""


class EntryQueue:
    """Packed entries by key, in the order in which they were appended. Every operation is O(1), amortised.

    A dict keeps that order and costs a third of the memory of an OrderedDict, without anything for the
    garbage collector to visit. But to find its first entry it looks through the places of all that were
    removed before it. So the oldest entries are taken out some at a time, into a dict of their own.
    """

    __slots__ = ("newer", "oldest")

    def __init__(self) -> None:
        self.newer: dict[str, bytes] = {}
        self.oldest: dict[str, bytes] = {}
        """The first of all, the very first as the last."""

    def get(self, key: str) -> bytes | None:
        return self.newer.get(key) or self.oldest.get(key)

    def append(self, key: str, packed: bytes) -> None:
        """Adds an entry whose key is not in the queue."""
        self.newer[key] = packed

    def replace(self, key: str, packed: bytes) -> bool:
        """Gives the key's entry a new content in its old place; False when there is none."""
        part = self.newer if key in self.newer else self.oldest
        if key not in part:
            return False
        part[key] = packed
        return True

    def pop(self, key: str) -> bytes | None:
        return self.newer.pop(key, None) or self.oldest.pop(key, None)

    def victims(self) -> Iterator[tuple[str, bytes]]:
        """Takes out one entry after the other, that which was appended first at first."""
        while self.oldest or self.newer:
            oldest = self.oldest or self.set_apart()
            while oldest:
                yield oldest.popitem()

    def popleft(self) -> tuple[str, bytes]:
        """Takes out the entry that was appended first. KeyError when there is none."""
        return (self.oldest or self.set_apart()).popitem()

    def set_apart(self) -> dict[str, bytes]:
        first = list(islice(self.newer, _AT_A_TIME))
        first.reverse()
        pop = self.newer.pop
        self.oldest = {key: pop(key) for key in first}
        return self.oldest

    def split(self, goes: Callable[[str], bool]) -> EntryQueue:
        """Moves the entries whose key `goes` into a new queue; the order stays as it was."""
        other = EntryQueue()
        other.newer = {key: packed for key, packed in self.items() if goes(key)}
        self.newer = {key: packed for key, packed in self.items() if key not in other.newer}
        self.oldest = {}
        return other

    def compact(self) -> None:
        """Gives the dicts the size that they need, and keys and small entries a new place in memory."""
        self.newer = {_moved_key(key): _moved(packed) for key, packed in self.newer.items()}
        self.oldest = {_moved_key(key): _moved(packed) for key, packed in self.oldest.items()}

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Keys and entries from first to last. The queue must not be changed meanwhile."""
        return chain(reversed(self.oldest.items()), self.newer.items())

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        """Keys and entries from last to first. The queue must not be changed meanwhile."""
        return chain(reversed(self.newer.items()), self.oldest.items())

    def __contains__(self, key: str) -> bool:
        return key in self.newer or key in self.oldest

    def __len__(self) -> int:
        return len(self.newer) + len(self.oldest)


def _moved_key(key: str) -> str:
    return (key + "-")[:-1]


def _moved(packed: bytes) -> bytes:
    return bytes(bytearray(packed)) if len(packed) <= _SMALL_BYTES else packed
