from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.clock import LOGICAL_BITS, MAX_AHEAD_MS, ManualClock
from cacheservice.errors import CounterOverflow, EntryTooLarge, NotACounter
from cacheservice.node.fences import Fence, Kind
from cacheservice.node.namespaces import NamespacePolicy, Namespaces
from cacheservice.node.operations import (
    Change,
    Delete,
    DeleteOutcome,
    DeleteResult,
    Get,
    GetOutcome,
    Increment,
    IncrementResult,
    NotStored,
    Operation,
    Result,
    Set,
    SetResult,
    Touch,
    TouchResult,
)
from cacheservice.node.shard import MAX_TOMBSTONE_BYTES, TOMBSTONE_BYTES, TOMBSTONE_MS, Shard
from cacheservice.store import Entry, Store, unpack


class Fixture:
    def __init__(self, max_bytes: int = 1 << 20, namespaces: Namespaces | None = None) -> None:
        self.clock = ManualClock()
        store = Store(max_bytes, now=self.clock.now_ms())
        self.shard = Shard("n1", store, self.clock, namespaces or Namespaces(), Random(1))

    def do(self, operation: Operation) -> Result:
        return self.shard.apply(operation)[0]

    def set(self, key: str, value: bytes = b"v", **fields: object) -> SetResult:
        result = self.do(Set(key, value, **fields))  # type: ignore[arg-type]
        assert isinstance(result, SetResult)
        return result

    def value(self, key: str) -> bytes | None:
        found = self.shard.get(Get(key))
        return None if found.outcome is GetOutcome.MISS else found.value


@pytest.fixture
def at() -> Fixture:
    return Fixture()


def test_what_was_set_is_read_with_all_that_belongs_to_it(at: Fixture) -> None:
    version = at.set("a", b"value", ttl_ms=5_000).version
    at.clock.advance(1_500)
    found = at.shard.get(Get("a"))
    assert (found.outcome, found.value, found.version) == (GetOutcome.HIT, b"value", version)
    assert (found.ttl_ms, found.age_ms, found.served_by) == (3_500, 1_500, "n1")


def test_no_ttl_means_no_expiry(at: Fixture) -> None:
    at.set("a")
    at.clock.advance(10**12)
    found = at.shard.get(Get("a"))
    assert (found.outcome, found.ttl_ms) == (GetOutcome.HIT, 0)


def test_an_entry_expires_then_is_stale_then_gone(at: Fixture) -> None:
    at.set("a", b"v", ttl_ms=1_000, stale_ms=500)
    seen = []
    for _ in range(4):
        seen.append(at.shard.get(Get("a")).outcome)
        at.clock.advance(499)
    at.clock.advance(4)
    assert seen == [GetOutcome.HIT, GetOutcome.HIT, GetOutcome.HIT, GetOutcome.STALE]
    assert at.shard.get(Get("a")).outcome is GetOutcome.MISS


def test_a_known_version_is_not_sent_again(at: Fixture) -> None:
    version = at.set("a", b"value").version
    assert at.shard.get(Get("a", known_version=version)).value == b""
    assert at.shard.get(Get("a", known_version=version - 1)).value == b"value"


def test_conditions(at: Fixture) -> None:
    assert at.set("a", if_present=True) == SetResult(False, 0, reason=NotStored.CONDITION)
    first = at.set("a", b"1", if_absent=True)
    assert first.stored
    assert not at.set("a", b"2", if_absent=True).stored
    assert at.set("a", b"3", if_version=first.version - 1).version == first.version
    second = at.set("a", b"4", if_version=first.version)
    assert second.stored
    assert second.version > first.version
    assert at.set("a", b"5", if_present=True).stored
    assert at.value("a") == b"5"
    assert at.set("missing", if_version=7) == SetResult(False, 0, reason=NotStored.CONDITION)


def test_an_expired_entry_is_absent_to_conditions(at: Fixture) -> None:
    at.set("a", ttl_ms=10)
    at.clock.advance(10)
    assert at.set("a", if_absent=True).stored


def test_a_condition_that_fails_gives_replicas_nothing(at: Fixture) -> None:
    assert at.shard.apply(Set("a", b"", if_present=True))[1] is None
    assert at.shard.apply(Get("a"))[1] is None
    assert at.shard.apply(Touch("a", 5))[1] is None


def test_delete(at: Fixture) -> None:
    stored = at.set("a")
    conflict = at.do(Delete("a", if_version=stored.version + 1))
    assert conflict == DeleteResult(DeleteOutcome.CONFLICT, stored.version)
    deleted = at.do(Delete("a", if_version=stored.version))
    assert isinstance(deleted, DeleteResult)
    assert deleted.outcome is DeleteOutcome.DELETED
    assert deleted.version > stored.version
    assert at.value("a") is None
    again = at.do(Delete("a"))
    assert isinstance(again, DeleteResult)
    assert again.outcome is DeleteOutcome.NOT_FOUND
    assert at.do(Delete("a", if_version=5)) == DeleteResult(DeleteOutcome.NOT_FOUND, 0)


def test_touch_moves_expiry_and_keeps_the_rest(at: Fixture) -> None:
    before = at.set("a", b"v", ttl_ms=1_000, tags=("t",))
    at.clock.advance(900)
    touched = at.do(Touch("a", 1_000))
    assert isinstance(touched, TouchResult)
    assert touched.version > before.version
    at.clock.advance(900)
    found = at.shard.get(Get("a"))
    assert (found.value, found.ttl_ms, found.age_ms) == (b"v", 100, 1_800)
    entry = at.shard.store.peek("a", at.clock.now_ms())
    assert entry is not None
    assert unpack(entry).tags == ("t",)
    assert at.do(Touch("missing", 5)) == TouchResult(False)


def test_increment(at: Fixture) -> None:
    assert counted(at, Increment("c", 5)) == 5
    assert counted(at, Increment("c", -7)) == -2
    assert at.value("c") == b"-2"
    assert counted(at, Increment("d", 1, initial=10, ttl_ms=1_000)) == 11
    at.clock.advance(600)
    assert counted(at, Increment("d", 1, ttl_ms=9_000)) == 12
    assert at.shard.get(Get("d")).ttl_ms == 400
    at.clock.advance(400)
    assert counted(at, Increment("d")) == 1


def counted(at: Fixture, operation: Increment) -> int:
    result = at.do(operation)
    assert isinstance(result, IncrementResult)
    return result.value


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1.5", b" 1", b"+1", b"1_0", b"9" * 19, b"-9999999999999999999"]
)
def test_what_is_no_counter_is_left_alone(at: Fixture, value: bytes) -> None:
    version = at.set("c", value).version
    with pytest.raises(NotACounter):
        at.do(Increment("c"))
    found = at.shard.get(Get("c"))
    assert (found.value, found.version) == (value, version)


@pytest.mark.parametrize(("start", "delta"), [(2**63 - 1, 1), (-(2**63), -1)])
def test_overflow_changes_nothing(at: Fixture, start: int, delta: int) -> None:
    at.set("c", str(start).encode())
    with pytest.raises(CounterOverflow):
        at.do(Increment("c", delta))
    assert at.value("c") == str(start).encode()


def test_versions_grow_over_deletion_and_wall_clock_jumps(at: Fixture) -> None:
    versions = []
    for _ in range(5):
        versions.append(at.set("a").version)
        deleted = at.do(Delete("a"))
        assert isinstance(deleted, DeleteResult)
        versions.append(deleted.version)
        at.clock.jump_wall(-100_000)
    assert versions == sorted(set(versions))


def test_ttl_policy_of_the_namespace() -> None:
    policies = Namespaces(
        NamespacePolicy(max_ttl_ms=9_000),
        {"user": NamespacePolicy(default_ttl_ms=1_000, max_ttl_ms=5_000), "free": NamespacePolicy()},
    )
    at = Fixture(namespaces=policies)
    for key, asked, expected in [
        ("user:1", 0, 1_000),
        ("user:2", 4_000, 4_000),
        ("user:3", 6_000, 5_000),
        ("other", 0, 9_000),
        ("users:1", 10_000, 9_000),
        ("free:1", 0, 0),
        ("free", 0, 9_000),
    ]:
        at.set(key, ttl_ms=asked)
        assert at.shard.get(Get(key)).ttl_ms == expected, key


def test_jitter_spreads_times_to_live_below_what_was_asked() -> None:
    at = Fixture(namespaces=Namespaces(NamespacePolicy(max_ttl_ms=50_000, ttl_jitter=0.2)))
    lives = []
    for number in range(1_000):
        at.set(f"k{number}", ttl_ms=60_000)
        lives.append(at.shard.get(Get(f"k{number}")).ttl_ms)
    assert 40_000 <= min(lives) < 41_000
    assert 49_000 < max(lives) <= 50_000
    assert len(set(lives)) > 900
    at.set("for ever", ttl_ms=0)
    assert at.shard.get(Get("for ever")).ttl_ms > 0


def test_an_entry_has_a_time_to_live_whatever_the_jitter() -> None:
    policy = NamespacePolicy(ttl_jitter=0.9)
    assert policy.ttl_ms(1, draw=0.999) == 1
    assert policy.ttl_ms(0, draw=0.5) == 0


def test_what_is_too_large_is_refused_and_changes_nothing() -> None:
    at = Fixture(max_bytes=1_000)
    at.set("a", b"old")
    with pytest.raises(EntryTooLarge):
        at.set("a", bytes(1_000))
    assert at.value("a") == b"old"


CHANGES = st.lists(
    st.builds(
        lambda version, value, removed: Change("a", version, None if removed else Entry(value, version, 0)),
        st.integers(1, 3),
        st.binary(max_size=1),
        st.booleans(),
    ),
    max_size=4,
)


@given(CHANGES)
def test_replicas_agree_whatever_the_order_in_which_changes_come(changes: list[Change]) -> None:
    outcomes = set()
    for order in permutations(changes):
        at = Fixture()
        for change in order:
            at.shard.merge(change)
            at.shard.merge(change)
        entry = at.shard.store.peek("a", at.clock.now_ms())
        outcomes.add(entry)
    assert len(outcomes) == 1


def test_a_late_copy_does_not_bring_back_what_was_deleted(at: Fixture) -> None:
    _, change = at.shard.apply(Set("a", b"v"))
    at.do(Delete("a"))
    assert change is not None
    assert at.shard.merge(change) > change.version
    assert at.value("a") is None
    assert at.shard.tombstones == 1
    at.clock.advance(TOMBSTONE_MS)
    assert at.shard.tombstones == 0


def test_a_newer_write_outdoes_a_tombstone(at: Fixture) -> None:
    deleted = at.do(Delete("a"))
    assert isinstance(deleted, DeleteResult)
    at.shard.merge(Change("a", deleted.version + 1, Entry(b"new", deleted.version + 1, 0)))
    assert at.value("a") == b"new"
    assert at.shard.tombstones == 0


def test_writes_here_outdo_what_was_merged(at: Fixture) -> None:
    ahead = at.set("b").version + (10**9 << 16)
    at.shard.merge(Change("a", ahead, Entry(b"from a broken clock", ahead, 0)))
    assert at.set("a", b"mine").version == ahead + 1
    assert at.value("a") == b"mine"


def test_a_copy_that_does_not_fit_takes_the_older_one_with_it() -> None:
    at = Fixture(max_bytes=1_000)
    version = at.set("a", b"old").version
    assert at.shard.merge(Change("a", version + 1, Entry(bytes(1_000), version + 1, 0))) == 0
    assert at.value("a") is None


def test_tombstones_are_bounded(at: Fixture) -> None:
    most = MAX_TOMBSTONE_BYTES // (TOMBSTONE_BYTES + 1_000)
    for number in range(most + 10):
        at.shard.merge(Change(f"{number:1000}", 1, None))
    assert at.shard.tombstones == most
    assert at.shard.removed()[-1] == f"{most + 9:1000}"


def test_what_others_own_is_dropped_unless_it_was_written_meanwhile(at: Fixture) -> None:
    before = at.set("a").version
    after = at.set("a").version
    assert not at.shard.drop("a", before)
    assert at.value("a") == b"v"
    assert at.shard.drop("a", after)
    assert not at.shard.drop("a", after)
    assert (at.shard.version("a"), at.shard.removed()) == (0, [])


def test_what_is_handed_over_comes_in_if_there_is_room_or_it_need_not_ask() -> None:
    at = Fixture(max_bytes=10_000)
    at.set("a", bytes(8_000))
    entry = Entry(bytes(5_000), 9, 0)
    assert at.shard.take_in(Change("b", 9, entry), if_room=True) == 0
    assert (at.value("a"), at.value("b")) == (bytes(8_000), None)
    assert at.shard.take_in(Change("b", 9, Entry(b"small", 9, 0)), if_room=True) == 9
    assert at.shard.take_in(Change("a", 2**63, None), if_room=True) == 2**63
    at.set("c", bytes(8_000))
    assert at.shard.take_in(Change("d", 9, entry), if_room=False) == 9
    assert (at.value("c"), at.value("d")) == (None, bytes(5_000))


def test_what_a_fence_covers_is_not_taken_in_and_takes_older_entries_with_it(at: Fixture) -> None:
    old = at.set("user:1").version
    assert at.shard.fence(Fence(Kind.TAG, "t", old + 10))
    assert not at.shard.fence(Fence(Kind.TAG, "t", old + 10))
    tagged = Entry(b"w", old + 5, 0, tags=("t",))
    assert at.shard.merge(Change("user:1", old + 5, tagged)) == 0
    assert at.value("user:1") is None
    assert at.shard.merge(Change("user:1", old + 10, replace(tagged, version=old + 10))) == 0
    assert at.shard.merge(Change("user:1", old + 11, replace(tagged, version=old + 11))) == old + 11


def test_writes_here_are_above_the_fences_that_cover_them(at: Fixture) -> None:
    ahead = at.clock.wall_ms() + 10 * MAX_AHEAD_MS << LOGICAL_BITS
    at.shard.fence(Fence(Kind.PREFIX, "user:", ahead))
    at.shard.fence(Fence(Kind.TAG, "t", ahead + 5))
    assert at.set("other").version < ahead < at.set("user:1").version
    assert at.set("other", tags=("t",)).version > ahead + 5
    assert at.shard.too_far_ahead == 2
