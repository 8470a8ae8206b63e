"""A part of the store's table, small enough that whatever must be done to all of it takes a moment."""

from __future__ import annotations

from collections.abc import Callable

from cacheservice.store.entry import FLAGS, tags_of
from cacheservice.store.expiry import HORIZON_MS, NearExpiry
from cacheservice.store.policy import EvictionPolicy
from cacheservice.store.tags import TagIndex

MAX_ENTRIES = 1_280
"""More than these and a segment is split."""

HASH_BITS = 64


class Segment:
    """The entries whose hash begins with certain bits, their order, and what finds them by time and tag.

    A dict of three million entries is out of use for a tenth of a second when it grows; one of these takes
    half a millisecond.
    """

    __slots__ = ("bytes", "count", "depth", "expiry", "policy", "tags")

    def __init__(self, policy: EvictionPolicy, now: int, depth: int = 0) -> None:
        self.policy = policy
        self.expiry = NearExpiry(now)
        self.tags = TagIndex()
        self.depth = depth
        """How many bits of the hash all of its keys share."""
        self.count = 0
        self.bytes = 0

    def index(self, key: str, packed: bytes) -> None:
        """Has an entry found by its time and its tags."""
        if packed < self.expiry.limit:
            self.expiry.add(key, packed)
        if packed[FLAGS]:
            self.tags.add(key, tags_of(packed))

    def unindex(self, key: str, packed: bytes) -> None:
        """Undoes `index` for an entry that has left the table, or is about to be replaced in it."""
        if packed < self.expiry.limit:
            self.expiry.remove(key, packed)
        if packed[FLAGS]:
            self.tags.remove(key, tags_of(packed))

    def split(self, cost: Callable[[str, bytes], int]) -> Segment:
        """Moves the entries with a 1 as the next bit of their hash into a new segment."""
        bit = HASH_BITS - 1 - self.depth
        self.depth += 1
        made = self.expiry.horizon - HORIZON_MS
        other = Segment(self.policy.split(lambda key: hash(key) >> bit & 1 == 1), made, self.depth)
        other.count = len(other.policy)
        other.bytes = sum(cost(key, packed) for key, packed in other.policy.items())
        self.count -= other.count
        self.bytes -= other.bytes
        has_tags = len(self.tags) > 0
        for half in (self, other):
            half._make_indexes(made, has_tags)
        return other

    def compact(self) -> None:
        """Moves keys and small entries to memory of today, for all that refers to them."""
        self.policy.compact()
        self._make_indexes(self.expiry.horizon - HORIZON_MS, len(self.tags) > 0)

    def _make_indexes(self, made: int, has_tags: bool) -> None:
        self.expiry = NearExpiry(made)
        self.expiry.refresh(self.policy.items(), made)
        self.tags = TagIndex()
        if has_tags:
            for key, packed in self.policy.items():
                self.tags.add(key, tags_of(packed))
