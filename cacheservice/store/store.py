"""The entries of one node: bounded in bytes, with expiry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheservice.errors import EntryTooLarge, Overloaded, ResourceExhausted
from cacheservice.store.adaptive import Adaptive
from cacheservice.store.cost import cost_in_bytes
from cacheservice.store.curve import HitRatioCurve
from cacheservice.store.entry import FLAGS, dead_before, version_of
from cacheservice.store.fifo import FIFO
from cacheservice.store.lfu import LFU
from cacheservice.store.lru import LRU
from cacheservice.store.policy import EvictionPolicy
from cacheservice.store.s3fifo import S3FIFO
from cacheservice.store.segment import HASH_BITS, MAX_ENTRIES, Segment

if TYPE_CHECKING:
    from mypy_extensions import i64

POLICIES: dict[str, type[EvictionPolicy]] = {
    "lru": LRU,
    "lfu": LFU,
    "fifo": FIFO,
    "s3fifo": S3FIFO,
    "adaptive": Adaptive,
}

MAX_EVICTIONS = 500
"""Entries that one step evicts at most: a millisecond, or ten when all of them were in use."""
LEAST_EVICTIONS = 4
BYTES_PER_EVICTION = 128
"""A write evicts one entry more for each so many of its bytes: more than it needs, so that it pays for
others too, but not for all of them, since there may be many writes in a batch."""
MOST_SPARE = 32
"""When something must go, room is made for so many more of the same size: it costs less for each then."""
SPARE_SHIFT = 9
"""But no more than a five-hundredth of the store."""
FROM_ONE_SEGMENT = 32
"""Entries evicted from a segment before the next one is looked at."""
MAX_OVERDRAFT = 32 << 20
"""Bytes, or an eighth of the bound, by which it may be exceeded before another large entry is refused, until
`upkeep` has made room."""
REMOVALS_AT_A_TIME = 500
ROOM_BYTES = 1_024
"""More than an entry without value costs."""
RETRY_MS = 100
EXPIRED_AT_A_TIME = 40
LOOKED_AT_AT_A_TIME = 512
"""Segments that `upkeep` looks at where nothing is due."""


@dataclass(slots=True)
class StoreStats:
    """Counters since the store was made."""

    hits: int = 0
    misses: int = 0
    sets: int = 0
    written: int = 0
    """Bytes that the entries written came to, overhead included."""
    deletes: int = 0
    evictions: int = 0
    """Entries removed to make room."""
    expired_on_access: int = 0
    expired_unseen: int = 0
    """Entries removed after their time by the upkeep."""
    invalidated: int = 0
    """Entries removed by tag or prefix."""

    @property
    def reads(self) -> int:
        return self.hits + self.misses

    @property
    def expirations(self) -> int:
        return self.expired_on_access + self.expired_unseen


_LAST_POSITION = (1 << HASH_BITS) - 1

Found = tuple[int, str, bytes]
"""The position, the key and the packed entry of what a scan has found."""

Removed = tuple[str, int]
"""The key and the version of an entry that was invalidated."""

Usage = dict[str, tuple[float, float]]
"""Entries and bytes by namespace."""

SEGMENTS_COUNTED = 128
"""A quarter of a million entries: enough to know the namespaces' shares to a tenth of a point."""


class Store:
    """At most `max_bytes` of entries, chosen by `policy`.

    `now` is always the clock's now_ms, and a packed entry one made by `pack`. No operation blocks or does
    I/O; each is O(1) plus the evictions that it causes, but for the iterators, whose steps are bounded
    instead. The caller calls `upkeep` often.

    The table is split into segments by the first bits of a key's hash, as extendible hashing does (Fagin,
    Nievergelt, Pippenger and Strong, ACM TODS 1979), so that no step has to do with all of it.
    """

    def __init__(
        self,
        max_bytes: int,
        policy: str = "lru",
        *,
        now: int,
        cost: Callable[[str, bytes], int] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.limit = max_bytes
        """What the entries may occupy at present: max_bytes, or less while the process is too large."""
        self.policy = policy
        self.stats = StoreStats()
        self.parts: Mapping[str, Store] = {"": self}
        """As of PartitionedStore: this store is for all namespaces."""
        self.bytes = 0
        self._cost = cost or cost_in_bytes(policy)
        self.curve = HitRatioCurve(POLICIES[policy], max_bytes, self._cost, lambda: self.stats.reads)
        self._get_many = POLICIES[policy].get_many
        self._segments = [Segment(POLICIES[policy](), now)]
        self._shift = HASH_BITS
        self._rotor = 0
        self._looked_at = 0
        """Segments in which nothing was due, since `upkeep` has begun to go round."""
        self._upkeep_of_curve: Iterator[None] = iter(())
        self._now = -1
        self._dead = b""

    def get(self, key: str, now: int) -> bytes | None:
        """The entry, fresh or stale; counts as a use and as a hit or miss."""
        position = hash(key)
        segment = self._segments[position >> self._shift]
        packed = segment.policy.get(key)
        if packed is not None and packed < (self._dead if now == self._now else self._dead_by(now)):
            self._remove(segment, key)
            self.stats.expired_on_access += 1
            packed = None
        if position < self.curve.below:
            self.curve.get(key, packed, self._dead_by(now))
        if packed is None:
            self.stats.misses += 1
        else:
            self.stats.hits += 1
        return packed

    def get_many(self, keys: list[str], now: int) -> list[bytes | None]:
        """`get` of each key, in order."""
        if not keys:
            return []
        segments, dead = self._segments, self._dead_by(now)
        # For one segment no bit is left, which is beyond a machine integer; the sign does as well.
        shift: i64 = min(self._shift, HASH_BITS - 1)
        below: i64 = self.curve.below
        sampled: list[int] = []
        policies: list[EvictionPolicy] = []
        for key in keys:
            position: i64 = hash(key)
            if position < below:
                sampled.append(len(policies))
            policies.append(segments[position >> shift].policy)
        found = self._get_many(policies, keys)
        # Built-ins that look at all are the quickest way to see that there is nothing to do for any.
        unfound = 0
        if not all(found) or min(found) < dead:  # type: ignore[type-var, operator]
            unfound = self._drop_dead(keys, found, dead)
        self.stats.misses += unfound
        self.stats.hits += len(keys) - unfound
        for place in sampled:
            self.curve.get(keys[place], found[place], dead)
        return found

    def _drop_dead(self, keys: Sequence[str], found: list[bytes | None], dead: bytes) -> int:
        """Removes what is dead among the entries found, here too; returns how many keys have none."""
        unfound = [place for place, packed in enumerate(found) if packed is None or packed < dead]
        for place in unfound:
            if found[place] is not None:
                found[place] = None
                if self._remove(self._segments[hash(keys[place]) >> self._shift], keys[place]) is not None:
                    self.stats.expired_on_access += 1
        return len(unfound)

    def was_missed(self, key: str) -> None:  # noqa: ARG002
        """Counts the last `get` of the key as a miss: what it found is no good to the reader."""
        self.stats.hits -= 1
        self.stats.misses += 1

    def peek(self, key: str, now: int) -> bytes | None:
        """The entry, fresh or stale; counts as nothing."""
        packed = self._segments[hash(key) >> self._shift].policy.peek(key)
        return packed if packed is not None and packed >= self._dead_by(now) else None

    def set(self, key: str, packed: bytes) -> None:
        """Adds or replaces the entry, evicting what it needs room for.

        EntryTooLarge when the store could not hold it even alone; nothing changes then. Overloaded when there
        is more to evict for this and other large entries than one step may do; it is not stored then, and
        the entry that it should replace may be among those evicted.
        """
        cost = self._cost(key, packed)
        if cost > self.max_bytes:
            raise _too_large(cost, self.max_bytes)
        position = hash(key)
        segment = self._segments[position >> self._shift]
        policy = segment.policy
        replaced = policy.peek(key)
        growth = cost if replaced is None else cost - self._cost(key, replaced)
        if self.bytes + growth > self.limit:
            # The policy keeps the replaced entry's place (and holds it while others go), so that a new
            # value is a use of the entry and not a new entry.
            most = LEAST_EVICTIONS + cost // BYTES_PER_EVICTION
            spare = 0
            if self.bytes <= self.limit:
                most += MOST_SPARE
                spare = min(self.limit >> SPARE_SHIFT, MOST_SPARE * growth)
            left = self._make_room(growth, segment, min(most, MAX_EVICTIONS), spare)
            if replaced is not None and policy.peek(key) is None:
                replaced = None
                growth = cost
                self._make_room(growth, segment, left)
        if replaced is None:
            policy.add(key, packed)
            segment.count += 1
        else:
            if replaced < segment.expiry.limit or replaced[FLAGS]:
                segment.unindex(key, replaced)
            policy.replace(key, packed)
        self.bytes += growth
        segment.bytes += growth
        if packed < segment.expiry.limit or packed[FLAGS]:
            segment.index(key, packed)
        stats = self.stats
        stats.sets += 1
        stats.written += cost
        if position < self.curve.below:
            self.curve.set(key, packed, is_new=replaced is None)
        if segment.count > MAX_ENTRIES:
            self._split(segment, key)

    def delete(self, key: str) -> bool:
        """Removes the entry; False when there was none."""
        is_removed = self.drop(key)
        self.stats.deletes += is_removed
        return is_removed

    def drop(self, key: str) -> bool:
        """As `delete`, but not counted as such."""
        if self._remove(self._segments[hash(key) >> self._shift], key) is None:
            return False
        if hash(key) < self.curve.below:
            self.curve.delete(key)
        return True

    def has_room(self, key: str, size: int) -> bool:
        """Whether an entry of about `size` bytes could be added without evicting another."""
        return self.bytes + len(key) + size + ROOM_BYTES <= self.limit

    def set_many(self, entries: Sequence[tuple[str, bytes]]) -> list[ResourceExhausted | None]:
        """`set` of each key and packed entry; in order, what was raised for it."""
        refused: list[ResourceExhausted | None] = []
        for key, packed in entries:
            try:
                self.set(key, packed)
            except ResourceExhausted as error:
                refused.append(error)
            else:
                refused.append(None)
        return refused

    def delete_many(self, keys: Sequence[str]) -> list[bool]:
        """`delete` of each key, in order."""
        return [self.delete(key) for key in keys]

    def upkeep(self, now: int) -> bool:
        """Does one slice, of a millisecond or two, of what is due; True when more of it waits.

        It evicts what a large entry still needs room for, removes expired entries, and looks ahead for
        those that expire soon. To be called at least every second.
        """
        if self.bytes > self.limit:
            self._make_room(0, self._segments[0], MAX_EVICTIONS)
            return True
        for _ in self._upkeep_of_curve:
            return True
        while self._looked_at < len(self._segments):
            segment = self._segments[self._looked_at]
            due = segment.expiry.take_due(now, EXPIRED_AT_A_TIME)
            if due:
                for key in due:
                    self._remove(segment, key)
                    if hash(key) < self.curve.below:
                        self.curve.delete(key)
                self.stats.expired_unseen += len(due)
                return True
            if segment.expiry.is_outdated(now):
                segment.expiry.refresh(segment.policy.items(), now)
                if self._looked_at == 0:
                    self._upkeep_of_curve = self.curve.drop_dead(now)
                return True
            self._looked_at += 1
            if self._looked_at % LOOKED_AT_AT_A_TIME == 0:
                return True
        self._looked_at = 0
        return False

    def compact(self) -> Iterator[None]:
        """Moves keys and small entries together in memory, a segment at each step."""
        for segment in self._each_segment():
            segment.compact()
            yield

    def invalidate_tag(self, tag: str, version: int) -> Iterator[list[Removed]]:
        """Removes the entries with `tag` up to that version; each step looks at one segment and gives some.

        A step costs a look-up, and as much as a delete for each of up to REMOVALS_AT_A_TIME entries.
        """
        for segment in self._each_segment():
            yield from self._invalidate(segment.tags.keys(tag), version)

    def invalidate_prefix(self, prefix: str, version: int) -> Iterator[list[Removed]]:
        """Removes the entries up to that version whose key begins with `prefix`; each step gives some.

        A step looks at one segment, at every key in it, and removes up to REMOVALS_AT_A_TIME.
        """
        for segment in self._each_segment():
            keys = [key for key, _ in segment.policy.items() if key.startswith(prefix)]
            yield from self._invalidate(keys, version)

    def scan(self, prefix: str, now: int, start: int = 0) -> Iterator[tuple[int, list[Found]]]:
        """The entries whose key begins with `prefix`, in the order of their hashes, from position `start`.

        Each step looks at one segment, and gives what it found there and the position after that. What is
        there all the time is found exactly once, whatever else changes, also when a later scan goes on
        from that position, or from behind that of one of the entries.
        """
        while start <= _LAST_POSITION:
            segment = self._segments[start >> self._shift]
            end = (start >> HASH_BITS - segment.depth) + 1 << HASH_BITS - segment.depth
            dead = self._dead_by(now)
            found = [
                (_position(key), key, packed)
                for key, packed in segment.policy.items()
                if packed >= dead and key.startswith(prefix) and _position(key) >= start
            ]
            found.sort()
            yield end, found
            start = end

    def walk(self, start: int = 0) -> Iterator[tuple[int, list[str]]]:
        """All keys from position `start` on: each step gives those of one segment, about in the order of
        their worth, and the position after that. Expired ones not yet removed are among them."""
        while start <= _LAST_POSITION:
            segment = self._segments[start >> self._shift]
            start = (start >> HASH_BITS - segment.depth) + 1 << HASH_BITS - segment.depth
            yield start, [key for key, _ in segment.policy.hottest()]

    def usage(self) -> Iterator[Usage]:
        """Entries and bytes by namespace: the sum of what each step finds in a segment.

        With more than SEGMENTS_COUNTED segments so many are looked at and the result is scaled.
        """
        segments = list(self._each_segment())
        counted = segments[:: -(-len(segments) // SEGMENTS_COUNTED)]
        scale = len(segments) / len(counted)
        for segment in counted:
            found: dict[str, list[float]] = {}
            for key, packed in segment.policy.items():
                namespace, colon, _ = key.partition(":")
                tally = found.setdefault(namespace if colon else "", [0.0, 0.0])
                tally[0] += scale
                tally[1] += scale * self._cost(key, packed)
            yield {namespace: (entries, size) for namespace, (entries, size) in found.items()}

    def __len__(self) -> int:
        return sum(segment.count for segment in self._each_segment())

    def __iter__(self) -> Iterator[str]:
        """The keys, expired ones not yet removed included, in no particular order."""
        for segment in self._each_segment():
            yield from [key for key, _ in segment.policy.items()]

    def _dead_by(self, now: int) -> bytes:
        """What the entries that are dead at `now` are less than."""
        if now != self._now:
            self._now = now
            self._dead = dead_before(now + 1)
        return self._dead

    def _each_segment(self) -> Iterator[Segment]:
        """Every segment once; where one is split meanwhile, both halves."""
        position = 0
        while position <= _LAST_POSITION:
            segment = self._segments[position >> self._shift]
            yield segment
            position += 1 << HASH_BITS - segment.depth

    def _remove(self, segment: Segment, key: str) -> bytes | None:
        packed = segment.policy.pop(key)
        if packed is not None:
            self._strike(segment, key, packed)
        return packed

    def _strike(self, segment: Segment, key: str, packed: bytes) -> None:
        """Takes an entry off the books that has left the table."""
        cost = self._cost(key, packed)
        self.bytes -= cost
        segment.bytes -= cost
        segment.count -= 1
        if packed < segment.expiry.limit or packed[FLAGS]:
            segment.unindex(key, packed)

    def _invalidate(self, keys: Sequence[str], version: int) -> Iterator[list[Removed]]:
        for start in range(0, len(keys) or 1, REMOVALS_AT_A_TIME):
            removed: list[Removed] = []
            for key in keys[start : start + REMOVALS_AT_A_TIME]:
                # The segment may have been split since the step before.
                packed = self._segments[hash(key) >> self._shift].policy.peek(key)
                if packed is not None and version_of(packed) <= version and self.drop(key):
                    removed.append((key, version_of(packed)))
            self.stats.invalidated += len(removed)
            yield removed

    def _make_room(self, extra: int, segment: Segment, most: int, spare: int = 0) -> int:
        """Evicts until `extra` and `spare` bytes fit, from `segment` and its fellows, but at most `most`
        entries.

        Returns how many of those are left.

        Of two segments the fuller one has to give: the one that grows, and another in turn. That keeps
        them as equal as the balls in bins of Azar et al. ("Balanced Allocations", STOC 1994).
        """
        before, left = self.bytes, most
        over = before + extra + spare - self.limit
        while over > 0 and left and self.bytes:
            freed, evicted = self._evict(self._fuller(segment), over, min(left, FROM_ONE_SEGMENT))
            over -= freed
            left -= evicted
        overdraft = self.bytes - self.limit
        if overdraft > min(MAX_OVERDRAFT, self.max_bytes // 8) and extra > before - self.bytes:
            raise Overloaded(
                f"the store has yet to make room for {overdraft:,} bytes", retry_after_ms=str(RETRY_MS)
            )
        return left

    def _fuller(self, segment: Segment) -> Segment:
        """The one that holds more, of `segment` and another, which is each in turn."""
        self._rotor = (self._rotor + 1) % len(self._segments)
        other = self._segments[self._rotor]
        return other if other.bytes << other.depth > segment.bytes << segment.depth else segment

    def _evict(self, segment: Segment, size: int, most: int) -> tuple[int, int]:
        """Evicts `size` bytes or more of the segment, as far as it has them, but no more than `most` entries.

        Returns the bytes and the number of the entries.
        """
        cost, limit = self._cost, segment.expiry.limit
        freed = evicted = 0
        for key, packed in segment.policy.victims():
            freed += cost(key, packed)
            evicted += 1
            if packed < limit or packed[FLAGS]:
                segment.unindex(key, packed)
            if freed >= size or evicted >= most:
                break
        self.bytes -= freed
        segment.bytes -= freed
        segment.count -= evicted
        self.stats.evictions += evicted
        return freed, evicted

    def _split(self, segment: Segment, key: str) -> None:
        """Gives half of the segment, which `key` belongs to, to a new one."""
        if HASH_BITS - segment.depth == self._shift:
            self._segments = [each for each in self._segments for _ in range(2)]
            self._shift -= 1
        upper = segment.split(self._cost)
        span = 1 << HASH_BITS - segment.depth - self._shift
        first = (_position(key) >> self._shift) // (2 * span) * 2 * span
        self._segments[first + span : first + 2 * span] = [upper] * span


def _position(key: str) -> int:
    """The place of the key in the order of the hashes, from 0 to 2**64 - 1."""
    return hash(key) & _LAST_POSITION


def _too_large(cost: int, max_bytes: int) -> EntryTooLarge:
    return EntryTooLarge(
        f"an entry of {cost:,} bytes does not fit a store of {max_bytes:,} bytes",
        field="value",
        bound=f"at most {max_bytes} bytes with key and overhead",
    )
