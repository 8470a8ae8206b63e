"""The keys that nodes are asked for most, as their answers tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import random

MAX_HOT = 1_000
"""Keys. A node tells of 40 at most; of more, those are forgotten that were told of longest ago."""
COMPANY = 3.0
"""Callers of this client, on average, who share a read of a key: with so many another owner brings it more
batches, and the first one no relief, since a batch of theirs costs that hardly more than a read alone."""
_FADING = 1 / 8


@dataclass(slots=True)
class _Hot:
    until: float
    lot: float
    callers: float


class HotKeys:
    """Each hot key, until its time is up: a table that only answers to reads fill.

    A key draws a lot when it becomes hot, by which this client reads it from one of its owners.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, random: Callable[[], float] = random
    ) -> None:
        self._now = now
        self._random = random
        self._hot: dict[str, _Hot] = {}

    def note(self, key: str, hot_ms: int, callers: int = 0) -> None:
        """The key is hot for so long from now on; so many callers waited for the batch whose answer says so
        to read that key alone, none if it was a read of many."""
        until = self._now() + hot_ms / 1_000
        hot = self._hot.pop(key, None) or _Hot(until, self._random(), callers)
        hot.until = until
        if callers:
            hot.callers += (callers - hot.callers) * _FADING
        self._hot[key] = hot
        if len(self._hot) > MAX_HOT:
            del self._hot[next(iter(self._hot))]

    def lot(self, key: str) -> float:
        """That of the hot key, from 0 to below 1: how far down among its owners to read it; 0 for callers in
        company."""
        hot = self._hot.get(key)
        return 0.0 if hot is None or hot.callers >= COMPANY else hot.lot

    def __bool__(self) -> bool:
        """Whether any key may be hot."""
        return bool(self._hot)

    def __contains__(self, key: str) -> bool:
        hot = self._hot.get(key)
        if hot is None:
            return False
        if hot.until <= self._now():
            del self._hot[key]
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, hot in self._hot.items() if hot.until > self._now()])

    def has_all(self, keys: Iterable[str]) -> bool:
        return bool(self._hot) and all(key in self for key in keys)
