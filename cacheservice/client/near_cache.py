"""Copies of entries in this process, that are served only while it is sure to be told of their changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from cachetools import LRUCache

from cacheservice.client.versioned import Versioned
from cacheservice.limits import MAX_KEY_BYTES

MAX_PREFIXES = 100
MAX_REMEMBERED = 10_000
"""Changes that are remembered, for reads that were under way when they came."""
COPY_BYTES = 500
"""What a copy takes beside its key and value, about."""


@dataclass(frozen=True, slots=True)
class NearCache:
    """Has a client keep what it reads, of the keys under `prefixes` (at most 100; none: of every key).

    After a write is acknowledged no other client serves the old value from its near cache for longer than two
    seconds, whatever fails, and usually than a message takes; docs/near-cache.md says why. The copies take
    `max_bytes` at most, keys and overhead included; those used least recently go.
    """

    max_bytes: int = 64 << 20
    prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {self.max_bytes}")
        if isinstance(self.prefixes, str):
            raise TypeError("prefixes must be several str, not one")
        if len(self.prefixes) > MAX_PREFIXES:
            raise ValueError(f"prefixes must be at most {MAX_PREFIXES}, not {len(self.prefixes)}")
        for prefix in self.prefixes:
            if not 1 <= len(prefix.encode()) <= MAX_KEY_BYTES:
                raise ValueError(f"each of prefixes must have 1 to {MAX_KEY_BYTES} bytes, not {prefix!r}")


class Ticket(NamedTuple):
    """What was known when a read began."""

    era: int
    changes: int
    began: float


class _Copy(NamedTuple):
    value: bytes
    until: float
    """When it expires."""
    version: int
    size: int


class Copies:
    """Copies, and what is known of changes. Times in seconds of `now`.

    `live_until` and `ring_epoch` are set by who hears the nodes: copies are served until then, and kept of
    what is read while the nodes have that ring.
    """

    def __init__(self, max_bytes: int, now: Callable[[], float] = time.monotonic) -> None:
        self.live_until = 0.0
        self.ring_epoch = 0
        self._now = now
        self._max_bytes = max_bytes
        self._copies: LRUCache[str, _Copy] = LRUCache(max_bytes, _size_of)
        self._era = 0
        self._changes = 0
        self._remembered: dict[str, tuple[int, int]] = {}
        """By key, the last changed last: the version below which nothing is kept; and how many changes there
        had been when a read must have begun for its result to be kept."""

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, key: str) -> bytes | None:
        """The value, if there is a copy that may be served."""
        try:
            copy = self._copies[key]
        except KeyError:
            return None
        now = self._now()
        if now < copy.until and now < self.live_until:
            return copy.value
        if now >= copy.until:
            del self._copies[key]
        return None

    def begin(self) -> Ticket | None:
        """To be asked for before a read is sent; None when nothing is kept now."""
        now = self._now()
        return Ticket(self._era, self._changes, now) if now < self.live_until else None

    def offer(self, key: str, found: Versioned, ticket: Ticket | None) -> None:
        """Keeps what was read, unless it may have changed since the ticket was given."""
        if (
            ticket is None
            or not found.may_be_kept
            or ticket.era != self._era
            or found.ring_epoch != self.ring_epoch
            or self._changes - ticket.changes >= MAX_REMEMBERED
        ):
            return
        version, changes = self._remembered.get(key, (0, 0))
        if found.version < version or ticket.changes < changes:
            return
        current = self._copies.pop(key, None)
        if current is not None and current.version > found.version:
            self._copies[key] = current
            return
        size = COPY_BYTES + len(key) + len(found.value)
        if size <= self._max_bytes:
            until = ticket.began + found.ttl_ms / 1_000 if found.ttl_ms else inf
            self._copies[key] = _Copy(found.value, until, found.version, size)

    def changed(self, key: str, version: int) -> None:
        """Takes note that a node has this version of the key, or of its removal."""
        known, changes = self._remembered.get(key, (0, 0))
        self._remember(key, max(known, version), changes)
        copy = self._copies.pop(key, None)
        if copy is not None and copy.version >= version:
            self._copies[key] = copy

    def clear(self) -> None:
        """Drops everything, also what is being read."""
        self._era += 1
        self._copies.clear()

    @contextmanager
    def writing(self, keys: Collection[str]) -> Iterator[None]:
        """Drops the keys before and after they are written here."""
        self._drop(keys)
        try:
            yield
        finally:
            self._drop(keys)

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """Drops everything before and after an invalidation from here."""
        self.clear()
        try:
            yield
        finally:
            self.clear()

    def _drop(self, keys: Collection[str]) -> None:
        for key in keys:
            version, _ = self._remembered.get(key, (0, 0))
            self._remember(key, version, self._changes + 1)
            self._copies.pop(key, None)

    def _remember(self, key: str, version: int, changes: int) -> None:
        self._changes += 1
        self._remembered.pop(key, None)
        self._remembered[key] = version, changes
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


def _size_of(copy: _Copy) -> int:
    return copy.size
