from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cacheservice.store import Entry, pack
from cacheservice.store.entry import dead_at
from cacheservice.store.expiry import HORIZON_MS, REFRESH_MS, TICK_MS, NearExpiry

KEYS = st.sampled_from("abcdefgh")
LIFETIMES = st.one_of(st.integers(-5_000, 10_000), st.integers(0, 3 * HORIZON_MS))


class ExpiryAgainstDict(RuleBasedStateMachine):
    """The index beside a dict of what its segment holds, told about changes as a segment would."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100_000
        self.index = NearExpiry(self.now)
        self.held: dict[str, bytes] = {}

    @rule(key=KEYS, lifetime=LIFETIMES)
    def write(self, key: str, lifetime: int) -> None:
        self.remove(key)
        packed = pack(Entry(b"", 1, 0, self.now + lifetime))
        if packed < self.index.limit:
            self.index.add(key, packed)
        self.held[key] = packed

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        packed = self.held.pop(key, None)
        if packed is not None and packed < self.index.limit:
            self.index.remove(key, packed)

    @rule(ms=st.one_of(st.integers(0, 5_000), st.integers(0, 2 * HORIZON_MS)))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule()
    def refresh(self) -> None:
        self.index.refresh(self.held.items(), self.now)
        assert self.now + HORIZON_MS - TICK_MS < self.index.horizon <= self.now + HORIZON_MS
        assert not self.index.is_outdated(self.now)

    @rule(limit=st.integers(1, 10))
    def due(self, limit: int) -> None:
        overdue = self.overdue()
        keys = self.index.take_due(self.now, limit)
        assert len(keys) == len(set(keys)) == min(limit, len(overdue))
        assert set(keys) <= overdue
        for key in keys:
            self.remove(key)

    @rule()
    def remove_what_is_due(self) -> None:
        overdue = self.overdue()
        assert set(self.index.take_due(self.now, 100)) == overdue
        for key in overdue:
            self.remove(key)
        assert self.index.take_due(self.now, 100) == []

    @invariant()
    def knows_when_it_is_outdated(self) -> None:
        assert self.index.is_outdated(self.now) is (self.index.horizon - self.now <= REFRESH_MS)

    def overdue(self) -> set[str]:
        """What is noted, and died in a tick that is over."""
        end_of_last_tick = self.now // TICK_MS * TICK_MS
        limit = min(end_of_last_tick, self.index.horizon)
        return {key for key, packed in self.held.items() if dead_at(packed) < limit}


ExpiryAgainstDict.TestCase.settings = settings(max_examples=100)
TestExpiryAgainstDict = ExpiryAgainstDict.TestCase


def test_what_dies_in_the_tick_of_the_horizon_waits_for_the_next_refresh() -> None:
    index = NearExpiry(0)
    last, first_beyond = (pack(Entry(b"", 1, 0, expires)) for expires in (HORIZON_MS - 1, HORIZON_MS))
    assert last < index.limit
    assert not first_beyond < index.limit
    index.refresh([("last", last), ("beyond", first_beyond)], now=0)
    assert index.take_due(2 * HORIZON_MS, 10) == ["last"]
    index.refresh([("last", last), ("beyond", first_beyond)], now=TICK_MS)
    assert index.take_due(2 * HORIZON_MS, 10) == ["last", "beyond"]
