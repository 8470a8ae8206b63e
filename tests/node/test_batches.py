"""Batches as columns must have the outcomes of the same operations one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.clock import LOGICAL_BITS, MAX_AHEAD_MS
from cacheservice.errors import EntryTooLarge, NoOwnerReachable
from cacheservice.node.batches import Batches
from cacheservice.node.columns import Reads, Removals, Writes
from cacheservice.node.operations import Answer, Change, Delete, Get, GetOutcome, Operation, Set
from cacheservice.node.spread_batches import there
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember
from cacheservice.store import Entry
from tests.node.test_node import NAMES, RING, TIMEOUT_MS, Cluster, key_owned_by, outsider

KEYS = [key_owned_by(first, second) for first in NAMES for second in NAMES if first != second]

operations = st.lists(
    st.tuples(st.sampled_from(["get", "near", "set", "delete"]), st.lists(st.sampled_from(KEYS), min_size=1)),
    max_size=12,
)


async def by_columns(batches: Batches, kind: str, keys: list[str], value: bytes) -> Any:
    match kind:
        case "get":
            return await there(batches.get(keys, TIMEOUT_MS))
        case "near":
            return await there(batches.get(keys, TIMEOUT_MS, nearest=True))
        case "set":
            return await there(batches.set(keys, [value] * len(keys), [60_000], [], TIMEOUT_MS))
        case _:
            return await there(batches.delete(keys, TIMEOUT_MS))


def one_by_one(kind: str, key: str, value: bytes) -> Operation:
    match kind:
        case "get":
            return Get(key)
        case "near":
            return Get(key, nearest=True)
        case "set":
            return Set(key, value, 60_000)
        case _:
            return Delete(key)


def columns(kind: str, answers: list[Answer]) -> Reads | Writes | Removals:
    match kind:
        case "get" | "near":
            return Reads.of(answers)
        case "set":
            return Writes.of(answers)
        case _:
            return Removals.of(answers)


@given(steps=operations, names=st.sampled_from([NAMES[:1], NAMES[:2], NAMES]))
async def test_as_one_by_one(steps: list[tuple[str, list[str]]], names: tuple[str, ...]) -> None:
    ring = Ring([RingMember(name) for name in names])
    in_columns, singly = Cluster(*names, ring=ring), Cluster(*names, ring=ring)
    batches = Batches(in_columns.nodes[names[0]])
    for number, (kind, keys) in enumerate(steps):
        value = str(number).encode()
        got = await by_columns(batches, kind, keys, value)
        answers = [await singly.one(names[0], one_by_one(kind, key, value)) for key in keys]
        expected = columns(kind, answers)
        # Both give versions in the order of the writes, but not the same ones.
        if not isinstance(got, Reads):
            got.versions = expected.versions = []
        else:
            got.versions = expected.versions = None
        assert got == expected
        assert [in_columns.holders(key) for key in keys] == [singly.holders(key) for key in keys]


async def test_own_keys_are_done_before_the_method_returns() -> None:
    cluster = Cluster()
    batches = Batches(cluster.nodes["n1"])
    own = [key_owned_by("n1", other) for other in ("n2", "n3")]
    writing: Any = batches.set(own, [b"1", b"2"], [], [], TIMEOUT_MS)
    reading = batches.get(own, TIMEOUT_MS, values_only=True)
    assert reading == Reads([GetOutcome.HIT] * 2, [b"1", b"2"])
    written = await there(writing)
    assert written.replicas == [2, 2]
    removing: Any = batches.delete(own, TIMEOUT_MS)
    gone = batches.get(own, TIMEOUT_MS)
    assert gone == Reads([GetOutcome.MISS] * 2, [b""] * 2, [0, 0], [0, 0])
    assert min((await there(removing)).versions) > max(written.versions)


async def test_a_key_that_is_written_twice_has_two_versions_even_after_a_clock_far_ahead() -> None:
    cluster = Cluster("n1", ring=Ring([RingMember("n1")]))
    shard = cluster.nodes["n1"].shard
    ahead = cluster.clock.wall_ms() + 10 * MAX_AHEAD_MS << LOGICAL_BITS
    shard.merge(Change("k", ahead, Entry(b"v", ahead, 0)))
    written = await there(Batches(cluster.nodes["n1"]).set(["k", "k"], [b"1", b"2"], [], [], TIMEOUT_MS))
    assert written.versions == [ahead + 1, ahead + 2]


async def test_replicas_that_are_down_are_hinted() -> None:
    cluster = Cluster()
    cluster.down.add("n2")
    key = key_owned_by("n1", "n2")
    written = await there(Batches(cluster.nodes["n1"]).set([key], [b"v"], [], [], TIMEOUT_MS))
    assert written.replicas == [2], "another node stands in"
    assert len(cluster.nodes["n1"].owner.replicator.hints) == 1


async def test_each_key_has_its_own_error() -> None:
    cluster = Cluster()
    batches = Batches(cluster.nodes["n1"])
    small, large = key_owned_by("n1", "n2"), key_owned_by("n1", "n3")
    written = await there(batches.set([small, large], [b"v", bytes(1 << 17)], [], [], TIMEOUT_MS))
    assert (written.replicas, written.versions[1]) == ([2, 0], 0)
    assert {row: type(error) for row, error in written.errors.items()} == {1: EntryTooLarge}
    cluster.down.update(NAMES[1:])
    lost = key_owned_by("n2", "n3")
    for result in (
        await there(batches.get([small, lost], TIMEOUT_MS)),
        await there(batches.set([small, lost], [b"v", b"v"], [], [], TIMEOUT_MS)),
        await there(batches.delete([small, lost], TIMEOUT_MS)),
    ):
        assert {row: type(error) for row, error in result.errors.items()} == {1: NoOwnerReachable}


@pytest.mark.parametrize("refused", [{0}, {1, 2}, {0, 3}, {3, 4}])
def test_refused_rows_come_back_to_their_places(refused: set[int]) -> None:
    error, other = EntryTooLarge("refused"), EntryTooLarge("failed")
    rows = iter(range(1, 4))
    places = [None if row in refused else next(rows, None) for row in range(3 + len(refused))]
    columns = [b"1", b"2", b"3"], [1, 2, 3], [1, 2, 3]
    reads = Reads([1, 2, 3], *columns, {1: other}, [True] * 3).with_refused(dict.fromkeys(refused, error))
    assert reads.outcomes == reads.versions == reads.ttl_ms == [place or 0 for place in places]
    assert reads.values == [str(place).encode() if place else b"" for place in places]
    assert reads.from_replica == [bool(place) for place in places]
    assert reads.errors == dict.fromkeys(refused, error) | {places.index(2): other}
    writes = Writes([1, 2, 3], [1, 2, 3]).with_refused(dict.fromkeys(refused, error))
    removals = Removals([1, 2, 3], [1, 2, 3]).with_refused(dict.fromkeys(refused, error))
    assert writes.versions == writes.replicas == removals.outcomes == removals.versions == reads.outcomes


async def test_keys_of_others_are_forwarded() -> None:
    cluster = Cluster()
    key = key_owned_by("n2", "n3")
    batches = Batches(cluster.nodes[outsider(key)])
    assert (await there(batches.set([key], [b"v"], [], [], TIMEOUT_MS))).replicas == [2]
    assert (await there(batches.get([key], TIMEOUT_MS, values_only=True))) == Reads([GetOutcome.HIT], [b"v"])


async def test_a_batch_goes_out_in_one_call_to_each_owner() -> None:
    cluster = Cluster()
    batches = Batches(cluster.nodes["n1"])
    keys = [f"k{number}" for number in range(100)]
    written = await there(batches.set(keys, [key.encode() for key in keys], [], [], TIMEOUT_MS))
    assert written.replicas == [2] * 100
    cluster.calls.clear()
    found = await there(batches.get(keys, TIMEOUT_MS))
    assert found.values == [key.encode() for key in keys]
    assert found.versions == written.versions
    assert sorted(target for _, target, _ in cluster.calls) == ["n2", "n3", "n4"]
    others = sum(RING.owners(key, 1) != ("n1",) for key in keys)
    assert cluster.nodes["n1"].stats.forwarded == 2 * others


@pytest.mark.parametrize("fault", ["down", "mute"])
async def test_the_next_owner_does_what_the_first_one_does_not_answer(fault: str) -> None:
    cluster = Cluster()
    batches = Batches(cluster.nodes["n1"])
    keys = [key_owned_by("n2", "n3"), key_owned_by("n1", "n2"), key_owned_by("n3", "n4")]
    await there(batches.set(keys, [b"1"] * 3, [], [], TIMEOUT_MS))
    getattr(cluster, fault).add("n2")
    assert (await there(batches.get(keys, TIMEOUT_MS, values_only=True))).values == [b"1"] * 3
    written = await there(batches.set(keys, [b"2"] * 3, [], [], TIMEOUT_MS))
    assert (written.errors, min(written.replicas) > 0) == ({}, True)
    assert (await there(batches.get(keys, TIMEOUT_MS, values_only=True))).values == [b"2"] * 3
    assert set(cluster.reported) == {"n2"}


async def test_what_a_node_with_another_ring_refuses_goes_on_one_by_one() -> None:
    cluster = Cluster()
    key = key_owned_by("n2", "n3")
    cluster.nodes["n2"].set_view(View(Ring([RingMember("n3"), RingMember("n4")])))
    batches = Batches(cluster.nodes["n1"])
    written = await there(batches.set([key], [b"v"], [], [], TIMEOUT_MS))
    assert written.errors == {}
    cluster.calls.clear()
    found = await there(batches.get([key], TIMEOUT_MS, values_only=True))
    assert (found.values, found.errors) == ([b"v"], {})
    assert [target for _, target, _ in cluster.calls if target == "n2"] == ["n2"] * 2
    assert cluster.reported == []
