from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cacheservice.store import (
    Entry,
    Freshness,
    freshness,
    is_absent,
    is_fresh_for_loads,
    load_ms_of,
    pack,
    ttl_of,
    unpack,
    value_of,
    version_of,
)
from cacheservice.store.entry import FLAGS, MAX_TIME, dead_at, dead_before, tags_of

NEVER = 2**64 - 1
TIMES = st.integers(0, 2**63 - 1)
TAGS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
ENTRIES = st.builds(
    Entry,
    value=st.binary(max_size=64),
    version=st.integers(0, 2**64 - 1),
    created=st.integers(-(2**62), 2**62),
    expires=TIMES,
    stale_ms=st.integers(0, 2**50),
    load_ms=st.integers(0, 2**50),
    tags=st.lists(TAGS).map(tuple),
    stale_if_error_ms=st.integers(0, 2**50),
    absent=st.booleans(),
)
NEAR = st.integers(1, 300)
"""Times whose comparison may go wrong at the border of a byte."""


@given(ENTRIES)
def test_packing_loses_nothing(entry: Entry) -> None:
    packed = pack(entry)
    assert unpack(packed) == entry
    assert version_of(packed) == entry.version
    assert tags_of(packed) == entry.tags
    assert dead_at(packed) == (entry.expires + entry.kept_ms if entry.expires else NEVER)
    assert is_absent(packed) is entry.absent
    assert load_ms_of(packed) == entry.load_ms
    assert value_of(packed) == entry.value


@given(ENTRIES, st.one_of(NEAR, TIMES))
def test_one_comparison_tells_the_dead_from_the_living(entry: Entry, time: int) -> None:
    packed = pack(entry)
    assert (packed < dead_before(time)) is (dead_at(packed) < time)


@given(value=st.binary(max_size=3), expires=NEAR, stale_ms=st.integers(0, 3))
def test_an_entry_dies_at_the_end_of_its_stale_window_to_the_millisecond(
    value: bytes, expires: int, stale_ms: int
) -> None:
    packed = pack(Entry(value, 1, 0, expires, stale_ms))
    assert not packed < dead_before(expires + stale_ms)
    assert packed < dead_before(expires + stale_ms + 1)


@pytest.mark.parametrize(
    ("stale_ms", "stale_if_error_ms", "expected"),
    [
        (0, 5, "FFKKKKK"),
        (5, 0, "FFSSSSS"),
        (2, 5, "FFSSKKK"),
        (5, 2, "FFSSSSS"),
    ],
)
def test_an_entry_is_fresh_then_stale_then_kept(stale_ms: int, stale_if_error_ms: int, expected: str) -> None:
    packed = pack(Entry(b"v", 1, 0, 2, stale_ms, stale_if_error_ms=stale_if_error_ms))
    assert dead_at(packed) == 7
    assert "".join(freshness(packed, now).name[0] for now in range(7)) == expected
    assert [ttl_of(packed, now) for now in range(7)] == [2, 1, 0, 0, 0, 0, 0]


@given(
    entry=st.builds(
        Entry,
        st.just(b"v"),
        st.just(1),
        st.just(0),
        st.integers(0, 50),
        st.integers(0, 5),
        st.integers(1, 9),
        st.just(()),
        st.integers(0, 5),
        st.booleans(),
    ),
    now=st.integers(0, 60),
    loads=st.integers(0, 5),
)
def test_what_is_fresh_for_some_loads(entry: Entry, now: int, loads: int) -> None:
    packed = pack(entry)
    is_alive = not entry.expires or now < entry.expires + entry.kept_ms
    assume(is_alive)
    is_far = not entry.expires or ttl_of(packed, now) > loads * entry.load_ms
    is_value = freshness(packed, now) is Freshness.FRESH and not entry.absent
    assert is_fresh_for_loads(packed, now, loads) == (is_far and is_value)


def test_what_never_expires_is_always_fresh() -> None:
    packed = pack(Entry(b"v", 1, 0, 0, 5, stale_if_error_ms=5))
    assert freshness(packed, MAX_TIME) is Freshness.FRESH
    assert ttl_of(packed, MAX_TIME) == 0


def test_what_never_expires_is_not_dead_at_the_last_moment_there_is() -> None:
    for entry in (Entry(b"", 1, 0), Entry(b"", 1, 0, stale_ms=50, tags=("a",))):
        assert not pack(entry) < dead_before(MAX_TIME)
        assert unpack(pack(entry)) == entry


def test_the_latest_times_do_not_overflow() -> None:
    entry = Entry(b"", 1, 0, expires=MAX_TIME, stale_ms=MAX_TIME - 2)
    assert unpack(pack(entry)) == entry


@pytest.mark.parametrize("value", [b"", b"\xff" * 9, b"x" * 100])
def test_a_plain_entry_costs_25_bytes_beside_its_value(value: bytes) -> None:
    packed = pack(Entry(value, 1, 2, 3))
    assert len(packed) == 25 + len(value)
    assert packed[FLAGS] == 0


def test_freshness() -> None:
    entry = Entry(b"", 1, created=0, expires=100, stale_ms=50)
    assert entry.is_fresh(99)
    assert not entry.is_fresh(100)
    assert Entry(b"", 1, created=0, stale_ms=50).is_fresh(10**15)
