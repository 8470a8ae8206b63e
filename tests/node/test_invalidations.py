"""Removals on all nodes, of which some may not be there at the time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cacheservice.clock import LOGICAL_BITS, MAX_AHEAD_MS
from cacheservice.node import invalidations as invalidations_module
from cacheservice.node.fences import FENCE_MS, Fence, Kind
from cacheservice.node.invalidations import Invalidated
from cacheservice.node.node import Node, NodeConfig
from cacheservice.node.operations import Change, Set
from cacheservice.node.transport import PeerUnreachable
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember
from cacheservice.store import Entry
from tests.node.no_transport import NoTransport
from tests.node.test_node import NAMES, RING, TIMEOUT_MS, VIEW, Cluster, key_owned_by
from tests.simulation.virtual_time import run

KEYS = [f"user:{number}" for number in range(40)]
SHUN_MS = NodeConfig("n1").shun_ms


@pytest.fixture
async def cluster() -> Cluster:
    """Four nodes that hold `KEYS`, tagged "t", and know of each other."""
    cluster = Cluster()
    for node in cluster.nodes.values():
        node.set_view(VIEW)
        for other in NAMES:
            node.handed_over(other, RING.epoch, 0)
    await cluster.execute("n1", *(Set(key, b"v", tags=("t",)) for key in KEYS))
    cluster.calls.clear()
    return cluster


async def invalidate(cluster: Cluster, via: str, kind: Kind, pattern: str) -> Invalidated:
    return await cluster.nodes[via].invalidations.invalidate(kind, pattern, TIMEOUT_MS)


async def spread(cluster: Cluster, via: str) -> None:
    cluster.clock.advance(SHUN_MS)
    await cluster.nodes[via].invalidations.spread(TIMEOUT_MS)


def held(cluster: Cluster) -> set[str]:
    return {key for key in KEYS if cluster.holders(key)}


@pytest.mark.parametrize(("kind", "pattern"), [(Kind.TAG, "t"), (Kind.PREFIX, "user:"), (Kind.PREFIX, "")])
async def test_each_entry_is_removed_everywhere_and_counted_once(
    cluster: Cluster, kind: Kind, pattern: str
) -> None:
    assert await invalidate(cluster, "n3", kind, pattern) == Invalidated(len(KEYS), ())
    assert held(cluster) == set()
    assert await invalidate(cluster, "n3", kind, pattern) == Invalidated(0, ())


async def test_what_the_pattern_does_not_cover_stays(cluster: Cluster) -> None:
    await cluster.execute("n1", Set("user:1x", b"v", tags=("other",)), Set("other", b"v", tags=("t",)))
    assert (await invalidate(cluster, "n2", Kind.PREFIX, "user:1x")).removed == 1
    assert held(cluster) == set(KEYS)
    assert (await invalidate(cluster, "n2", Kind.TAG, "t")).removed == len(KEYS) + 1


async def test_what_is_written_afterwards_stays(cluster: Cluster) -> None:
    await invalidate(cluster, "n1", Kind.PREFIX, "")
    await cluster.execute("n4", *(Set(key, b"w", tags=("t",)) for key in KEYS))
    await spread(cluster, "n1")
    assert held(cluster) == set(KEYS)


async def test_writes_of_a_node_whose_clock_is_ahead_are_removed_too(cluster: Cluster) -> None:
    key = key_owned_by("n3", "n4")
    ahead = cluster.clock.wall_ms() + MAX_AHEAD_MS // 2 << LOGICAL_BITS
    cluster.nodes["n3"].shard.merge(Change(key, ahead, Entry(b"v", ahead, 0)))
    assert (await invalidate(cluster, "n1", Kind.PREFIX, key)).removed == 1
    assert cluster.holders(key) == set()


async def test_an_older_write_that_was_under_way_is_not_taken_in(cluster: Cluster) -> None:
    changes = {name: cluster.nodes[name].shard.change(KEYS[0]) for name in cluster.holders(KEYS[0])}
    await invalidate(cluster, "n1", Kind.TAG, "t")
    for name, change in changes.items():
        assert change is not None
        assert cluster.nodes[name].shard.merge(change) == 0
    assert held(cluster) == set()


async def test_whoever_gives_no_answer_is_named_and_told_later(cluster: Cluster) -> None:
    cluster.down.add("n4")
    there = {key for key in KEYS if "n4" in cluster.holders(key)}
    done = await invalidate(cluster, "n1", Kind.TAG, "t")
    assert done.unreachable == ("n4",)
    assert done.removed == sum(RING.owners(key, 1) != ("n4",) for key in KEYS)
    assert held(cluster) == there
    await spread(cluster, "n1")
    assert held(cluster) == there
    cluster.down.clear()
    await spread(cluster, "n1")
    assert held(cluster) == set()
    cluster.calls.clear()
    await spread(cluster, "n1")
    assert cluster.calls == []


async def test_whoever_heard_and_did_not_answer_is_told_again(cluster: Cluster) -> None:
    cluster.mute.add("n4")
    assert (await invalidate(cluster, "n1", Kind.TAG, "t")).unreachable == ("n4",)
    assert held(cluster) == set()
    cluster.mute.clear()
    cluster.calls.clear()
    await spread(cluster, "n1")
    assert {target for _, target, _ in cluster.calls} == {"n4"}


async def test_each_is_told_what_it_lacks_and_no_more(cluster: Cluster) -> None:
    for tag, gone in (("one", set()), ("two", {"n3"}), ("three", {"n3", "n4"}), ("four", {"n3", "n4"})):
        cluster.down = gone
        await invalidate(cluster, "n1", Kind.TAG, tag)
    cluster.down = set()
    cluster.calls.clear()
    await spread(cluster, "n1")
    assert sorted(cluster.calls) == [("n1", "n3", 3), ("n1", "n4", 2)]


async def test_who_was_away_gets_all_that_is_remembered(cluster: Cluster) -> None:
    for tag in ("one", "two", "three"):
        await invalidate(cluster, "n1", Kind.TAG, tag)
    away = replace(VIEW, stays={**VIEW.stays, "n4": 2})
    cluster.nodes["n1"].set_view(away)
    cluster.nodes["n4"] = cluster._make("n4", RING)
    cluster.calls.clear()
    await spread(cluster, "n1")
    assert cluster.calls == [("n1", "n4", 3)]
    assert len(cluster.nodes["n4"].shard.fences) == 3


async def test_many_go_some_at_a_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invalidations_module, "FENCES_AT_A_TIME", 2)
    cluster.down.add("n4")
    for number in range(5):
        await invalidate(cluster, "n1", Kind.TAG, str(number))
    cluster.down.clear()
    cluster.calls.clear()
    await spread(cluster, "n1")
    assert cluster.calls == [("n1", "n4", 2), ("n1", "n4", 2), ("n1", "n4", 1)]


async def test_who_died_of_late_is_named(cluster: Cluster) -> None:
    survivors = Ring([RingMember(name) for name in ("n1", "n2", "n3")])
    stays = dict.fromkeys(("n1", "n2", "n3"), 1)
    view = View(survivors, dead=frozenset({"n4"}), stays=stays, absences=dict.fromkeys(stays, 0))
    node = cluster.nodes["n1"]
    node.set_view(view)
    assert (await invalidate(cluster, "n1", Kind.TAG, "t")).unreachable == ("n4",)
    cluster.clock.advance(FENCE_MS - 1)
    assert (await invalidate(cluster, "n1", Kind.TAG, "t")).unreachable == ("n4",)
    cluster.clock.advance(1)
    assert (await invalidate(cluster, "n1", Kind.TAG, "t")).unreachable == ()
    node.set_view(replace(view, dead=frozenset()))
    await spread(cluster, "n1")
    node.set_view(view)
    assert (await invalidate(cluster, "n1", Kind.TAG, "t")).unreachable == ("n4",)


async def brought_level(node: Node) -> None:
    """Waits until the node has given the others all that they own."""
    handing_over = asyncio.create_task(node.handoff.run())
    await node.handoff.completed()
    handing_over.cancel()


class Rings:
    """Views for which a removal by tag must be remembered, and one for which it need not be."""

    calm = VIEW
    suspicious = replace(VIEW, suspects=frozenset({"n4"}))
    moving = replace(VIEW, before=Ring([RingMember(name) for name in NAMES[:3]]))
    after_a_death = replace(VIEW, dead=frozenset({"n9"}))


@pytest.mark.parametrize(
    ("view", "remembers"),
    [(Rings.calm, False), (Rings.suspicious, True), (Rings.moving, True), (Rings.after_a_death, True)],
)
async def test_somebody_may_have_an_older_entry_under_another_tag(
    cluster: Cluster, view: View, remembers: bool
) -> None:
    node = cluster.nodes["n1"]
    await brought_level(node)
    node.set_view(view)
    await invalidate(cluster, "n1", Kind.TAG, "t")
    here = [key for key in KEYS if "n1" in RING.owners(key, 2)]
    assert sorted(node.shard.removed()) == (sorted(here) if remembers else [])


async def test_who_is_back_may_have_an_older_entry_until_it_is_brought_level(cluster: Cluster) -> None:
    node = cluster.nodes["n1"]
    await brought_level(node)
    node.set_view(replace(VIEW, ring=Ring([RingMember(name) for name in NAMES if name != "n2"])))
    node.set_view(VIEW)
    await invalidate(cluster, "n1", Kind.TAG, "t")
    assert sorted(node.shard.removed()) == sorted(key for key in KEYS if "n1" in RING.owners(key, 2))


async def test_the_removal_of_what_a_replica_missed_is_remembered(cluster: Cluster) -> None:
    key = next(key for key in KEYS if RING.owners(key, 1) == ("n1",))
    await brought_level(cluster.nodes["n1"])
    cluster.nodes["n1"].owner.replicator.hints.add("n2", key)
    await invalidate(cluster, "n1", Kind.TAG, "t")
    assert cluster.nodes["n1"].shard.removed() == [key]


async def test_a_newer_entry_under_another_tag_that_was_missed_stays(cluster: Cluster) -> None:
    cluster.nodes["n1"].set_view(Rings.after_a_death)
    shard = cluster.nodes["n1"].shard
    key = next(key for key in KEYS if shard.holds(key))
    newer = Entry(b"newer", shard.version(key) + 1, 0, tags=("other",))
    await invalidate(cluster, "n1", Kind.TAG, "t")
    shard.merge(Change(key, newer.version, newer))
    assert shard.change(key) == Change(key, newer.version, newer)


async def test_a_new_node_learns_from_the_first_that_answers(cluster: Cluster) -> None:
    await invalidate(cluster, "n2", Kind.TAG, "t")
    newcomer = cluster.nodes["n1"] = cluster._make("n1", RING)
    newcomer.set_view(VIEW)
    old = Change(KEYS[0], 1, Entry(b"v", 1, 0, tags=("t",)))
    newcomer.shard.merge(old)
    cluster.calls.clear()
    cluster.down.add("n2")
    assert await newcomer.invalidations.learn(TIMEOUT_MS)
    assert cluster.calls == [("n1", "n2", 1), ("n1", "n3", 1)]
    assert list(newcomer.shard.fences) == list(cluster.nodes["n3"].shard.fences)
    assert not newcomer.shard.holds(KEYS[0])
    assert await newcomer.invalidations.learn(TIMEOUT_MS)
    assert cluster.calls[2:] == [("n1", "n3", 1)]


async def test_with_nobody_who_answers_nothing_is_learnt(cluster: Cluster) -> None:
    cluster.down |= {"n2", "n3", "n4"}
    assert not await cluster.nodes["n1"].invalidations.learn(TIMEOUT_MS)
    alone = View(Ring([RingMember("n1")]), stays={"n1": 1}, absences={"n1": 0})
    cluster.nodes["n1"].set_view(alone)
    assert await cluster.nodes["n1"].invalidations.learn(TIMEOUT_MS)


@pytest.mark.parametrize("told", [False, True], ids=["asked", "told"])
async def test_what_was_begun_is_done_though_the_caller_goes_away(cluster: Cluster, told: bool) -> None:
    invalidations = cluster.nodes["n1"].invalidations
    fence = Fence(Kind.TAG, "t", cluster.nodes["n1"].shard.reading())
    work = invalidations.take([fence]) if told else invalidations.invalidate(Kind.TAG, "t", TIMEOUT_MS)
    caller = asyncio.create_task(work)
    while not len(cluster.nodes["n1"].shard.fences):
        await asyncio.sleep(0)
    caller.cancel()
    while invalidations._under_way:
        await asyncio.sleep(0)
    assert caller.cancelled()
    assert len(cluster.nodes["n1"].shard.store) == 0


async def test_the_same_fence_removes_nothing_twice(cluster: Cluster) -> None:
    fence = Fence(Kind.TAG, "t", cluster.nodes["n1"].shard.reading())
    here = sum(RING.owners(key, 1) == ("n1",) for key in KEYS)
    assert await cluster.nodes["n1"].invalidations.take([fence]) == here > 0
    assert await cluster.nodes["n1"].invalidations.take([fence]) == 0


class Hanging(NoTransport):
    """Nobody answers, and nobody refuses."""

    async def reading(self, node_id: str, *, timeout_ms: int) -> int:
        return await self._hang(node_id, timeout_ms)

    async def invalidate(self, node_id: str, fences: Sequence[Fence], *, timeout_ms: int) -> int:
        return await self._hang(node_id, timeout_ms)

    async def _hang(self, node_id: str, timeout_ms: int) -> int:
        await asyncio.sleep(timeout_ms / 1_000)
        raise PeerUnreachable(node_id, "hangs", maybe_done=True)


def test_the_answer_comes_in_time_though_others_hang() -> None:
    async def work() -> None:
        invalidations = Cluster().nodes["n1"].invalidations
        invalidations._transport = Hanging()
        invalidations._peers.set_view(VIEW)
        started = asyncio.get_running_loop().time()
        done = await invalidations.invalidate(Kind.TAG, "t", 1_000)
        assert done.unreachable == ("n2", "n3", "n4")
        assert asyncio.get_running_loop().time() - started < 0.9

    run(work())
