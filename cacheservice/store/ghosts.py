"""A memory of keys that were given up lately, at some ten bytes a key."""

from __future__ import annotations

from array import array
from collections.abc import Sized

_PLACES_PER_KEY = 2
FINGERPRINT = (1 << 30) - 1
"""The bits of a key's hash that it is remembered by: as many as the interpreter computes with at once."""
_UPPER = 0x3FFF0000
_LOWER = 0xFFFF


class Ghosts:
    """Answers whether a key was among the last so many that were noted: some thousands.

    A table of one place for each hash, with 14 more bits of it and the number of the noting; a key
    that comes to the same place as an earlier one drives that out. One in five is lost by this at most,
    and one unknown key in 16,000 taken for another, which costs a fifth of a point of hit ratio; a dict of
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
        if self._mask < _PLACES_PER_KEY * horizon - 1:
            self._grow(horizon)
        self._number = number = self._number + 1 & _LOWER
        self._table[ghost & self._mask] = ghost & _UPPER | number
        if self._count < horizon:
            self._count += 1

    def take(self, ghost: int, entries: Sized) -> bool:
        """Whether the key is among the last noted, as many as there are `entries`; it is forgotten then."""
        place = ghost & self._mask
        noted = self._table[place]
        if (noted ^ ghost) & _UPPER or (self._number - noted & _LOWER) >= len(entries):
            return False
        self._table[place] = 0
        if self._count:
            self._count -= 1
        return True

    def _grow(self, horizon: int) -> None:
        """Doubles the places, told apart by one more bit: what was noted is still found in both."""
        while len(self._table) < _PLACES_PER_KEY * horizon:
            self._table *= 2
        self._mask = len(self._table) - 1

    def copy(self) -> Ghosts:
        """The same memory, for the other half of what is split in two."""
        other = Ghosts()
        other._table = self._table[:]
        other._mask = self._mask
        other._number = self._number
        other._count = self._count
        return other
