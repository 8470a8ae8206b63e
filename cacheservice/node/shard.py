"""What a node does with the keys that it holds: conditions, versions, time to live, tombstones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import cast

from cachetools import TTLCache

from cacheservice.clock import Clock, HybridLogicalClock
from cacheservice.errors import CounterOverflow, NotACounter, ResourceExhausted, shown
from cacheservice.node.columns import Errors, Reads, Row
from cacheservice.node.fences import Fence, Fences
from cacheservice.node.hot_keys import HOT_MS, HotKeys
from cacheservice.node.leases import EARLIEST_LOADS, Failure, Lease, Leases, version_in
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
    NotStored,
    Operation,
    Release,
    ReleaseResult,
    Result,
    Set,
    SetResult,
    Touch,
    TouchResult,
)
from cacheservice.store import (
    Entry,
    Freshness,
    PartitionedStore,
    Store,
    freshness,
    is_absent,
    is_fresh_for_loads,
    is_plain,
    load_ms_of,
    pack,
    plain_values,
    ttl_of,
    unpack,
    value_of,
    version_of,
)

_HIT = int(GetOutcome.HIT)
_MISS = int(GetOutcome.MISS)

TOMBSTONE_MS = 600_000
MAX_TOMBSTONE_BYTES = 16 << 20
TOMBSTONE_BYTES = 200
"""What a tombstone takes beside its key."""

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
        self.leases = Leases(clock, random)
        self._random = random
        self._node_id = node_id
        self._clock = clock
        self._versions = HybridLogicalClock(clock)
        self.namespaces = namespaces
        self._are_plain = namespaces.are_plain
        self._most_early_refresh = namespaces.most_early_refresh
        self.hot = HotKeys(clock.now_ms(), random, lambda key: not namespaces.of(key).is_async)
        self._tombstones: TTLCache[str, tuple[int, int]] = TTLCache(
            MAX_TOMBSTONE_BYTES, TOMBSTONE_MS, timer=clock.now_ms, getsizeof=_size_of_tombstone
        )
        """Version, and length of the key."""
        self._may_be_buried = False
        """Whether there can be any: to ask the table costs more than to look up a key."""
        self.on_change: Callable[[str, int], None] | None = None
        """Is told the key and version of each write and removal here, once it is done."""

    @property
    def tombstones(self) -> int:
        return len(self._tombstones)

    def removed(self) -> list[str]:
        """The keys of which it is remembered that they were removed."""
        return list(self._tombstones)

    def get(self, operation: Get) -> GetResult:
        now = self._clock.now_ms()
        if self.hot.is_sampled():
            self.hot.count((operation.key,), now)
        packed = self.store.get(operation.key, now)
        if packed is not None and is_plain(packed):
            result = self._result(GetOutcome.HIT, packed, now, operation.known_version)
        else:
            outcome, packed, granted = self._judge(operation.key, packed, now, wants_lease=operation.lease)
            result = self._result(outcome, packed, now, operation.known_version)
            if isinstance(granted, Failure):
                result.load_failure = granted
            else:
                result.lease = granted
        if self.hot.keys and packed is not None and self.hot.among((operation.key,), now):
            result.hot_ms = HOT_MS
        return result

    def get_many(self, keys: list[str], *, values_only: bool = False, lease: bool = False) -> Reads:
        """What `get` gives for each key, as columns."""
        now = self._clock.now_ms()
        if sampled := self.hot.sample(keys):
            self.hot.count(sampled, now)
        found = self.store.get_many(keys, now)
        plain = plain_values(found)
        others = [row for row, value in enumerate(plain) if value is None] if not all(plain) else ()
        reads = Reads([_HIT] * len(found), cast("list[bytes]", plain))
        far = EARLIEST_LOADS * self._most_early_refresh
        for row in others:
            packed = found[row]
            reads.values[row] = value_of(packed)
            if packed and is_fresh_for_loads(packed, now, far if lease else 0):
                continue
            reads.outcomes[row], found[row], granted = self._judge(keys[row], packed, now, wants_lease=lease)
            if found[row] is None:
                reads.values[row] = b""
            if isinstance(granted, Failure):
                reads.load_failures[row] = granted
            elif granted:
                reads.leases[row] = granted
        if not values_only:
            reads.versions = [0 if packed is None else version_of(packed) for packed in found]
            reads.ttl_ms = [0 if packed is None else ttl_of(packed, now) for packed in found]
        if self.hot.keys and (hot := self.hot.among(keys, now)):
            # The other owners of a key that is not there would ask the first one each time.
            reads.hot = tuple(row for row, key in enumerate(keys) if key in hot and found[row] is not None)
            reads.hot_ms = HOT_MS if reads.hot else 0
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
        if sampled := self.hot.sample(rows):
            self.hot.count([row[0] for row in sampled], now)
        has_notes = self._may_be_buried or bool(self.leases)
        store, on_change = self.store, self.on_change
        for row, (key, value, ttl_ms, stale_ms) in enumerate(rows):
            version = versions[row]
            if not self._versions.is_above_all:
                version = max(version, self._version(key, now) + 1, self.fences.above(key) + 1)
                versions[row] = version
            expires, stale_ms, stale_if_error_ms = self._terms(key, ttl_ms, stale_ms, now)
            entry = Entry(value, version, now, expires, stale_ms, stale_if_error_ms=stale_if_error_ms)
            try:
                store.set(key, pack(entry))
            except ResourceExhausted as error:
                errors[row] = error
                versions[row] = 0
                continue
            if has_notes:
                self._forget_removal(key)
            if on_change is not None:
                on_change(key, version)
            if with_changes:
                changes.append(Change(key, version, entry))
        return versions, errors, changes

    def delete_many(self, keys: Sequence[str]) -> tuple[list[int], list[Change]]:
        """Removes each key; the outcomes, and the changes."""
        outcomes: list[int] = []
        changes: list[Change] = []
        if sampled := self.hot.sample(keys):
            self.hot.count(sampled, self._clock.now_ms())
        for key in keys:
            result, change = self._delete(Delete(key))
            outcomes.append(result.outcome)
            if change is not None:
                changes.append(change)
        return outcomes, changes

    def apply(self, operation: Operation) -> tuple[Result, Change | None]:
        """Does the operation here, as the owner; the change, if any, is for the replicas.

        Raises EntryTooLarge, NotACounter or CounterOverflow, and then has changed nothing.
        """
        if not isinstance(operation, Get) and self.hot.is_sampled():
            self.hot.count((operation.key,), self._clock.now_ms())
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
            case Release():
                return self._release(operation), None

    def merge(self, change: Change) -> int:
        """Takes over a change made elsewhere, unless what is here is newer.

        Returns the version that is here afterwards: the change's own, or a higher one, or 0 when the
        entry does not fit, or has been invalidated. Which value stays does not depend on the order in which
        changes come: the higher version wins, of equal ones a removal, then the larger value.
        """
        return self._merge(change, self._clock.now_ms())

    def merge_many(self, changes: Sequence[Change]) -> list[int]:
        """As `merge` of each, in order."""
        now = self._clock.now_ms()
        return [self._merge(change, now) for change in changes]

    def _merge(self, change: Change, now: int) -> int:
        self._versions.observe(change.version)
        current = self.store.peek(change.key, now)
        if self.fences.above(change.key, change.entry.tags if change.entry else ()) >= change.version:
            if current is not None and version_of(current) < change.version:
                # What is here was overwritten before that was invalidated.
                self._remove(change.key, change.version)
            return 0
        removed_at = self._removed_at(change.key)
        if removed_at >= change.version:
            return removed_at
        if current is not None and not _wins(change, current):
            return version_of(current)
        if change.entry is None:
            self._remove(change.key, change.version)
            return change.version
        try:
            self._put(change.key, change.entry)
        except ResourceExhausted:
            # The older copy must not be served once the newer one is acknowledged elsewhere.
            self.store.delete(change.key)
            if self.on_change is not None:
                self.on_change(change.key, change.version)
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
            self._remove(change.key, newer)
            return Change(change.key, newer, None)
        entry = replace(change.entry, version=newer)
        self._put(change.key, entry)
        return Change(change.key, newer, entry)

    def _judge(
        self, key: str, packed: bytes | None, now: int, *, wants_lease: bool
    ) -> tuple[GetOutcome, bytes | None, Lease | Failure | None]:
        """What a reader gets who has found that entry: the outcome, the entry if it is good for anything, and
        the lease or why nobody has it."""
        outcome = _outcome(packed, now)
        lease = self._lease(key, packed, outcome, now) if wants_lease else None
        if packed is not None and outcome is GetOutcome.MISS:
            if isinstance(lease, Failure):
                return GetOutcome.STALE, packed, lease
            self.store.was_missed(key)
            packed = None
        return outcome, packed, lease

    def _lease(self, key: str, packed: bytes | None, outcome: GetOutcome, now: int) -> Lease | Failure | None:
        """The lease for a reader who has found that, if the value is to be loaded, and nobody else has it; or
        why nobody is to have it."""
        policy = self.namespaces.of(key)
        is_early = packed is not None and outcome in (GetOutcome.HIT, GetOutcome.ABSENT)
        if packed is not None and is_early:
            load_ms, ttl_ms = load_ms_of(packed), ttl_of(packed, now)
            if not (load_ms and ttl_ms and self.leases.is_due_early(ttl_ms, load_ms, policy.early_refresh)):
                return None
        lease = self.leases.take(key, self._versions.next, policy.lease_ms, policy.retry_ms)
        if is_early:
            self.leases.stats.early += isinstance(lease, Lease)
            return lease if isinstance(lease, Lease) else None
        return lease

    def _result(
        self, outcome: GetOutcome, packed: bytes | None, now: int, known_version: int = 0
    ) -> GetResult:
        if packed is None:
            return GetResult(outcome, served_by=self._node_id)
        entry = unpack(packed)
        return GetResult(
            outcome,
            b"" if entry.version == known_version else entry.value,
            entry.version,
            entry.expires - now if entry.expires > now else 0,
            now - entry.created,
            self._node_id,
        )

    def _set(self, operation: Set) -> tuple[SetResult, Change | None]:
        key = operation.key
        now = self._clock.now_ms()
        packed = self.store.peek(key, now)
        held = version_of(packed) if packed is not None and _is_there(packed, now) else 0
        reason = self._why_not(operation, held)
        ttl_ms = operation.ttl_ms
        if operation.absent:
            ttl_ms = ttl_ms or self.namespaces.of(key).absent_ttl_ms
            reason = reason or (None if ttl_ms else NotStored.NO_TTL)
        if reason is not None:
            if operation.lease_token:
                self.leases.stats.refused += 1
                self.leases.release(key, operation.lease_token, "", 0)
            return SetResult(False, held, reason=reason), None
        expires, stale_ms, stale_if_error_ms = self._terms(
            key, ttl_ms, operation.stale_ms, now, operation.stale_if_error_ms
        )
        entry = Entry(
            operation.value,
            version_in(operation.lease_token)
            or self._next_version(key, version_of(packed) if packed is not None else 0, operation.tags),
            now,
            expires,
            0 if operation.absent else stale_ms,
            operation.load_ms,
            operation.tags,
            0 if operation.absent else stale_if_error_ms,
            operation.absent,
        )
        self._put(key, entry)
        return SetResult(True, entry.version), Change(key, entry.version, entry)

    def _why_not(self, operation: Set, held: int) -> NotStored | None:
        """Why the value is not to be stored beside an entry of the version `held`, 0 for none."""
        if (
            (operation.if_absent and held)
            or (operation.if_present and not held)
            or (operation.if_version and held != operation.if_version)
        ):
            return NotStored.CONDITION
        key, token = operation.key, operation.lease_token
        if not token:
            return None
        given = version_in(token)
        if given <= max(self._version(key), self.fences.above(key, operation.tags)):
            return NotStored.LEASE_VOID if given else NotStored.LEASE_UNKNOWN
        return None if self.leases.is_held_with(key, token) else NotStored.LEASE_UNKNOWN

    def _release(self, operation: Release) -> ReleaseResult:
        key = operation.key
        now = self._clock.now_ms()
        retry_ms = self.namespaces.of(key).retry_ms
        released = self.leases.release(key, operation.lease_token, operation.error, retry_ms)
        packed = self.store.peek(key, now)
        outcome = _outcome(packed, now)
        if packed is not None and outcome is GetOutcome.MISS and operation.error:
            outcome = GetOutcome.STALE
        if packed is None or outcome is GetOutcome.MISS:
            return ReleaseResult(released)
        return ReleaseResult(released, self._result(outcome, packed, now))

    def _delete(self, operation: Delete) -> tuple[DeleteResult, Change | None]:
        now = self._clock.now_ms()
        packed = self.store.peek(operation.key, now)
        held = version_of(packed) if packed is not None else 0
        is_there = packed is not None and _is_there(packed, now)
        if operation.if_version:
            if not is_there:
                return DeleteResult(DeleteOutcome.NOT_FOUND, 0), None
            if held != operation.if_version:
                return DeleteResult(DeleteOutcome.CONFLICT, held), None
        version = self._next_version(operation.key, held)
        self._remove(operation.key, version)
        outcome = DeleteOutcome.DELETED if is_there else DeleteOutcome.NOT_FOUND
        return DeleteResult(outcome, version), Change(operation.key, version, None)

    def _touch(self, operation: Touch) -> tuple[TouchResult, Change | None]:
        now = self._clock.now_ms()
        packed = self.store.peek(operation.key, now)
        current = unpack(packed) if packed else None
        if current is None or current.absent or not current.is_fresh(now):
            return TouchResult(False), None
        expires, _, _ = self._terms(operation.key, operation.ttl_ms, 0, now)
        entry = replace(current, version=self._next_version(operation.key, current.version), expires=expires)
        self._put(operation.key, entry)
        return TouchResult(True, entry.version), Change(operation.key, entry.version, entry)

    def _increment(self, operation: Increment) -> tuple[IncrementResult, Change | None]:
        now = self._clock.now_ms()
        packed = self.store.peek(operation.key, now)
        held = unpack(packed) if packed else None
        current = held if held is not None and held.is_fresh(now) and not held.absent else None
        total = (operation.initial if current is None else _counter(operation.key, current)) + operation.delta
        if total not in _INT64:
            raise CounterOverflow(f"{shown(operation.key)}: {total} is beyond the range of int64")
        expires, _, _ = self._terms(operation.key, operation.ttl_ms, 0, now)
        entry = Entry(
            str(total).encode(),
            self._next_version(operation.key, held.version if held else 0),
            created=now,
            expires=current.expires if current else expires,
            tags=current.tags if current else (),
        )
        self._put(operation.key, entry)
        return IncrementResult(total, entry.version), Change(operation.key, entry.version, entry)

    def _put(self, key: str, entry: Entry) -> None:
        self.store.set(key, pack(entry))
        self._forget_removal(key)
        if self.on_change is not None:
            self.on_change(key, entry.version)

    def _forget_removal(self, key: str) -> None:
        """The key has a value again: neither its removal nor a lease to load it matters any longer."""
        if self._may_be_buried:
            self._tombstones.pop(key, None)
        if self.leases:
            self.leases.settle(key)

    def _remove(self, key: str, version: int) -> None:
        self.store.delete(key)
        self.bury(key, version)
        if self.on_change is not None:
            self.on_change(key, version)

    def bury(self, key: str, version: int) -> None:
        """Remembers that the key was removed."""
        self._tombstones[key] = version, len(key)
        self._may_be_buried = True
        if self.leases:
            self.leases.settle(key)

    def _removed_at(self, key: str) -> int:
        """The version of the key's tombstone; 0 when there is none."""
        if not self._may_be_buried:
            return 0
        self._may_be_buried = bool(self._tombstones)
        return self._tombstones.get(key, _NOTHING)[0]

    def _held_version(self, key: str, now: int | None = None) -> int:
        """The version of the entry that is here; 0 when there is none."""
        packed = self.store.peek(key, self._clock.now_ms() if now is None else now)
        return version_of(packed) if packed is not None else 0

    def _version(self, key: str, now: int | None = None) -> int:
        """The version that is known of the key, which may have been removed; 0 when nothing is known."""
        return self._held_version(key, now) or self._removed_at(key)

    def _next_version(self, key: str, held: int, tags: Sequence[str] = ()) -> int:
        return self._versions.next(after=max(held or self._removed_at(key), self.fences.above(key, tags)))

    def _terms(
        self, key: str, ttl_ms: int, stale_ms: int, now: int, stale_if_error_ms: int = 0
    ) -> tuple[int, int, int]:
        """What the policy makes of what a writer asks for: when the entry expires, and for how long after
        that it is served as stale, and kept."""
        if not self._are_plain:
            policy = self.namespaces.of(key)
            ttl_ms = policy.ttl_ms(ttl_ms, self._random.random())
            stale_ms = stale_ms or policy.stale_ms
            stale_if_error_ms = stale_if_error_ms or policy.stale_if_error_ms
        return now + ttl_ms if ttl_ms else 0, stale_ms, stale_if_error_ms


def _outcome(packed: bytes | None, now: int) -> GetOutcome:
    """What an entry that is not dead is to those who could load its value."""
    if packed is None:
        return GetOutcome.MISS
    match freshness(packed, now):
        case Freshness.FRESH:
            return GetOutcome.ABSENT if is_absent(packed) else GetOutcome.HIT
        case Freshness.STALE:
            return GetOutcome.STALE
        case Freshness.KEPT:
            return GetOutcome.MISS


def _is_there(packed: bytes, now: int) -> bool:
    """Whether an entry that is not dead is one to conditions."""
    return _outcome(packed, now) in (GetOutcome.HIT, GetOutcome.STALE)


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
