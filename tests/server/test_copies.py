"""Copies of entries on their way between nodes."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.errors import InvalidArgument
from cacheservice.node.operations import Change
from cacheservice.server import copies
from cacheservice.server.decode import MAX_AGE_MS, MAX_VERSION, Bounds
from cacheservice.store import Entry
from cacheservice.v1 import peer_pb2

NOW = 1_000_000
OTHER = peer_pb2.ReplicaEntry(key="a", version=1)
BOUNDS = Bounds(64, 2)
VERSIONS = st.integers(1, MAX_VERSION)
WINDOWS = st.sampled_from([0, 0, 0, 500, 5_000])
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=300).filter(
    lambda key: len(key.encode()) <= 1_024
)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    version = draw(VERSIONS)
    if draw(st.integers(0, 4)) == 0:
        return Change(draw(KEYS), version, None)
    entry = Entry(
        draw(st.binary(max_size=64)),
        version,
        created=NOW - draw(st.integers(0, 10_000)),
        expires=draw(st.sampled_from([0, 0, NOW - 100, NOW, NOW + 1, NOW + 60_000])),
        stale_ms=draw(WINDOWS),
        load_ms=draw(WINDOWS),
        tags=draw(st.sampled_from([(), (), ("a", "b")])),
        stale_if_error_ms=draw(WINDOWS),
        absent=draw(st.integers(0, 9)) == 0,
    )
    return Change(draw(KEYS), version, entry)


def expected(change: Change, later_ms: int) -> Change:
    """What arrives so much later, on a clock that shows the same: durations count from receipt."""
    entry = change.entry
    if entry is None or not entry.expires or entry.expires > NOW:
        shift = later_ms
    else:
        # It is stale already; what is left of its windows counts from now.
        past = NOW - entry.expires
        stale_ms, kept_ms = max(0, entry.stale_ms - past), max(0, entry.stale_if_error_ms - past)
        entry = replace(entry, expires=NOW, stale_ms=stale_ms, stale_if_error_ms=kept_ms)
        shift = later_ms
    if entry is not None:
        expires = entry.expires + shift if entry.expires else 0
        entry = replace(entry, created=entry.created + shift, expires=expires)
    return replace(change, entry=entry)


def sent(some: list[Change]) -> peer_pb2.Copies:
    message = peer_pb2.Copies()
    copies.fill(message, some, NOW)
    return peer_pb2.Copies.FromString(message.SerializeToString())


@given(st.lists(changes(), max_size=20), st.integers(0, 1_000))
def test_what_is_sent_arrives_in_its_order(some: list[Change], later_ms: int) -> None:
    message = sent(some)
    assert copies.size_of(message) == len(some)
    arrived = copies.from_proto(message, NOW + later_ms, BOUNDS)
    assert arrived == [expected(change, later_ms) for change in some]


def plain(number: int, value: bytes = b"v") -> Change:
    return Change(f"k{number}", number, Entry(value, number, NOW))


def test_plain_entries_are_columns_without_what_all_lack() -> None:
    message = sent([plain(1), plain(2)])
    assert (list(message.keys), list(message.versions), len(message.others)) == (["k1", "k2"], [1, 2], 0)
    assert (len(message.ttl_ms), len(message.age_ms)) == (0, 0)


@pytest.mark.parametrize(
    "column",
    [{"versions": [0, 5]}, {"versions": [MAX_VERSION + 1, 5]}, {"values": [b"v" * 65, b"v"]}]
    + [{"keys": [key, "k5"]} for key in ("", "k" * 1_025, "\u20ac" * 400)]
    + [{field: [MAX_AGE_MS + 1, 0]} for field in ("ttl_ms", "age_ms")],
)
def test_a_copy_out_of_bounds_is_left_out_and_the_others_are_taken(
    column: dict[str, list[object]], caplog: pytest.LogCaptureFixture
) -> None:
    columns: dict[str, object] = {"keys": ["k1", "k5"], "versions": [1, 5], "values": [b"v", b"v"], **column}
    other = peer_pb2.ReplicaEntry(key="", version=1)
    message = peer_pb2.Copies(**columns, others=[other], other_positions=[1])  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        arrived = copies.from_proto(message, NOW, BOUNDS)
    assert arrived == [None, None, plain(5)]
    assert caplog.text.count("a copy was refused") == 2


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (peer_pb2.Copies(keys=["a"], values=[b"v"]), "copies.versions"),
        (peer_pb2.Copies(keys=["a"], versions=[1]), "copies.values"),
        (peer_pb2.Copies(keys=["a"], versions=[1], values=[b"v"], ttl_ms=[1, 2]), "copies.ttl_ms"),
        (peer_pb2.Copies(versions=[1]), "copies.versions"),
        (peer_pb2.Copies(others=[OTHER]), "copies.other_positions"),
        (peer_pb2.Copies(others=[OTHER], other_positions=[1]), "copies.other_positions"),
        (peer_pb2.Copies(others=[OTHER, OTHER], other_positions=[1, 1]), "copies.other_positions"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(message: peer_pb2.Copies, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        copies.from_proto(message, NOW, BOUNDS)
    assert caught.value.metadata["field"] == field
