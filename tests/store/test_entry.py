from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cacheservice.store.entry import Entry, dead_at, pack, unpack

TIMES = st.integers(0, 2**63)
ENTRIES = st.builds(
    Entry,
    value=st.binary(max_size=64),
    version=st.integers(0, 2**64 - 1),
    created=st.integers(-(2**62), 2**62),
    expires=TIMES,
    stale_ms=st.integers(0, 2**50),
    load_ms=st.integers(0, 2**50),
    tags=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)).map(
        tuple
    ),
)


@given(ENTRIES)
def test_packing_loses_nothing(entry: Entry) -> None:
    packed = pack(entry)
    assert unpack(packed) == entry
    assert dead_at(packed) == entry.dead_at


def test_a_plain_entry_costs_25_bytes_beside_its_value() -> None:
    assert len(pack(Entry(b"x" * 100, 1, 2, 3))) == 125


def test_freshness() -> None:
    entry = Entry(b"", 1, created=0, expires=100, stale_ms=50)
    assert entry.is_fresh(99)
    assert not entry.is_fresh(100)
    assert entry.dead_at == 150
    for_ever = Entry(b"", 1, created=0, stale_ms=50)
    assert for_ever.is_fresh(10**15)
    assert for_ever.dead_at == 0
