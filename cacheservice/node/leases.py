"""Who loads a missing or stale value from its origin: one caller at a time is given the lease of a key.

After Nishtala et al., "Scaling Memcache at Facebook" (NSDI 2013), with the early refresh of Vattani,
Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention" (VLDB 2015).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from cachetools import LRUCache

from cacheservice.clock import Clock

MAX_LEASES = 100_000
"""Of more, those given first are forgotten; their tokens store nothing then."""
MAX_FAILURES = 10_000
"""Keys whose failed loads are remembered; of more, those longest untouched are forgotten."""
FIRST_PAUSE_MS = 250
"""For how long nobody loads a value again whose load has failed once: time for all who wait to hear of it."""
EARLIEST_LOADS = 37
"""With a beta of 1 no value is due early that lives for more times as long as it takes to load: random() is
at most 1 - 2**-53, and the logarithm of what is left -36.7."""

_TOKEN_VERSION_BYTES = 8
_TOKEN_RANDOM_BITS = 64


@dataclass(frozen=True, slots=True)
class Lease:
    """What its holder is told. Whoever writes, removes or invalidates the key afterwards makes it void.

    The token has in it the version that the fill will have: what is loaded may be as old as the moment when
    the lease was given, and so loses against all that happened later, wherever and whenever the two meet.
    """

    token: bytes
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The last load failed, and nobody may try again yet."""

    error: str
    """Empty when the loader never said anything."""
    retry_after_ms: int


@dataclass(slots=True)
class LeaseStats:
    """Counters since the node was made."""

    granted: int = 0
    early: int = 0
    """Of those granted, for entries that were still fresh."""
    refused: int = 0
    """Fills with a token that was void or unknown."""
    failed: int = 0
    """Loads that failed, or of which nothing was heard."""


@dataclass(slots=True)
class _Held:
    token: bytes
    until: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Failed:
    error: str
    times: int
    """In a row."""
    retry_at: int


class Leases:
    """The leases of the keys that this node owns. Times are those of Clock.now_ms."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.stats = LeaseStats()
        self._clock = clock
        self._random = random
        self._held: dict[str, _Held] = {}
        self._failed: LRUCache[str, _Failed] = LRUCache(MAX_FAILURES)

    @property
    def held(self) -> int:
        """How many there are, those included that have expired and nobody has asked for since."""
        return len(self._held)

    def __bool__(self) -> bool:
        """Whether `settle` can have anything to do."""
        return bool(self._held or self._failed)

    def take(
        self, key: str, next_version: Callable[[], int], lease_ms: int, retry_ms: int
    ) -> Lease | Failure | None:
        """Gives the lease, unless somebody has it (None), or nobody is to have it yet.

        `next_version` gives one above all that was ever written here.
        """
        now = self._clock.now_ms()
        held = self._held.get(key)
        if held is not None:
            if now < held.until:
                return None
            self._end(key)
            self._note_failure(key, "", now, 0, retry_ms)
        failed = self._failed.get(key)
        if failed is not None and now < failed.retry_at:
            return Failure(failed.error, failed.retry_at - now)
        random = self._random.getrandbits(_TOKEN_RANDOM_BITS)
        token = next_version().to_bytes(_TOKEN_VERSION_BYTES) + random.to_bytes(_TOKEN_RANDOM_BITS // 8)
        self._held[key] = _Held(token, now + lease_ms)
        if len(self._held) > MAX_LEASES:
            self._end(next(iter(self._held)))
        self.stats.granted += 1
        return Lease(token, lease_ms)

    def is_held_with(self, key: str, token: bytes) -> bool:
        """Whether the token is that of the key's lease, which has not expired."""
        held = self._held.get(key)
        return held is not None and held.token == token and self._clock.now_ms() < held.until

    def settle(self, key: str) -> None:
        """Ends the lease and forgets failures: the key was written or removed. Whoever waits looks again."""
        if key in self._held:
            self._end(key)
        if key in self._failed:
            del self._failed[key]

    def release(self, key: str, token: bytes, error: str, retry_ms: int) -> bool:
        """Ends the lease because the load failed with `error`, or because it was given up, without one.

        False when it was no longer held with that token.
        """
        if not self.is_held_with(key, token):
            return False
        if error:
            self._note_failure(key, error, self._clock.now_ms(), FIRST_PAUSE_MS, retry_ms)
        self._end(key)
        return True

    async def ended(self, key: str, timeout_ms: int) -> bool:
        """Waits until the lease has ended, or expired, but no longer than that; False when nobody has it."""
        held = self._held.get(key)
        left_ms = held.until - self._clock.now_ms() if held else 0
        if held is None or left_ms <= 0:
            return False
        try:
            async with asyncio.timeout(min(timeout_ms, left_ms) / 1_000):
                await held.ended.wait()
        except TimeoutError:
            return True
        return True

    def is_due_early(self, ttl_ms: int, load_ms: int, beta: float) -> bool:
        """Whether an entry that lives for `ttl_ms` more is best loaded already, by a draw: XFetch."""
        # 1 - random() is in (0, 1], as the logarithm wants it.
        return -load_ms * beta * math.log(1 - self._random.random()) >= ttl_ms

    def _note_failure(self, key: str, error: str, now: int, first_pause_ms: int, retry_ms: int) -> None:
        before = self._failed.get(key)
        times = before.times + 1 if before else 1
        pause_ms = first_pause_ms if times == 1 else retry_ms
        self._failed[key] = _Failed(error, times, now + pause_ms)
        self.stats.failed += 1

    def _end(self, key: str) -> None:
        self._held.pop(key).ended.set()


def version_in(token: bytes) -> int:
    """The version of what is filled in with the token; 0 when it is none."""
    if len(token) != _TOKEN_VERSION_BYTES + _TOKEN_RANDOM_BITS // 8:
        return 0
    return int.from_bytes(token[:_TOKEN_VERSION_BYTES])
