"""Routing: who is asked, in which order, and what becomes of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from cacheservice.clock import ManualClock
from cacheservice.errors import (
    EntryTooLarge,
    NoOwnerReachable,
    OutcomeUnknown,
    TooFewReplicas,
    WrongOwner,
)
from cacheservice.node.columns import Reads, Row, Writes
from cacheservice.node.fences import Fence
from cacheservice.node.namespaces import Namespaces
from cacheservice.node.node import MAX_HOPS, Node, NodeConfig
from cacheservice.node.operations import (
    Answer,
    Change,
    Delete,
    Get,
    GetOutcome,
    GetResult,
    Increment,
    IncrementResult,
    Operation,
    Set,
    SetResult,
)
from cacheservice.node.own_batches import OwnBatches
from cacheservice.node.shard import Shard
from cacheservice.node.spread_batches import there
from cacheservice.node.transport import PeerUnreachable
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember
from cacheservice.store import Entry, Store, unpack
from tests.node.no_transport import NoTransport

NAMES = ("n1", "n2", "n3", "n4")
RING = Ring([RingMember(name) for name in NAMES])
VIEW = View(RING, stays=dict.fromkeys(NAMES, 1), absences=dict.fromkeys(NAMES, 0))
TIMEOUT_MS = 4_000
NO_NAMESPACES = Namespaces()


class Cluster:
    """Nodes that call each other directly; `down` never get a request, `mute` get it and do not answer."""

    def __init__(self, *names: str, ring: Ring = RING) -> None:
        self.clock = ManualClock()
        self.down: set[str] = set()
        self.mute: set[str] = set()
        self.calls: list[tuple[str, str, int]] = []
        self.called = asyncio.Event()
        self.reported: list[str] = []
        self.nodes = {name: self._make(name, ring) for name in names or NAMES}

    def _make(
        self,
        name: str,
        ring: Ring,
        config: NodeConfig | None = None,
        namespaces: Namespaces = NO_NAMESPACES,
    ) -> Node:
        store = Store(1 << 16, now=self.clock.now_ms())
        return Node(
            config or NodeConfig(name),
            Shard(name, store, self.clock, namespaces, Random(1)),
            self.clock,
            _Transport(self, name),
            View(ring),
            self.reported.append,
        )

    async def execute(self, via: str, *operations: Operation) -> list[Answer]:
        return await self.nodes[via].execute(operations, timeout_ms=TIMEOUT_MS)

    async def one(self, via: str, operation: Operation) -> Answer:
        [answer] = await self.execute(via, operation)
        return answer

    def holders(self, key: str) -> set[str]:
        now = self.clock.now_ms()
        return {name for name, node in self.nodes.items() if node.shard.store.peek(key, now)}


class _Transport(NoTransport):
    def __init__(self, cluster: Cluster, source: str) -> None:
        self._cluster = cluster
        self._source = source

    async def forward(
        self,
        node_id: str,
        operations: Sequence[Operation],
        *,
        hops_left: int,
        unreachable: frozenset[str],
        timeout_ms: int,
    ) -> list[Answer]:
        self._call(node_id, len(operations))
        answers = await self._cluster.nodes[node_id].execute(
            operations, timeout_ms=timeout_ms, hops_left=hops_left, unreachable=unreachable
        )
        self._answer(node_id)
        return answers

    async def read(
        self, node_id: str, keys: Sequence[str], *, values_only: bool, timeout_ms: int
    ) -> Reads | None:
        self._call(node_id, len(keys))
        reads = OwnBatches(self._cluster.nodes[node_id]).get(list(keys), values_only=values_only)
        self._answer(node_id)
        return reads

    async def write(self, node_id: str, rows: Sequence[Row], *, timeout_ms: int) -> Writes | None:
        self._call(node_id, len(rows))
        writes = await there(OwnBatches(self._cluster.nodes[node_id]).set(rows, timeout_ms))
        self._answer(node_id)
        return writes

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[int]:
        assert timeout_ms <= TIMEOUT_MS // 2
        self._call(node_id, len(changes))
        held = [self._cluster.nodes[node_id].shard.merge(change) for change in changes]
        self._answer(node_id)
        return held

    async def fetch(
        self, node_id: str, keys: Sequence[str], versions: Sequence[int], *, timeout_ms: int
    ) -> list[Change]:
        self._call(node_id, len(keys))
        known = map(self._cluster.nodes[node_id].shard.change, keys)
        self._answer(node_id)
        return [change for change in known if change is not None]

    async def held(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[int]:
        return list(map(self._cluster.nodes[node_id].shard.version, keys))

    async def hand_over(
        self, node_id: str, changes: Sequence[Change], *, if_room: bool, timeout_ms: int
    ) -> list[int]:
        shard = self._cluster.nodes[node_id].shard
        return [shard.take_in(change, if_room=if_room) for change in changes]

    async def handed_over(self, node_id: str, ring_epoch: int, absences: int, *, timeout_ms: int) -> None:
        self._cluster.nodes[node_id].handed_over(self._source, ring_epoch, absences)

    async def reading(self, node_id: str, *, timeout_ms: int) -> int:
        self._call(node_id, 1)
        return self._cluster.nodes[node_id].shard.reading()

    async def invalidate(self, node_id: str, fences: Sequence[Fence], *, timeout_ms: int) -> int:
        self._call(node_id, len(fences))
        removed = await self._cluster.nodes[node_id].invalidations.take(fences)
        self._answer(node_id)
        return removed

    async def fences(self, node_id: str, *, timeout_ms: int) -> list[Fence]:
        self._call(node_id, 1)
        return list(self._cluster.nodes[node_id].shard.fences)

    def _call(self, node_id: str, size: int) -> None:
        self._cluster.calls.append((self._source, node_id, size))
        self._cluster.called.set()
        if node_id in self._cluster.down:
            raise PeerUnreachable(node_id, "down", maybe_done=False)

    def _answer(self, node_id: str) -> None:
        if node_id in self._cluster.mute:
            raise PeerUnreachable(node_id, "mute", maybe_done=True)


def key_owned_by(*owners: str) -> str:
    return next(key for key in map(str, range(10_000)) if RING.owners(key, 2)[: len(owners)] == owners)


def outsider(key: str) -> str:
    return next(name for name in NAMES if name not in RING.owners(key, 2))


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def test_a_write_reaches_owner_and_replica_from_anywhere(cluster: Cluster) -> None:
    for number in range(50):
        key = f"k{number}"
        answer = await cluster.one(NAMES[number % 4], Set(key, b"v"))
        assert isinstance(answer, SetResult)
        assert answer.replicas == 2
        assert cluster.holders(key) == set(RING.owners(key, 2))


async def test_a_read_says_who_served_it_and_over_how_many_nodes_it_went(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    await cluster.one("n1", Set(key, b"v"))
    for via, hops in [("n2", 0), ("n3", 1), ("n4", 1)]:
        answer = await cluster.one(via, Get(key))
        assert isinstance(answer, GetResult)
        assert (answer.value, answer.served_by, answer.hops) == (b"v", "n2", hops)


async def test_a_batch_goes_out_in_one_call_a_node_and_comes_back_in_order(cluster: Cluster) -> None:
    keys = [f"k{number}" for number in range(100)]
    await cluster.execute("n1", *(Set(key, key.encode()) for key in keys))
    cluster.calls.clear()
    answers = await cluster.execute("n1", *(Get(key) for key in keys))
    assert [answer.value for answer in answers if isinstance(answer, GetResult)] == [k.encode() for k in keys]
    assert {target for _, target, _ in cluster.calls} == {"n2", "n3", "n4"}
    assert len(cluster.calls) == 3
    assert cluster.nodes["n1"].stats.forwarded == sum(size for _, _, size in cluster.calls) + sum(
        1 for key in keys if RING.owners(key, 1) != ("n1",)
    )


async def test_operations_on_one_key_are_done_in_their_order(cluster: Cluster) -> None:
    key = key_owned_by("n2")
    answers = await cluster.execute("n1", Set(key, b"1"), Get(key), Delete(key), Get(key), Set(key, b"2"))
    assert isinstance(answers[1], GetResult)
    assert isinstance(answers[3], GetResult)
    assert (answers[1].value, answers[3].outcome) == (b"1", GetOutcome.MISS)
    last = await cluster.one("n3", Get(key))
    assert isinstance(last, GetResult)
    assert last.value == b"2"


async def test_errors_are_each_operations_own(cluster: Cluster) -> None:
    key, other = key_owned_by("n2"), key_owned_by("n3")
    answers = await cluster.execute("n1", Set(key, bytes(1 << 17)), Set(other, b"v"))
    assert isinstance(answers[0], EntryTooLarge)
    assert isinstance(answers[1], SetResult)


async def test_when_the_owner_is_down_its_replica_answers(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    await cluster.one("n1", Set(key, b"v"))
    cluster.down.add("n2")
    for via in ("n1", "n3"):
        answer = await cluster.one(via, Get(key))
        assert isinstance(answer, GetResult)
        assert (answer.value, answer.served_by) == (b"v", "n3")
    written = await cluster.one("n1", Set(key, b"w"))
    assert isinstance(written, SetResult)
    assert written.stored
    assert cluster.reported[0] == "n2"
    assert cluster.nodes["n1"].stats.failovers > 0


async def test_a_peer_that_gave_no_answer_is_asked_last_for_a_while(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    cluster.down.add("n2")
    await cluster.one("n1", Get(key))
    cluster.down.clear()
    cluster.calls.clear()
    await cluster.one("n1", Get(key))
    assert cluster.calls == [("n1", "n3", 1), ("n3", "n2", 1)]
    cluster.clock.advance(NodeConfig("n1").shun_ms)
    cluster.calls.clear()
    await cluster.one("n1", Get(key))
    assert cluster.calls == [("n1", "n2", 1)]


async def test_of_many_who_ask_one_at_a_time_tries_a_peer_that_gave_no_answer(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    cluster.down.add("n2")
    await cluster.one("n1", Get(key))
    for _ in range(3):
        cluster.clock.advance(NodeConfig("n1").shun_ms)
        cluster.calls.clear()
        for _ in range(10):
            await cluster.one("n1", Get(key))
        assert cluster.calls.count(("n1", "n2", 1)) == 1


async def test_a_replica_gets_what_it_missed_once_it_answers(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    gone = next(k for k in map(str, range(1, 10_000)) if RING.owners(k, 2) == ("n2", "n3") and k != key)
    await cluster.execute("n2", Set(key, b"old"), Set(gone, b"old"))
    cluster.down.add("n3")
    await cluster.execute("n2", Set(key, b"new"), Delete(gone), Set(key, b"newest"))
    node = cluster.nodes["n2"]
    assert len(node.owner.replicator.hints) == 2
    await node.owner.replay_hints()
    assert len(node.owner.replicator.hints) == 2
    cluster.down.clear()
    cluster.clock.advance(NodeConfig("n2").shun_ms)
    await node.owner.replay_hints()
    assert len(node.owner.replicator.hints) == 0
    held = cluster.nodes["n3"].shard.store
    entry = held.peek(key, cluster.clock.now_ms())
    assert entry is not None
    assert unpack(entry).value == b"newest"
    assert held.peek(gone, cluster.clock.now_ms()) is None


async def test_an_owner_gets_what_was_written_while_it_did_not_answer(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    await cluster.one("n1", Set(key, b"old"))
    cluster.down.add("n2")
    await cluster.one("n1", Set(key, b"new"))
    cluster.down.clear()
    for node in cluster.nodes.values():
        cluster.clock.advance(NodeConfig("n1").shun_ms)
        await node.owner.replay_hints()
    answer = await cluster.one("n2", Get(key))
    assert isinstance(answer, GetResult)
    assert (answer.value, answer.served_by) == (b"new", "n2")


async def test_a_write_of_an_owner_that_missed_one_outdoes_it_all_the_same(cluster: Cluster) -> None:
    """The replica's clock is ahead, and it took a write; the owner's next is later, with a lower reading."""
    key = key_owned_by("n2", "n3")
    ahead = (cluster.clock.wall_ms() + 30_000) << 16
    cluster.nodes["n3"].shard.merge(Change(key, ahead, Entry(b"missed", ahead, 0)))
    answer = await cluster.one("n2", Set(key, b"later"))
    assert isinstance(answer, SetResult)
    assert answer.version > ahead
    assert answer.replicas == 2
    for name in ("n2", "n3"):
        entry = cluster.nodes[name].shard.store.peek(key, cluster.clock.now_ms())
        assert entry is not None
        assert (unpack(entry).value, unpack(entry).version) == (b"later", answer.version)


async def test_writes_of_one_key_that_overtake_each_other_are_all_confirmed(cluster: Cluster) -> None:
    """The replica has the later one when the earlier comes; both owner and replica end with that."""
    key = key_owned_by("n2", "n3")
    owner = cluster.nodes["n2"]
    _, earlier = owner.shard.apply(Set(key, b"earlier"))
    _, later = owner.shard.apply(Set(key, b"later"))
    assert earlier is not None
    assert later is not None
    cluster.nodes["n3"].shard.merge(later)
    assert await owner.owner.copies.within([earlier], TIMEOUT_MS) == [(earlier.version, 1)]
    for name in ("n2", "n3"):
        entry = cluster.nodes[name].shard.store.peek(key, cluster.clock.now_ms())
        assert entry is not None
        assert (unpack(entry).value, unpack(entry).version) == (b"later", later.version)


async def test_when_the_caller_goes_another_node_still_stands_in_for_a_replica(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    owner = cluster.nodes["n2"]
    _, change = owner.shard.apply(Set(key, b"v"))
    assert change is not None
    cluster.down.add("n3")
    copying = owner.owner.copies.within([change], TIMEOUT_MS)
    copying.cancel()
    async with asyncio.timeout(10):
        while len(cluster.holders(key)) < 2:
            await asyncio.sleep(0)
    assert "n3" not in cluster.holders(key)


async def test_an_owner_that_is_new_has_what_the_others_hold(cluster: Cluster) -> None:
    key, counter = key_owned_by("n2", "n3"), key_owned_by("n2", "n4")
    await cluster.execute("n1", Set(key, b"v", ttl_ms=5_000, tags=("t",)), Increment(counter, 41))
    newcomer = cluster.nodes["n2"] = cluster._make("n2", Ring([]))
    newcomer.set_view(VIEW)
    found = await cluster.one("n1", Get(key))
    assert isinstance(found, GetResult)
    assert (found.value, found.ttl_ms, found.served_by) == (b"v", 5_000, "n2")
    counted = await cluster.one("n1", Increment(counter, 1))
    assert isinstance(counted, IncrementResult)
    assert counted.value == 42
    cluster.calls.clear()
    await cluster.one("n2", Get(key))
    assert cluster.calls == []
    for other in ("n1", "n3", "n4"):
        assert not newcomer.is_settled
        newcomer.handed_over(other, RING.epoch, 0)
    assert newcomer.is_settled
    await cluster.one("n2", Get(key_owned_by("n2", "n1")))
    assert cluster.calls == []


async def test_what_was_removed_is_not_fetched_back(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    await cluster.one("n1", Set(key, b"v"))
    await cluster.one("n1", Delete(key))
    newcomer = cluster.nodes["n2"] = cluster._make("n2", Ring([]))
    newcomer.set_view(VIEW)
    answer = await cluster.one("n2", Get(key))
    assert isinstance(answer, GetResult)
    assert answer.outcome is GetOutcome.MISS


async def test_a_suspect_is_asked_last(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    for node in cluster.nodes.values():
        node.set_view(View(RING, frozenset({"n2"})))
    answer = await cluster.one("n1", Get(key))
    assert isinstance(answer, GetResult)
    assert answer.served_by == "n3"
    cluster.down.add("n3")
    answer = await cluster.one("n1", Get(key))
    assert isinstance(answer, GetResult)
    assert answer.served_by == "n2"


async def test_when_nobody_who_may_answer_can_be_reached(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    cluster.down |= {"n2", "n3"}
    answer = await cluster.one("n1", Get(key))
    assert isinstance(answer, NoOwnerReachable)
    assert "n2, n3" in answer.message


async def test_a_silent_owner_may_have_done_it_so_only_what_may_repeat_is_repeated(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    cluster.mute.add("n2")
    answers = await cluster.execute(
        outsider(key),
        Increment(key),
        Set(key, b"5"),
        Set(key, b"6", if_absent=True),
        Delete(key, if_version=1),
    )
    assert isinstance(answers[0], OutcomeUnknown)
    assert isinstance(answers[1], SetResult)
    assert isinstance(answers[2], OutcomeUnknown)
    assert isinstance(answers[3], OutcomeUnknown)


async def test_an_owner_that_is_down_has_done_nothing_so_all_is_tried_elsewhere(
    cluster: Cluster,
) -> None:
    key = key_owned_by("n2", "n3")
    cluster.down.add("n2")
    answer = await cluster.one(outsider(key), Increment(key))
    assert not isinstance(answer, Exception)


async def test_the_next_node_stands_in_for_a_replica_that_is_down(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    stand_in = RING.owners(key, 3)[2]
    cluster.down.add("n3")
    for attempt in (b"not known to be down", b"avoided"):
        answer = await cluster.one("n2", Set(key, attempt, min_replicas=2))
        assert isinstance(answer, SetResult)
        assert answer.replicas == 2
        assert cluster.holders(key) == {"n2", stand_in}
    assert len(cluster.nodes["n2"].owner.replicator.hints) == 1


async def test_who_owned_a_key_before_stands_in_for_nobody() -> None:
    """It has been asked as who it is, and counts once."""
    names = tuple(f"n{number}" for number in range(1, 7))
    ring, before = Ring(map(RingMember, names)), Ring(map(RingMember, names[:-1]))
    view = View(ring, before=before, stays=dict.fromkeys(names, 1), absences=dict.fromkeys(names, 0))
    for key in map(str, range(100)):
        owner, *others = ring.owners(key, 3)
        if "n6" not in others:
            continue
        cluster = Cluster(*names, ring=ring)
        for name in names:
            cluster.nodes[name] = cluster._make(name, ring, NodeConfig(name, replication_factor=3))
            cluster.nodes[name].set_view(view)
        cluster.down = set(others)
        answer = await cluster.one(owner, Set(key, b"v"))
        assert isinstance(answer, SetResult)
        assert answer.replicas == len(cluster.holders(key)) == 3


async def test_on_two_hosts_a_neighbour_of_the_replica_stands_in_and_never_one_of_the_owner() -> None:
    ring = Ring(RingMember(f"{host}-w{worker}", host=host) for host in ("a", "b") for worker in range(2))
    cluster = Cluster(*(member.node_id for member in ring.members), ring=ring)
    owner, replica = ring.owners("k", 2)
    host, _, worker = replica.partition("-w")
    neighbour = f"{host}-w{1 - int(worker)}"
    cluster.down.add(replica)
    written = await cluster.one(owner, Set("k", b"v", min_replicas=2))
    assert isinstance(written, SetResult)
    assert cluster.holders("k") == {owner, neighbour}
    cluster.down.add(neighbour)
    assert isinstance(await cluster.one(owner, Set("k", b"w", min_replicas=2)), TooFewReplicas)
    assert cluster.holders("k") == {owner, neighbour}


async def test_on_one_host_there_is_one_copy() -> None:
    ring = Ring(RingMember(name, host="h") for name in NAMES)
    cluster = Cluster(ring=ring)
    written = await cluster.one("n1", Set("k", b"v"))
    assert isinstance(written, SetResult)
    assert written.replicas == 1
    assert cluster.holders("k") == set(ring.owners("k", 1))
    assert not any(node.standing.has_replicas for node in cluster.nodes.values())
    refused = await cluster.one("n1", Set("k", b"w", min_replicas=2))
    assert isinstance(refused, TooFewReplicas)


async def test_a_replica_that_is_down_does_not_fail_the_write_unless_asked_to(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    cluster.down |= {"n1", "n3", "n4"}
    answer = await cluster.one("n2", Set(key, b"v"))
    assert isinstance(answer, SetResult)
    assert answer.replicas == 1
    assert cluster.nodes["n2"].owner.replicator.failures == 1
    refused = await cluster.one("n2", Set(key, b"w", min_replicas=2))
    assert isinstance(refused, TooFewReplicas)
    assert refused.metadata == {"replicas": "1", "min_replicas": "2"}


async def test_nodes_with_different_rings_never_loop() -> None:
    """Each of n1, n2 takes the other for the owner of everything, for ever."""
    cluster = Cluster("n1", "n2")
    cluster.nodes["n1"].set_view(View(Ring([RingMember("n2")])))
    cluster.nodes["n2"].set_view(View(Ring([RingMember("n1")])))
    node = cluster.nodes["n1"]
    [answer] = await node.execute([Set("a", b"v")], timeout_ms=100)
    assert isinstance(answer, WrongOwner)
    assert 2 <= len(cluster.calls) <= 2 * 10
    assert cluster.holders("a") == set()


async def test_a_request_that_went_round_is_done_once_the_rings_agree() -> None:
    cluster = Cluster("n1", "n2")
    both = Ring([RingMember("n1"), RingMember("n2")])
    cluster.nodes["n1"].set_view(View(Ring([RingMember("n2")])))
    cluster.nodes["n2"].set_view(View(Ring([RingMember("n1")])))
    writing = asyncio.create_task(cluster.one("n1", Set("a", b"v")))
    await cluster.called.wait()
    for node in cluster.nodes.values():
        node.set_view(View(both))
    answer = await writing
    assert isinstance(answer, SetResult)
    assert answer.replicas == 2


async def test_a_replica_serves_what_may_not_be_passed_on(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    await cluster.one("n1", Set(key, b"v"))
    cluster.calls.clear()
    [answer] = await cluster.nodes["n3"].execute([Get(key)], timeout_ms=TIMEOUT_MS, hops_left=0)
    assert isinstance(answer, GetResult)
    assert (answer.value, answer.served_by) == (b"v", "n3")
    assert cluster.calls == []


async def test_nobody_tries_again_what_the_sender_could_not_reach(cluster: Cluster) -> None:
    key = key_owned_by("n2", "n3")
    await cluster.nodes["n3"].execute(
        [Set(key, b"v")], timeout_ms=TIMEOUT_MS, hops_left=MAX_HOPS - 1, unreachable=frozenset({"n2"})
    )
    stand_in = RING.owners(key, 3)[2]
    assert cluster.calls == [("n3", stand_in, 1)]
    assert cluster.holders(key) == {"n3", stand_in}


async def test_a_lone_node_holds_everything_itself() -> None:
    alone = Cluster("n1", ring=Ring([RingMember("n1")]))
    answer = await alone.one("n1", Set("a", b"v"))
    assert isinstance(answer, SetResult)
    assert answer.replicas == 1
    assert alone.calls == []


async def test_nothing_is_asked_of_an_empty_ring() -> None:
    empty = Cluster("n1", ring=Ring([]))
    assert isinstance(await empty.one("n1", Get("a")), NoOwnerReachable)
    assert await empty.execute("n1") == []
