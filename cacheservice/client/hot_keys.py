"""The keys that nodes are asked for most, as their answers tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

MAX_HOT = 1_000
"""Keys. A node tells of 40 at most; of more, those are forgotten that were told of longest ago."""


class HotKeys:
    """Each hot key, until its time is up: a table that only answers to reads fill."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[str, float] = {}

    def note(self, key: str, hot_ms: int) -> None:
        """The key is hot for so long from now on."""
        self._until.pop(key, None)
        self._until[key] = self._now() + hot_ms / 1_000
        if len(self._until) > MAX_HOT:
            del self._until[next(iter(self._until))]

    def __bool__(self) -> bool:
        """Whether any key may be hot."""
        return bool(self._until)

    def __contains__(self, key: str) -> bool:
        until = self._until.get(key)
        if until is None:
            return False
        if until <= self._now():
            del self._until[key]
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, until in self._until.items() if until > self._now()])

    def has_all(self, keys: Iterable[str]) -> bool:
        return bool(self._until) and all(key in self for key in keys)
