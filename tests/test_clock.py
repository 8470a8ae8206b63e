from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.clock import LOGICAL_BITS, MAX_AHEAD_MS, HybridLogicalClock, ManualClock, SystemClock


@given(st.lists(st.one_of(st.integers(-5_000, 5_000), st.none()), max_size=50))
def test_versions_grow_whatever_the_wall_clock_does(jumps: list[int | None]) -> None:
    clock = ManualClock()
    versions = HybridLogicalClock(clock)
    last = 0
    for jump in jumps:
        if jump is not None:
            clock.jump_wall(jump)
        version = versions.next()
        assert version > last
        last = version


def test_versions_are_close_to_the_wall_clock() -> None:
    clock = ManualClock()
    assert HybridLogicalClock(clock).next() >> LOGICAL_BITS == clock.wall_ms()


def test_versions_follow_those_observed() -> None:
    clock = ManualClock()
    versions = HybridLogicalClock(clock)
    elsewhere = (clock.wall_ms() + MAX_AHEAD_MS) << LOGICAL_BITS
    versions.observe(elsewhere)
    assert versions.next() == elsewhere + 1


def test_a_broken_clock_elsewhere_is_not_followed_but_its_writes_are_outdone() -> None:
    clock = ManualClock()
    versions = HybridLogicalClock(clock)
    broken = (clock.wall_ms() + MAX_AHEAD_MS + 1) << LOGICAL_BITS
    versions.observe(broken)
    assert versions.next() < broken
    assert versions.next(after=broken) == broken + 1
    assert versions.next() < broken


def test_manual_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1)


def test_system_clock_moves() -> None:
    clock = SystemClock()
    earlier = clock.now_ms()
    while clock.now_ms() == earlier:
        pass
    assert clock.wall_ms() > 1_600_000_000_000
