"""Who may load a value, what the others see meanwhile, and which fills are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cacheservice.clock import ManualClock
from cacheservice.node import leases as leases_module
from cacheservice.node.columns import Reads
from cacheservice.node.fences import Fence, Kind
from cacheservice.node.leases import FIRST_PAUSE_MS, Failure, Lease, Leases
from cacheservice.node.namespaces import NamespacePolicy, Namespaces
from cacheservice.node.operations import (
    Change,
    Delete,
    DeleteOutcome,
    DeleteResult,
    Get,
    GetOutcome,
    GetResult,
    Increment,
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
from cacheservice.node.shard import Shard
from cacheservice.store import Entry, Store

LEASE_MS, RETRY_MS = 3_000, 7_000
POLICY = NamespacePolicy(lease_ms=LEASE_MS, retry_ms=RETRY_MS, absent_ttl_ms=400)


class Fixture:
    """The shard of one node, whose callers all would load."""

    def __init__(self, policy: NamespacePolicy = POLICY) -> None:
        self.clock = ManualClock()
        store = Store(1 << 20, now=self.clock.now_ms())
        self.shard = Shard("n1", store, self.clock, Namespaces(policy), Random(1))

    def do(self, operation: Operation) -> Result:
        return self.shard.apply(operation)[0]

    def read(self, key: str = "a") -> GetResult:
        return self.shard.get(Get(key, lease=True))

    def token(self, key: str = "a") -> bytes:
        lease = self.read(key).lease
        assert lease is not None
        return lease.token

    def set(self, value: bytes = b"v", **fields: object) -> SetResult:
        result = self.do(Set("a", value, **fields))  # type: ignore[arg-type]
        assert isinstance(result, SetResult)
        return result

    def release(self, token: bytes, error: str = "") -> ReleaseResult:
        result = self.do(Release("a", token, error))
        assert isinstance(result, ReleaseResult)
        return result


@pytest.fixture
def at() -> Fixture:
    return Fixture()


def test_one_caller_is_given_the_lease_and_its_fill_is_for_all(at: Fixture) -> None:
    first, second = at.read(), at.read()
    assert (first.outcome, second.outcome) == (GetOutcome.MISS, GetOutcome.MISS)
    assert first.lease is not None
    assert first.lease.lease_ms == LEASE_MS
    assert not first.is_awaited
    assert second.is_awaited
    assert at.set(b"loaded", lease_token=first.lease.token).stored
    assert (at.read().outcome, at.read().value, at.read().lease) == (GetOutcome.HIT, b"loaded", None)
    assert at.shard.leases.held == 0


def test_a_plain_read_neither_takes_nor_sees_the_lease(at: Fixture) -> None:
    assert at.shard.get(Get("a")).lease is None
    assert at.shard.leases.held == 0


def test_a_token_is_good_once(at: Fixture) -> None:
    token = at.token()
    assert at.set(lease_token=token).stored
    assert at.set(b"again", lease_token=token).reason is NotStored.LEASE_VOID
    assert at.shard.leases.stats.refused == 1


@pytest.mark.parametrize("token", [b"?", b"\0" * 16, b"\xff" * 16])
def test_a_token_that_was_never_given_stores_nothing(at: Fixture, token: bytes) -> None:
    held = at.token()
    assert at.set(lease_token=token).reason is NotStored.LEASE_UNKNOWN
    assert at.read().outcome is GetOutcome.MISS
    assert at.set(lease_token=held).stored


def test_another_keys_token_stores_nothing(at: Fixture) -> None:
    assert at.set(lease_token=at.token("b")).reason is NotStored.LEASE_UNKNOWN


def test_a_lost_loaders_lease_expires(at: Fixture) -> None:
    lost = at.token()
    at.clock.advance(LEASE_MS - 1)
    assert at.read().is_awaited
    at.clock.advance(1)
    next_one = at.token()
    assert at.set(b"late", lease_token=lost).reason is NotStored.LEASE_UNKNOWN
    assert at.set(b"in time", lease_token=next_one).stored


VOIDING: list[Callable[[Fixture], object]] = [
    lambda at: at.do(Delete("a")),
    lambda at: at.do(Set("a", b"newer")),
    lambda at: at.do(Increment("a")),
    lambda at: at.shard.delete_many(["a"]),
    lambda at: at.shard.set_many([("a", b"newer", 0, 0)], with_changes=False),
    lambda at: at.shard.merge(Change("a", at.shard.reading(), None)),
    lambda at: at.shard.merge(Change("a", at.shard.reading(), Entry(b"newer", at.shard.reading(), 0))),
    lambda at: at.shard.fence(Fence(Kind.TAG, "t", at.shard.reading())),
    lambda at: at.shard.fence(Fence(Kind.PREFIX, "", at.shard.reading())),
]


@pytest.mark.parametrize("voiding", VOIDING)
def test_what_was_loaded_before_a_write_or_an_invalidation_is_refused(
    at: Fixture, voiding: Callable[[Fixture], object]
) -> None:
    token = at.token()
    voiding(at)
    before = at.shard.change("a")
    refused = at.set(b"loaded before", lease_token=token, tags=("t",))
    assert (refused.stored, refused.reason) == (False, NotStored.LEASE_VOID)
    assert at.shard.change("a") == before


@pytest.mark.parametrize("voiding", VOIDING[-2:])
def test_after_an_invalidation_of_what_is_being_loaded_the_next_caller_loads(
    at: Fixture, voiding: Callable[[Fixture], object]
) -> None:
    token = at.token()
    voiding(at)
    at.set(b"loaded before", lease_token=token, tags=("t",))
    assert at.set(b"loaded after", lease_token=at.token(), tags=("t",)).stored


def test_a_fill_whose_condition_fails_ends_the_lease(at: Fixture) -> None:
    token = at.token()
    refused = at.set(lease_token=token, if_present=True)
    assert refused.reason is NotStored.CONDITION
    assert at.token()


def test_a_stale_entry_is_served_while_one_caller_loads(at: Fixture) -> None:
    at.set(b"old", ttl_ms=1_000, stale_ms=500)
    at.clock.advance(1_200)
    first, second = at.read(), at.read()
    assert [read.outcome for read in (first, second)] == [GetOutcome.STALE, GetOutcome.STALE]
    assert [read.value for read in (first, second)] == [b"old", b"old"]
    assert first.lease is not None
    assert second.lease is None
    assert at.set(b"new", lease_token=first.lease.token).stored
    assert at.read().value == b"new"


def test_an_entry_kept_for_errors_is_missing_until_its_load_fails(at: Fixture) -> None:
    at.set(b"old", ttl_ms=1_000, stale_if_error_ms=60_000)
    at.clock.advance(2_000)
    assert at.shard.get(Get("a")).outcome is GetOutcome.MISS
    assert [store.stats.hits for store in at.shard.store.parts.values()] == [0]
    token = at.token()
    assert at.read().is_awaited
    released = at.release(token, "the database is down")
    assert released.released
    assert released.fallback is not None
    assert (released.fallback.outcome, released.fallback.value) == (GetOutcome.STALE, b"old")
    waiting = at.read()
    assert (waiting.outcome, waiting.value, waiting.lease) == (GetOutcome.STALE, b"old", None)
    assert waiting.load_failure == Failure("the database is down", FIRST_PAUSE_MS)
    assert at.shard.get(Get("a")).outcome is GetOutcome.MISS


def test_what_is_kept_for_errors_is_no_entry_to_conditions(at: Fixture) -> None:
    at.set(ttl_ms=1_000, stale_if_error_ms=60_000)
    at.clock.advance(1_000)
    assert at.set(if_present=True).reason is NotStored.CONDITION
    assert at.do(Touch("a", 5_000)) == TouchResult(False)
    assert at.set(b"new", if_absent=True).stored


def test_the_second_failure_in_a_row_keeps_everybody_from_loading_for_a_while(at: Fixture) -> None:
    at.release(at.token(), "first")
    assert at.read().load_failure == Failure("first", FIRST_PAUSE_MS)
    at.clock.advance(FIRST_PAUSE_MS)
    at.release(at.token(), "second")
    failed = at.read()
    assert (failed.outcome, failed.load_failure) == (GetOutcome.MISS, Failure("second", RETRY_MS))
    assert not failed.is_awaited
    tokens = 0
    for _ in range(10 * RETRY_MS // 100):
        at.clock.advance(100)
        lease = at.read().lease
        if lease is not None:
            tokens += 1
            at.release(lease.token, "again")
    assert tokens == 10
    at.clock.advance(RETRY_MS)
    assert at.set(lease_token=at.token(), ttl_ms=1_000).stored
    at.clock.advance(1_000)
    at.release(at.token(), "once")
    assert at.read().load_failure == Failure("once", FIRST_PAUSE_MS)


def test_a_lost_loaders_lease_is_given_on_though_the_clock_moves_on_meanwhile() -> None:
    clock = ManualClock()

    class Ticking:
        wall_ms = clock.wall_ms

        def now_ms(self) -> int:
            clock.advance(1)
            return clock.now_ms()

    leases = Leases(Ticking(), Random(1))
    leases.take("k", lambda: 1, LEASE_MS, RETRY_MS)
    clock.advance(LEASE_MS)
    assert isinstance(leases.take("k", lambda: 2, LEASE_MS, RETRY_MS), Lease)


def test_loaders_that_are_lost_again_and_again_count_as_failures(at: Fixture) -> None:
    at.token()
    at.clock.advance(LEASE_MS)
    at.token()
    at.clock.advance(LEASE_MS)
    assert at.read().load_failure == Failure("", RETRY_MS)
    assert at.shard.leases.stats.failed == 2


def test_a_load_that_is_given_up_is_the_next_callers(at: Fixture) -> None:
    token = at.token()
    assert at.release(token).released
    assert at.release(token).released is False
    assert at.token() != token


def test_somebody_elses_lease_is_not_released(at: Fixture) -> None:
    at.token()
    assert at.release(b"no token", "error") == ReleaseResult(False)
    assert at.read().is_awaited


def test_known_absence_is_an_answer_with_its_own_time_to_live(at: Fixture) -> None:
    assert at.set(b"", lease_token=at.token(), absent=True).stored
    found = at.read()
    assert (found.outcome, found.value, found.ttl_ms) == (GetOutcome.ABSENT, b"", 400)
    assert at.set(if_present=True).reason is NotStored.CONDITION
    assert at.do(Touch("a", 5_000)) == TouchResult(False)
    at.clock.advance(400)
    assert at.read().outcome is GetOutcome.MISS


def test_known_absence_gives_way(at: Fixture) -> None:
    at.set(b"", absent=True, ttl_ms=10_000)
    assert at.set(b"created", if_absent=True).stored
    at.set(b"", absent=True, ttl_ms=10_000)
    removed = at.do(Delete("a"))
    assert isinstance(removed, DeleteResult)
    assert removed.outcome is DeleteOutcome.NOT_FOUND
    assert at.read().outcome is GetOutcome.MISS


def test_absence_is_never_stale() -> None:
    at = Fixture(NamespacePolicy(stale_ms=1_000, stale_if_error_ms=1_000))
    at.set(b"", absent=True, ttl_ms=100)
    at.clock.advance(100)
    assert at.read().outcome is GetOutcome.MISS
    assert at.shard.store.peek("a", at.clock.now_ms()) is None


def test_absence_without_time_to_live_is_not_kept() -> None:
    at = Fixture(NamespacePolicy(absent_ttl_ms=0))
    assert at.set(b"", lease_token=at.token(), absent=True).reason is NotStored.NO_TTL
    assert at.token()


def test_the_namespace_says_how_long_entries_are_stale_and_kept() -> None:
    at = Fixture(NamespacePolicy(stale_ms=100, stale_if_error_ms=300))
    at.set(ttl_ms=1_000)
    at.shard.set_many([("b", b"v", 1_000, 0)], with_changes=False)
    at.clock.advance(1_000)
    reads = at.shard.get_many(["a", "b"])
    assert reads.outcomes == [GetOutcome.STALE] * 2
    at.clock.advance(100)
    assert at.shard.get_many(["a", "b"]).outcomes == [GetOutcome.MISS] * 2
    assert at.shard.get_many(["a", "b"]).values == [b"", b""]
    for key in ("a", "b"):
        lease = at.read(key).lease
        assert lease is not None
        at.do(Release(key, lease.token, "down"))
    failed = at.shard.get_many(["a", "b"], lease=True)
    assert failed.outcomes == [GetOutcome.STALE] * 2
    assert failed.values == [b"v", b"v"]
    assert failed.load_failures[1] == Failure("down", FIRST_PAUSE_MS)


def test_columns_say_what_single_reads_say(at: Fixture) -> None:
    at.set(b"fresh")
    at.do(Set("stale", b"old", ttl_ms=10, stale_ms=1_000))
    at.do(Set("absent", b"", ttl_ms=1_000, absent=True))
    at.read("held")
    at.clock.advance(10)
    keys = ["a", "stale", "absent", "held", "missing"]
    columns = at.shard.get_many(keys, lease=True)
    for key in ("stale", "missing"):
        at.do(Release(key, columns.leases[keys.index(key)].token))
    singles = Reads.of([at.read(key) for key in keys])
    assert columns.outcomes == singles.outcomes == [1, 3, 4, 2, 2]
    assert columns.values == singles.values
    assert columns.versions == singles.versions
    assert columns.ttl_ms == singles.ttl_ms
    assert columns.leases.keys() == singles.leases.keys() == {1, 4}


def test_a_value_that_is_slow_to_load_is_loaded_before_it_expires() -> None:
    """XFetch: among reads at the time t before expiry a lease is given with the probability e^(-t / load)."""
    at = Fixture(NamespacePolicy(early_refresh=1.0))
    at.set(b"v", ttl_ms=100_000, load_ms=1_000)
    at.clock.advance(98_000)
    given = 0
    for _ in range(4_000):
        found = at.read()
        assert found.outcome is GetOutcome.HIT
        if found.lease is not None:
            given += 1
            at.release(found.lease.token)
    assert given / 4_000 == pytest.approx(math.exp(-2), rel=0.2)
    assert at.shard.leases.stats.early == given


def test_early_refresh_can_be_switched_off_and_needs_to_know_the_load_time() -> None:
    for policy, load_ms in ((NamespacePolicy(early_refresh=0), 50_000), (NamespacePolicy(), 0)):
        at = Fixture(policy)
        at.set(b"v", ttl_ms=1_000, load_ms=load_ms)
        at.clock.advance(999)
        assert all(at.read().lease is None for _ in range(100))


def test_a_failed_early_load_does_not_spoil_the_fresh_entry() -> None:
    at = Fixture(NamespacePolicy(early_refresh=100))
    at.set(b"v", ttl_ms=1_000, load_ms=1_000)
    at.release(at.token(), "down")
    found = at.read()
    assert (found.outcome, found.load_failure, found.lease) == (GetOutcome.HIT, None, None)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "MAX_LEASES", 10)
    leases = Leases(ManualClock(), Random(1))
    given = [leases.take(f"k{number}", lambda: 1, LEASE_MS, RETRY_MS) for number in range(12)]
    assert leases.held == 10
    assert isinstance(given[0], Lease)
    assert not leases.is_held_with("k0", given[0].token)
    for number in range(12, 12 + leases_module.MAX_FAILURES + 5):
        lease = leases.take(f"k{number}", lambda: 1, LEASE_MS, RETRY_MS)
        assert isinstance(lease, Lease)
        leases.release(f"k{number}", lease.token, "down", RETRY_MS)
    assert len(leases._failed) == leases_module.MAX_FAILURES


class LoadersBesideModel(RuleBasedStateMachine):
    """One key, loaders who read the origin when they are given the lease and fill later, and writers who
    change the origin and then remove, write or invalidate what is cached."""

    def __init__(self) -> None:
        super().__init__()
        self.at = Fixture()
        self.origin = 0
        self.loading: list[tuple[bytes, int]] = []
        """Token, and what was loaded."""

    @rule()
    def read(self) -> None:
        found = self.at.read()
        if found.lease is not None:
            assert found.outcome is not GetOutcome.HIT
            self.loading.append((found.lease.token, self.origin))
        if found.outcome is GetOutcome.HIT:
            assert int(found.value) == self.origin

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        token, value = self.loading.pop(data.draw(st.integers(0, len(self.loading) - 1)))
        stored = self.at.set(str(value).encode(), lease_token=token, ttl_ms=2_000, stale_ms=500, tags=("t",))
        assert not stored.stored or value == self.origin

    @precondition(lambda self: self.loading)
    @rule(error=st.sampled_from(["", "down"]))
    def fail(self, error: str) -> None:
        self.at.release(self.loading.pop()[0], error)

    @rule(how=st.sampled_from(["delete", "set", "tag", "prefix"]))
    def change(self, how: str) -> None:
        self.origin += 1
        shard = self.at.shard
        if how == "delete":
            self.at.do(Delete("a"))
        elif how == "set":
            self.at.set(str(self.origin).encode(), ttl_ms=2_000)
        else:
            kind, pattern = (Kind.TAG, "t") if how == "tag" else (Kind.PREFIX, "a")
            fence = Fence(kind, pattern, shard.reading())
            shard.fence(fence)
            list(
                shard.store.invalidate_prefix("a", fence.version)
                if how == "prefix"
                else shard.store.invalidate_tag("t", fence.version)
            )
            if how == "tag" and shard.holds("a"):
                # A plain write, without the tag, stays.
                self.at.do(Delete("a"))

    @rule(ms=st.sampled_from([100, 600, 2_000, LEASE_MS]))
    def wait(self, ms: int) -> None:
        self.at.clock.advance(ms)

    @invariant()
    def at_most_one_token_is_good(self) -> None:
        good = [token for token, _ in self.loading if self.at.shard.leases.is_held_with("a", token)]
        assert len(good) <= 1


def test_no_old_value_is_ever_filled_in() -> None:
    run_state_machine_as_test(
        LoadersBesideModel, settings=settings(max_examples=150, stateful_step_count=30, deadline=None)
    )
