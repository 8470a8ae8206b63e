"""A queue in which a use earns another turn: generalised CLOCK (Smith, ACM TODS 1978)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from cacheservice.store.queue import backwards, moved, split


class Generations:
    """Packed entries by key, each in the dict of as many turns as it has left, three at most.

    A use moves an entry on to the next dict. The first to go are those that have no turn left; when there
    are none all have one turn less, and each dict takes the place of the one before. So the hand of this
    clock goes round at once and not step by step, no entry needs a counter, which would have to be found by
    a second dict with keys of its own, and what is used most is found first, and not moved. Every operation
    is O(1), amortised.
    """

    __slots__ = ("due", "most", "once", "twice")

    def __init__(self) -> None:
        self.due: dict[str, bytes] = {}
        """Those without a turn left, the very first as the last."""
        self.once: dict[str, bytes] = {}
        self.twice: dict[str, bytes] = {}
        self.most: dict[str, bytes] = {}

    def use(self, key: str) -> bytes | None:
        """The entry, noted as used."""
        packed = self.most.get(key)
        if packed is not None:
            return packed
        packed = self.twice.pop(key, None)
        if packed is not None:
            self.most[key] = packed
            return packed
        packed = self.once.pop(key, None)
        if packed is not None:
            self.twice[key] = packed
            return packed
        packed = self.due.pop(key, None)
        if packed is not None:
            self.once[key] = packed
        return packed

    def replace(self, key: str, packed: bytes) -> bool:
        """Gives the key's entry a new content in its old place; False when there is none."""
        for part in (self.most, self.twice, self.once, self.due):
            if key in part:
                part[key] = packed
                return True
        return False

    def pop(self, key: str) -> bytes | None:
        return (
            self.most.pop(key, None)
            or self.twice.pop(key, None)
            or self.once.pop(key, None)
            or self.due.pop(key, None)
        )

    def set_apart(self) -> dict[str, bytes]:
        """Takes a turn from all, until some are due, which are returned; there must be some entries."""
        while not self.once:
            self.once, self.twice, self.most = self.twice, self.most, {}
        self.due = backwards(self.once)
        self.once, self.twice, self.most = self.twice, self.most, {}
        return self.due

    def split(self, goes: Callable[[str], bool]) -> Generations:
        """Moves the entries whose key `goes`, with the turns that they have left."""
        other = Generations()
        self.due, other.due = split(self.due, goes)
        self.once, other.once = split(self.once, goes)
        self.twice, other.twice = split(self.twice, goes)
        self.most, other.most = split(self.most, goes)
        return other

    def compact(self) -> None:
        self.due, self.once = moved(self.due), moved(self.once)
        self.twice, self.most = moved(self.twice), moved(self.most)

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        """Keys and entries, the first to go as the last. Nothing must be changed meanwhile."""
        falling = (self.most, self.twice, self.once)
        return chain(*(reversed(part.items()) for part in falling), self.due.items())

    def __len__(self) -> int:
        return len(self.most) + len(self.twice) + len(self.once) + len(self.due)
