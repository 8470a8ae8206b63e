"""What a node does with the keys that it holds: conditions, versions, time to live, tombstones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from random import Random

from cachetools import TTLCache

from cacheservice.clock import Clock, HybridLogicalClock
from cacheservice.errors import CounterOverflow, NotACounter, ResourceExhausted, shown
from cacheservice.node.columns import Errors, Reads
from cacheservice.node.fences import Fence, Fences
from cacheservice.node.namespaces import Namespaces
from cacheservice.node.operations import (
    Change,
    Delete,
    DeleteOutcome,
    DeleteResult,
    Get,
    GetOutcome,
    GetResult,
    Increment,
    IncrementResult,
    Operation,
    Result,
    Set,
    SetResult,
    Touch,
    TouchResult,
)
from cacheservice.store import (
    FLAGS,
    Entry,
    PartitionedStore,
    Store,
    is_fresh,
    pack,
    ttl_of,
    unpack,
    value_of,
    version_of,
)

_HIT, _MISS, _STALE = int(GetOutcome.HIT), int(GetOutcome.MISS), int(GetOutcome.STALE)

TOMBSTONE_MS = 600_000
MAX_TOMBSTONE_BYTES = 16 << 20
TOMBSTONE_BYTES = 200
"""What a tombstone takes beside its key."""

Row = tuple[str, bytes, int, int]
"""Key, value, time to live and stale window of a plain write."""

_COUNTER = re.compile(rb"-?[0-9]{1,19}")
_NOTHING = (0, 0)
_INT64 = range(-(2**63), 2**63)


class Shard:
    """This node's part of the cache: each operation in one step, without waiting for anybody.

    A tombstone keeps the version of a removed entry for ten minutes, so that an older copy that arrives late
    does not bring it back; of more than MAX_TOMBSTONE_BYTES the oldest go.
    """

    def __init__(
        self,
        node_id: str,
        store: Store | PartitionedStore,
        clock: Clock,
        namespaces: Namespaces,
        random: Random,
    ) -> None:
        self.store = store
        self.fences = Fences(clock)
        self._random = random
        self._node_id = node_id
        self._clock = clock
        self._versions = HybridLogicalClock(clock)
        self.namespaces = namespaces
        self._leave_ttl_alone = namespaces.leave_ttl_alone
        self._tombstones: TTLCache[str, tuple[int, int]] = TTLCache(
            MAX_TOMBSTONE_BYTES, TOMBSTONE_MS, timer=clock.now_ms, getsizeof=_size_of_tombstone
        )
        """Version, and length of the key."""

    @property
    def tombstones(self) -> int:
        return len(self._tombstones)

    def removed(self) -> list[str]:
        """The keys of which it is remembered that they were removed."""
        return list(self._tombstones)

    def get(self, operation: Get) -> GetResult:
        now = self._clock.now_ms()
        packed = self.store.get(operation.key, now)
        if packed is None:
            return GetResult(GetOutcome.MISS, served_by=self._node_id)
        entry = unpack(packed)
        fresh = entry.is_fresh(now)
        return GetResult(
            GetOutcome.HIT if fresh else GetOutcome.STALE,
            b"" if entry.version == operation.known_version else entry.value,
            entry.version,
            entry.expires - now if fresh and entry.expires else 0,
            now - entry.created,
            self._node_id,
        )

    def get_many(self, keys: Sequence[str], *, values_only: bool = False) -> Reads:
        """What `get` gives for each key, as columns."""
        now = self._clock.now_ms()
        found = self.store.get_many(keys, now)
        reads = Reads([_HIT] * len(found), list(map(value_of, found)))
        for row, packed in enumerate(found):
            if not packed:
                reads.outcomes[row] = _MISS
            elif packed[FLAGS] and not is_fresh(packed, now):
                reads.outcomes[row] = _STALE
        if not values_only:
            reads.versions = [0 if packed is None else version_of(packed) for packed in found]
            reads.ttl_ms = [0 if packed is None else ttl_of(packed, now) for packed in found]
        return reads

    def set_many(self, rows: Sequence[Row], *, with_changes: bool) -> tuple[list[int], Errors, list[Change]]:
        """Writes the rows in order.

        The versions, 0 where there is an error; the errors by row; and, if wanted, the changes for the
        replicas.
        """
        now = self._clock.now_ms()
        versions = list(self._versions.next_many(len(rows)))
        errors: Errors = {}
        changes: list[Change] = []
        for row, (key, value, ttl_ms, stale_ms) in enumerate(rows):
            if not self._versions.is_above_all:
                versions[row] = max(versions[row], self._version(key, now) + 1, self.fences.above(key) + 1)
            entry = Entry(value, versions[row], now, self._expires(key, ttl_ms, now), stale_ms)
            try:
                self._put(key, entry)
            except ResourceExhausted as error:
                errors[row] = error
                versions[row] = 0
            else:
                if with_changes:
                    changes.append(Change(key, entry.version, entry))
        return versions, errors, changes

    def delete_many(self, keys: Iterable[str]) -> tuple[list[int], list[Change]]:
        """Removes each key; the outcomes, and the changes."""
        outcomes: list[int] = []
        changes: list[Change] = []
        for key in keys:
            held = self._held_version(key)
            version = self._next_version(key, held)
            self.store.delete(key)
            self.bury(key, version)
            outcomes.append(DeleteOutcome.DELETED if held else DeleteOutcome.NOT_FOUND)
            changes.append(Change(key, version, None))
        return outcomes, changes

    def apply(self, operation: Operation) -> tuple[Result, Change | None]:
        """Does the operation here, as the owner; the change, if any, is for the replicas.

        Raises EntryTooLarge, NotACounter or CounterOverflow, and then has changed nothing.
        """
        match operation:
            case Get():
                return self.get(operation), None
            case Set():
                return self._set(operation)
            case Delete():
                return self._delete(operation)
            case Touch():
                return self._touch(operation)
            case Increment():
                return self._increment(operation)

    def merge(self, change: Change) -> int:
        """Takes over a change made elsewhere, unless what is here is newer.

        Returns the version that is here afterwards: the change's own, or a higher one, or 0 when the
        entry does not fit, or has been invalidated. Which value stays does not depend on the order in which
        changes come: the higher version wins, of equal ones a removal, then the larger value.
        """
        self._versions.observe(change.version)
        current = self.store.peek(change.key, self._clock.now_ms())
        if self.fences.above(change.key, change.entry.tags if change.entry else ()) >= change.version:
            if current is not None and version_of(current) < change.version:
                # What is here was overwritten before that was invalidated.
                self.store.delete(change.key)
                self.bury(change.key, change.version)
            return 0
        removed_at = self._removed_at(change.key)
        if removed_at >= change.version:
            return removed_at
        if current is not None and not _wins(change, current):
            return version_of(current)
        if change.entry is None:
            self.store.delete(change.key)
            self.bury(change.key, change.version)
            return change.version
        try:
            self._put(change.key, change.entry)
        except ResourceExhausted:
            # The older copy must not be served once the newer one is acknowledged elsewhere.
            self.store.delete(change.key)
            return 0
        return change.version

    def change(self, key: str) -> Change | None:
        """What a replica needs to hold the same of `key` as this node; None when nothing is known of it."""
        packed = self.store.peek(key, self._clock.now_ms())
        if packed is not None:
            return Change(key, version_of(packed), unpack(packed))
        removed_at = self._removed_at(key)
        return Change(key, removed_at, None) if removed_at else None

    def reading(self) -> int:
        """A version above all that were given or seen here."""
        return self._versions.reading()

    @property
    def too_far_ahead(self) -> int:
        """How many versions came from clocks too far ahead of this node's to be followed."""
        return self._versions.too_far_ahead

    def fence(self, fence: Fence) -> bool:
        """Takes in nothing any longer that the fence covers; False if it did not anyway.

        What is here already is for the caller to remove.
        """
        self._versions.observe(fence.version)
        return self.fences.add(fence)

    def version(self, key: str) -> int:
        """The version that is known of the key, which may have been removed; 0 when nothing is known."""
        return self._version(key)

    def drop(self, key: str, version: int) -> bool:
        """Removes the entry, which others own, if it still has that version; nothing will tell of it."""
        return self._held_version(key) == version and self.store.drop(key)

    def take_in(self, change: Change, *, if_room: bool) -> int:
        """As `merge`; but 0 for an entry that is to come in only `if_room`, and would drive another out."""
        if (
            if_room
            and change.entry is not None
            and not self.store.has_room(change.key, len(change.entry.value))
        ):
            return 0
        return self.merge(change)

    def holds(self, key: str, least_version: int = 0) -> bool:
        """Whether an entry is here, of that version or a later one."""
        return self._held_version(key) >= max(1, least_version)

    def knows(self, key: str) -> bool:
        """Whether an entry is here, or the knowledge that it was removed."""
        return self._version(key) > 0

    def outdo(self, change: Change, version: int) -> Change | None:
        """Gives the change, made here, a version above `version`; None when it has been overwritten since.

        For when a replica turns out to hold a later version: this node missed a write, and its own, which
        came after, must not lose to that.
        """
        if self._version(change.key) != change.version:
            return None
        self._versions.observe(version)
        newer = self._versions.next(after=version)
        if change.entry is None:
            self.bury(change.key, newer)
            return Change(change.key, newer, None)
        entry = change.entry._replace(version=newer)
        self._put(change.key, entry)
        return Change(change.key, newer, entry)

    def _set(self, operation: Set) -> tuple[SetResult, Change | None]:
        now = self._clock.now_ms()
        held = self._held_version(operation.key)
        if (
            (operation.if_absent and held)
            or (operation.if_present and not held)
            or (operation.if_version and held != operation.if_version)
        ):
            return SetResult(False, held), None
        entry = Entry(
            operation.value,
            self._next_version(operation.key, held, operation.tags),
            created=now,
            expires=self._expires(operation.key, operation.ttl_ms, now),
            stale_ms=operation.stale_ms,
            load_ms=operation.load_ms,
            tags=operation.tags,
        )
        self._put(operation.key, entry)
        return SetResult(True, entry.version), Change(operation.key, entry.version, entry)

    def _delete(self, operation: Delete) -> tuple[DeleteResult, Change | None]:
        held = self._held_version(operation.key)
        if operation.if_version:
            if not held:
                return DeleteResult(DeleteOutcome.NOT_FOUND, 0), None
            if held != operation.if_version:
                return DeleteResult(DeleteOutcome.CONFLICT, held), None
        version = self._next_version(operation.key, held)
        self.store.delete(operation.key)
        self.bury(operation.key, version)
        outcome = DeleteOutcome.DELETED if held else DeleteOutcome.NOT_FOUND
        return DeleteResult(outcome, version), Change(operation.key, version, None)

    def _touch(self, operation: Touch) -> tuple[TouchResult, Change | None]:
        now = self._clock.now_ms()
        packed = self.store.peek(operation.key, now)
        current = unpack(packed) if packed else None
        if current is None or not current.is_fresh(now):
            return TouchResult(False), None
        entry = current._replace(
            version=self._next_version(operation.key, current.version),
            expires=self._expires(operation.key, operation.ttl_ms, now),
        )
        self._put(operation.key, entry)
        return TouchResult(True, entry.version), Change(operation.key, entry.version, entry)

    def _increment(self, operation: Increment) -> tuple[IncrementResult, Change | None]:
        now = self._clock.now_ms()
        packed = self.store.peek(operation.key, now)
        held = unpack(packed) if packed else None
        current = held if held is not None and held.is_fresh(now) else None
        total = (operation.initial if current is None else _counter(operation.key, current)) + operation.delta
        if total not in _INT64:
            raise CounterOverflow(f"{shown(operation.key)}: {total} is beyond the range of int64")
        entry = Entry(
            str(total).encode(),
            self._next_version(operation.key, held.version if held else 0),
            created=now,
            expires=current.expires if current else self._expires(operation.key, operation.ttl_ms, now),
            tags=current.tags if current else (),
        )
        self._put(operation.key, entry)
        return IncrementResult(total, entry.version), Change(operation.key, entry.version, entry)

    def _put(self, key: str, entry: Entry) -> None:
        self.store.set(key, pack(entry))
        if self._tombstones:
            self._tombstones.pop(key, None)

    def bury(self, key: str, version: int) -> None:
        """Remembers that the key was removed."""
        self._tombstones[key] = version, len(key)

    def _removed_at(self, key: str) -> int:
        """The version of the key's tombstone; 0 when there is none."""
        return self._tombstones.get(key, _NOTHING)[0] if self._tombstones else 0

    def _held_version(self, key: str, now: int | None = None) -> int:
        """The version of the entry that is here; 0 when there is none."""
        packed = self.store.peek(key, self._clock.now_ms() if now is None else now)
        return version_of(packed) if packed is not None else 0

    def _version(self, key: str, now: int | None = None) -> int:
        """The version that is known of the key, which may have been removed; 0 when nothing is known."""
        return self._held_version(key, now) or self._removed_at(key)

    def _next_version(self, key: str, held: int, tags: Sequence[str] = ()) -> int:
        return self._versions.next(after=max(held or self._removed_at(key), self.fences.above(key, tags)))

    def _expires(self, key: str, ttl_ms: int, now: int) -> int:
        if not self._leave_ttl_alone:
            ttl_ms = self.namespaces.of(key).ttl_ms(ttl_ms, self._random.random())
        return now + ttl_ms if ttl_ms else 0


def _size_of_tombstone(tombstone: tuple[int, int]) -> int:
    return TOMBSTONE_BYTES + tombstone[1]


def _wins(change: Change, current: bytes) -> bool:
    version = version_of(current)
    if change.version != version:
        return change.version > version
    return change.entry is None or change.entry.value > unpack(current).value


def _counter(key: str, entry: Entry) -> int:
    if not _COUNTER.fullmatch(entry.value) or int(entry.value) not in _INT64:
        raise NotACounter(f"the value of {shown(key)} is no decimal int64")
    return int(entry.value)
