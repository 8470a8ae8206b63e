"""A memory of keys that were given up lately, at some ten bytes a key."""

from __future__ import annotations

from array import array

from xxhash import xxh32_intdigest

_PLACES_PER_KEY = 2
_UPPER = 0xFFFF0000
_LOWER = 0xFFFF


def fingerprint(key: str) -> int:
    """What a key is remembered by: 32 bits that are the same in every process."""
    return xxh32_intdigest(key.encode())


class Ghosts:
    """Answers whether a key was among the last so many that were noted: some thousands.

    A table of one place for each hash, with half of the fingerprint and the number of the noting; a key
    that comes to the same place as an earlier one drives that out. One in five is lost by this at most,
    and one unknown key in 60,000 taken for another, which costs a fifth of a point of hit ratio; a dict of
    the keys would cost ten times the memory.
    """

    __slots__ = ("_count", "_mask", "_number", "_table")

    def __init__(self) -> None:
        self._table = array("I", [0])
        self._mask = 0
        self._number = 0
        self._count = 0

    def __len__(self) -> int:
        """How many keys are remembered, about."""
        return self._count

    def add(self, ghost: int, horizon: int) -> None:
        """Notes a key by its fingerprint; room is made for `horizon` keys."""
        while len(self._table) < _PLACES_PER_KEY * horizon:
            # Twice the places, told apart by one more bit: what was noted is still found in both.
            self._table *= 2
            self._mask = len(self._table) - 1
        self._number = number = (self._number + 1) & _LOWER
        self._table[ghost & self._mask] = ghost & _UPPER | number
        if self._count < horizon:
            self._count += 1

    def take(self, ghost: int, horizon: int) -> bool:
        """Whether the key is among the last `horizon` that were noted; it is forgotten then."""
        noted = self._table[ghost & self._mask]
        if (noted ^ ghost) & _UPPER or (self._number - noted & _LOWER) >= horizon:
            return False
        self._table[ghost & self._mask] = 0
        if self._count:
            self._count -= 1
        return True

    def copy(self) -> Ghosts:
        """The same memory, for the other half of what is split in two."""
        other = Ghosts()
        other._table = self._table[:]
        other._mask = self._mask
        other._number = self._number
        other._count = self._count
        return other
