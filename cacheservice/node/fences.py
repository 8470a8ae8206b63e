"""What has been invalidated as a whole: entries by tag or prefix, up to a certain version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from cacheservice.clock import Clock

FENCE_MS = 600_000
"""How long an invalidation is remembered, longer than anything is on its way."""
MAX_FENCES = 100_000


class Kind(IntEnum):
    TAG = 1
    PREFIX = 2


class Fence(NamedTuple):
    """No entry that the pattern covers counts any longer if its version is this one or a lower one."""

    kind: Kind
    pattern: str
    """A tag, or a prefix of keys; the empty prefix covers everything."""
    version: int


class Fences:
    """Those of the last ten minutes, the highest of each pattern; of more than MAX_FENCES the oldest go."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[tuple[Kind, str], tuple[int, int]] = {}
        """Version, and when it was noted; the oldest first."""
        self._lengths: Counter[int] = Counter()
        """Of the prefixes."""

    def add(self, fence: Fence) -> bool:
        """False when this one, or a higher one of the same pattern, is here."""
        self._expire()
        name = (fence.kind, fence.pattern)
        known = self._found.get(name)
        if known is not None and known[0] >= fence.version:
            return False
        if known is not None:
            self._remove(name)
        self._found[name] = (fence.version, self._clock.now_ms())
        if fence.kind is Kind.PREFIX:
            self._lengths[len(fence.pattern)] += 1
        self._expire()
        return True

    def above(self, key: str, tags: Iterable[str] = ()) -> int:
        """The version up to which an entry of that key with those tags is invalid; 0 when none is."""
        if not self._found:
            return 0
        self._expire()
        covering = [self._found.get((Kind.PREFIX, key[:length])) for length in self._lengths]
        covering += [self._found.get((Kind.TAG, tag)) for tag in tags]
        return max((found[0] for found in covering if found is not None), default=0)

    def holds(self, fence: Fence) -> bool:
        """Whether the fence is remembered, and no higher one of its pattern is."""
        self._expire()
        found = self._found.get((fence.kind, fence.pattern))
        return found is not None and found[0] == fence.version

    def __iter__(self) -> Iterator[Fence]:
        self._expire()
        return iter([Fence(kind, pattern, version) for (kind, pattern), (version, _) in self._found.items()])

    def __len__(self) -> int:
        return len(self._found)

    def _expire(self) -> None:
        now = self._clock.now_ms()
        while self._found:
            name, (_, noted) = next(iter(self._found.items()))
            if now - noted < FENCE_MS and len(self._found) <= MAX_FENCES:
                return
            self._remove(name)

    def _remove(self, name: tuple[Kind, str]) -> None:
        del self._found[name]
        kind, pattern = name
        if kind is Kind.PREFIX:
            self._lengths[len(pattern)] -= 1
            if not self._lengths[len(pattern)]:
                del self._lengths[len(pattern)]
