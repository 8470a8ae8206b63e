"""What hit ratio the store would have with half of its memory, and with twice as much."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cacheservice.store.entry import dead_before
from cacheservice.store.policy import EvictionPolicy

FACTORS = (0.5, 1.0, 2.0)
MAX_SAMPLED = 2_048
"""Keys followed in the miniature that has the store's own size; beyond, the sample is halved."""
FIRST_RATE = 1 / 128
MAX_COUNTED = 1 << 16
"""Hits after which what was counted is halved, so that the estimate follows the load."""

_HASHES = 1 << 64
_LOWEST_HASH = -(1 << 63)
_TIME_BYTES = 8


class _Miniature:
    """The store on a small scale: what it would hold, without the values."""

    def __init__(self, make_policy: Callable[[], EvictionPolicy], max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.entries = make_policy()
        self._bytes = 0

    def get(self, key: str, dead: bytes) -> bool:
        held = self.entries.get(key)
        if held is None:
            return False
        if held < dead:
            self.pop(key)
            return False
        self.hits += 1
        return True

    def add(self, key: str, header: bytes) -> None:
        if _cost(header) > self.max_bytes:
            return
        self._make_room(_cost(header))
        self.entries.add(key, header)
        self._bytes += _cost(header)

    def replace(self, key: str, header: bytes) -> None:
        self._bytes += _cost(header) - _cost(self.entries.peek(key) or header)
        self.entries.replace(key, header)
        self._make_room(0)

    def _make_room(self, extra: int) -> None:
        over = self._bytes + extra - self.max_bytes
        if over > 0:
            for _, header in self.entries.victims():
                self._bytes -= _cost(header)
                over -= _cost(header)
                if over <= 0:
                    break

    def pop(self, key: str) -> None:
        held = self.entries.pop(key)
        if held is not None:
            self._bytes -= _cost(held)

    def drop_dead(self, dead: bytes) -> None:
        for key in [key for key, held in self.entries.items() if held < dead]:
            self.pop(key)

    def halve(self, below: int) -> None:
        """Keeps the keys with a hash below `below`, and room for half as many."""
        self.max_bytes /= 2
        for key in [key for key, _ in self.entries.items() if hash(key) >= below]:
            self.pop(key)


class HitRatioCurve:
    """Follows a sample of the keys through miniatures of the store, each with its policy.

    Keys are sampled by their hash, so that all requests of a key are in the sample or none, and the sample
    has a fixed size at most (SHARDS: Waldspurger, Park, Garthwaite and Ahmad, FAST 2015). A store of a
    hundredth of the size that sees a hundredth of the keys has about the same hit ratio, whatever the
    policy (Waldspurger, Saemundsson, Ahmad and Park, "Cache Modeling and Optimization using Miniature
    Simulations", ATC 2017).
    """

    def __init__(
        self,
        make_policy: Callable[[], EvictionPolicy],
        max_bytes: int,
        cost: Callable[[str, bytes], int],
        reads: Callable[[], int],
    ) -> None:
        self._cost = cost
        self._reads = reads
        self._reads_seen = 0
        self._expected = 0.0
        """The reads that a sample of this rate has in the mean, since the hits are counted."""
        self._rate = FIRST_RATE
        self.below = _LOWEST_HASH + int(_HASHES * FIRST_RATE)
        """A key is in the sample when its hash is below this."""
        self._sizes = {factor: _Miniature(make_policy, max_bytes * factor * FIRST_RATE) for factor in FACTORS}

    def get(self, key: str, packed: bytes | None, dead: bytes) -> None:
        """A sampled key is read, and the store has `packed`; entries that are less than `dead` have expired.

        A miniature that lacks what the store has takes it over, as its user would fill it.
        """
        for size in self._sizes.values():
            if not size.get(key, dead) and packed is not None:
                size.add(key, self._header(key, packed))
        if self._sizes[1.0].hits >= MAX_COUNTED:
            self._expected = self._expect() / 2
            for size in self._sizes.values():
                size.hits //= 2

    def set(self, key: str, packed: bytes, *, is_new: bool) -> None:
        """A sampled key is written, which `is_new` to the store.

        That is a use of what a miniature already has only if it is one to the store.
        """
        header = self._header(key, packed)
        for size in self._sizes.values():
            if size.entries.peek(key) is None:
                size.add(key, header)
            elif not is_new:
                size.replace(key, header)
        if len(self._sizes[1.0].entries) > MAX_SAMPLED:
            self._expected = self._expect()
            self._rate /= 2
            self.below = (self.below + _LOWEST_HASH) // 2
            for size in self._sizes.values():
                size.halve(self.below)

    def delete(self, key: str) -> None:
        """A sampled key is deleted."""
        for size in self._sizes.values():
            size.pop(key)

    def drop_dead(self, now: int) -> Iterator[None]:
        """Removes what has expired, from one miniature at each step; to be done now and then."""
        for size in self._sizes.values():
            size.drop_dead(dead_before(now + 1))
            yield

    def estimate(self, factor: float, hit_ratio: float) -> float:
        """The hit ratio of a store of `factor` times the size, of FACTORS, whose own is `hit_ratio`.

        The difference between two miniatures is added to the true figure, since an error of the sample is
        in both of them. It is divided by the reads that the sample should have, as SHARDS corrects its
        own: a key that is read much, and is a hit everywhere, may be in the sample or not.
        """
        self._expected = self._expect()
        if not self._expected:
            return hit_ratio
        gained = (self._sizes[factor].hits - self._sizes[1.0].hits) / self._expected
        return min(1.0, max(0.0, hit_ratio + gained))

    def _expect(self) -> float:
        """`_expected` up to now."""
        reads = self._reads()
        expected = self._expected + (reads - self._reads_seen) * self._rate
        self._reads_seen = reads
        return expected

    def _header(self, key: str, packed: bytes) -> bytes:
        return packed[:_TIME_BYTES] + self._cost(key, packed).to_bytes(_TIME_BYTES)


def _cost(header: bytes) -> int:
    return int.from_bytes(header[_TIME_BYTES:])
