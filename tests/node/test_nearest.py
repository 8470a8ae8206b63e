"""Reads that a replica nearby may answer."""

from __future__ import annotations

import pytest

from cacheservice.node.batches import Batches
from cacheservice.node.columns import Reads
from cacheservice.node.later import Later
from cacheservice.node.node import NodeConfig
from cacheservice.node.operations import Answer, Get, GetOutcome, GetResult, Set
from cacheservice.node.spread_batches import there
from cacheservice.node.standing import DOUBT_MS, STILL_MS
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember
from tests.node.test_node import RING as WITHOUT_ZONES
from tests.node.test_node import TIMEOUT_MS, Cluster

ZONES = {"n1": "a", "n2": "b", "n3": "a", "n4": "b"}
RING = Ring([RingMember(name, zone) for name, zone in ZONES.items()])


def keys_of(*owners: str, ring: Ring = RING) -> list[str]:
    return [key for key in map(str, range(1_000)) if ring.owners(key, 2) == owners]


KEY = keys_of("n1", "n2")[0]
"""n1, its first owner, is in zone a; n2, its replica, and n4 are in zone b."""


@pytest.fixture
async def cluster() -> Cluster:
    made = Cluster(ring=RING)
    await made.one("n1", Set(KEY, b"v", ttl_ms=60_000))
    made.clock.advance(300)
    made.calls.clear()
    return made


def evict(cluster: Cluster, name: str, key: str) -> None:
    cluster.nodes[name].shard.store.delete(key)


def result(answer: Answer) -> GetResult:
    assert isinstance(answer, GetResult)
    return answer


async def test_a_replica_answers_without_asking_anybody(cluster: Cluster) -> None:
    found = result(await cluster.one("n2", Get(KEY, nearest=True)))
    assert found == GetResult(
        GetOutcome.HIT, b"v", found.version, 59_700, 300, "n2", hops=0, from_replica=True
    )
    assert cluster.calls == []


async def test_without_the_preference_the_first_owner_is_asked(cluster: Cluster) -> None:
    found = result(await cluster.one("n2", Get(KEY)))
    assert (found.served_by, found.hops, found.from_replica) == ("n1", 1, False)
    assert cluster.calls == [("n2", "n1", 1)]


async def test_a_node_that_is_no_owner_asks_the_one_in_its_zone(cluster: Cluster) -> None:
    for via, owner in (("n4", "n2"), ("n3", "n1")):
        cluster.calls.clear()
        found = result(await cluster.one(via, Get(KEY, nearest=True)))
        assert (found.value, found.served_by, found.hops) == (b"v", owner, 1)
        assert found.from_replica == (owner == "n2")
        assert cluster.calls == [(via, owner, 1)]


async def test_without_zones_a_node_that_is_no_owner_asks_the_first_one() -> None:
    cluster = Cluster()
    key = keys_of("n1", "n2", ring=WITHOUT_ZONES)[0]
    await cluster.one("n1", Set(key, b"v"))
    cluster.calls.clear()
    assert result(await cluster.one("n2", Get(key, nearest=True))).served_by == "n2"
    assert result(await cluster.one("n4", Get(key, nearest=True))).served_by == "n1"
    assert cluster.calls == [("n4", "n1", 1)]


async def test_a_replica_that_lacks_the_entry_asks_the_first_owner(cluster: Cluster) -> None:
    evict(cluster, "n2", KEY)
    for via, hops in (("n2", 1), ("n4", 2)):
        found = result(await cluster.one(via, Get(KEY, nearest=True)))
        assert (found.value, found.served_by, found.hops, found.from_replica) == (b"v", "n1", hops, False)
    evict(cluster, "n1", KEY)
    missing = result(await cluster.one("n4", Get(KEY, nearest=True)))
    assert missing == GetResult(GetOutcome.MISS, served_by="n1", hops=2)


async def test_a_replica_that_is_behind_the_caller_asks_the_first_owner(cluster: Cluster) -> None:
    cluster.down.add("n2")
    await cluster.one("n1", Set(KEY, b"w"))
    cluster.down.clear()
    known = result(await cluster.one("n1", Get(KEY))).version
    found = result(await cluster.one("n2", Get(KEY, nearest=True)))
    assert (found.value, found.served_by) == (b"v", "n2")
    found = result(await cluster.one("n2", Get(KEY, known_version=known, nearest=True)))
    assert (found.value, found.version, found.served_by) == (b"", known, "n1")


async def test_a_replica_that_stood_still_asks_the_first_owner(cluster: Cluster) -> None:
    cluster.clock.advance(STILL_MS + 1)
    assert result(await cluster.one("n2", Get(KEY, nearest=True))).served_by == "n1"
    for _ in range(DOUBT_MS // STILL_MS + 1):
        cluster.clock.advance(STILL_MS)
        await cluster.nodes["n2"].catch_up()
    assert result(await cluster.one("n2", Get(KEY, nearest=True))).served_by == "n2"


async def test_a_replica_in_bad_standing_is_passed_over(cluster: Cluster) -> None:
    cluster.down.add("n2")
    assert result(await cluster.one("n4", Get(KEY, nearest=True))).served_by == "n1"
    assert cluster.calls == [("n4", "n2", 1), ("n4", "n1", 1)]
    cluster.calls.clear()
    assert result(await cluster.one("n4", Get(KEY, nearest=True))).served_by == "n1"
    assert cluster.calls == [("n4", "n1", 1)]
    cluster.clock.advance(NodeConfig("n4").shun_ms)
    cluster.down.clear()
    cluster.nodes["n4"].set_view(View(RING, suspects=frozenset({"n2"})))
    assert result(await cluster.one("n4", Get(KEY, nearest=True))).served_by == "n1"


async def test_the_last_hop_is_not_spent_on_a_replica_that_could_not_pass_it_on(cluster: Cluster) -> None:
    [found] = await cluster.nodes["n4"].execute([Get(KEY, nearest=True)], timeout_ms=TIMEOUT_MS, hops_left=1)
    assert result(found).served_by == "n1"


@pytest.mark.parametrize("nearest", [False, True])
async def test_a_read_from_a_replica_says_so_when_the_first_owner_gave_no_answer(
    cluster: Cluster, nearest: bool
) -> None:
    cluster.down.add("n1")
    for via in ("n2", "n4"):
        found = result(await cluster.one(via, Get(KEY, nearest=nearest)))
        assert (found.served_by, found.from_replica) == ("n2", True)
        missing = result(await cluster.one(via, Get(keys_of("n1", "n2")[1], nearest=nearest)))
        assert (missing.outcome, missing.from_replica) == (GetOutcome.MISS, True)


async def read(cluster: Cluster, keys: list[str], *, values_only: bool = False) -> tuple[Reads, bool]:
    """What a batch at n2 gives, and whether it was there at once."""
    soon = Batches(cluster.nodes["n2"]).get(keys, TIMEOUT_MS, values_only=values_only, nearest=True)
    return await there(soon), not isinstance(soon, Later)


async def test_a_batch_that_the_replica_holds_is_read_at_once(cluster: Cluster) -> None:
    own = keys_of("n2", "n1")[0]
    reads, at_once = await read(cluster, [KEY, own])
    assert (at_once, cluster.calls) == (True, [])
    assert (reads.outcomes, reads.values) == ([GetOutcome.HIT, GetOutcome.MISS], [b"v", b""])
    assert reads.from_replica == [True, False]
    reads, _ = await read(cluster, [KEY, own], values_only=True)
    assert reads == Reads([GetOutcome.HIT, GetOutcome.MISS], [b"v", b""])


async def test_of_a_batch_only_what_the_replica_lacks_is_asked_of_others(cluster: Cluster) -> None:
    lacking = keys_of("n1", "n2")[1]
    await cluster.one("n1", Set(lacking, b"w"))
    evict(cluster, "n2", lacking)
    cluster.calls.clear()
    reads, at_once = await read(cluster, [lacking, KEY])
    assert (at_once, cluster.calls) == (False, [("n2", "n1", 1)])
    assert (reads.values, reads.from_replica) == ([b"w", b"v"], [False, True])
    reads, _ = await read(cluster, [lacking])
    assert reads.from_replica is None
