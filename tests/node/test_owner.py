"""What an owner does after it stood still, with too few members, and with copies that are made later."""

from __future__ import annotations

import pytest

from cacheservice.errors import NotReady, TooFewMembers
from cacheservice.node.call import Call
from cacheservice.node.namespaces import NamespacePolicy, Namespaces
from cacheservice.node.node import Node, NodeConfig
from cacheservice.node.operations import (
    Answer,
    Change,
    Delete,
    Get,
    GetResult,
    Increment,
    NotStored,
    Operation,
    Set,
    SetResult,
)
from cacheservice.node.standing import DOUBT_MS, REFUSE_MS, STILL_MS
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember
from cacheservice.store import Entry
from tests.node.test_node import NAMES, RING, TIMEOUT_MS, VIEW, Cluster, key_owned_by, outsider

KEY = key_owned_by("n2", "n3")


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    for node in cluster.nodes.values():
        settle(node)
    return cluster


def settle(node: Node, view: View = VIEW) -> None:
    node.set_view(view)
    for other in view.stays:
        node.handed_over(other, view.ring.epoch, 0)
    assert node.is_settled


async def run_for(cluster: Cluster, ms: int) -> None:
    """Lets time pass while all nodes run."""
    while ms > 0:
        cluster.clock.advance(min(ms, STILL_MS // 2))
        ms -= STILL_MS // 2
        for node in cluster.nodes.values():
            await node.owner.replay_hints()


async def do(node: Node, *operations: Operation) -> list[Answer]:
    """Has the owner do them, as when they come from another node."""
    return await node.execute(operations, timeout_ms=TIMEOUT_MS, hops_left=0)


def value(answer: Answer) -> bytes:
    assert isinstance(answer, GetResult)
    return answer.value


async def test_an_owner_that_stood_still_writes_nothing_for_a_moment(cluster: Cluster) -> None:
    await cluster.one("n2", Set(KEY, b"old"))
    cluster.clock.advance(STILL_MS + 1)
    answers = await do(cluster.nodes["n2"], Set(KEY, b"new"), Delete(KEY), Increment(KEY), Get(KEY))
    assert [type(answer) for answer in answers] == [NotReady, NotReady, NotReady, GetResult]
    assert value(answers[-1]) == b"old"
    cluster.clock.advance(REFUSE_MS - 1)
    assert isinstance((await do(cluster.nodes["n2"], Set(KEY, b"new")))[0], NotReady)
    cluster.clock.advance(1)
    assert isinstance((await do(cluster.nodes["n2"], Set(KEY, b"new")))[0], SetResult)


async def test_and_gives_no_lease_for_what_could_not_be_filled_in_here(cluster: Cluster) -> None:
    await cluster.one("n2", Set(KEY, b"old"))
    cluster.clock.advance(STILL_MS + 1)
    missing = key_owned_by("n2", "n4")
    answers = await do(cluster.nodes["n2"], Get(KEY, lease=True), Get(missing, lease=True), Get(missing))
    assert [type(answer) for answer in answers] == [GetResult, NotReady, GetResult]


async def test_a_fill_gives_way_to_a_write_that_the_owner_missed(cluster: Cluster) -> None:
    owner, replica = cluster.nodes["n2"].shard, cluster.nodes["n3"].shard
    [read] = await do(cluster.nodes["n2"], Get(KEY, lease=True))
    assert isinstance(read, GetResult)
    assert read.lease is not None
    missed = Entry(b"newer", replica.reading() + 1, 0)
    replica.merge(Change(KEY, missed.version, missed))
    [filled] = await do(cluster.nodes["n2"], Set(KEY, b"older", lease_token=read.lease.token))
    assert filled == SetResult(False, missed.version, reason=NotStored.LEASE_VOID)
    assert owner.change(KEY) == replica.change(KEY)
    assert value((await do(cluster.nodes["n2"], Get(KEY)))[0]) == b"newer"


async def test_one_that_paused_for_less_goes_on(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.clock.advance(STILL_MS)
        assert isinstance((await do(cluster.nodes["n2"], Set(KEY, b"new")))[0], SetResult)


async def test_whoever_passed_the_write_on_turns_to_another_owner(cluster: Cluster) -> None:
    cluster.clock.advance(STILL_MS + 1)
    for node_id in ("n1", "n3", "n4"):
        await cluster.nodes[node_id].owner.replay_hints()
        cluster.nodes[node_id].standing._refuses_until = 0
    answer = await cluster.one(outsider(KEY), Set(KEY, b"new"))
    assert isinstance(answer, SetResult)
    assert answer.stored


async def test_a_node_alone_has_missed_nothing() -> None:
    alone = Cluster("n1", ring=Ring([RingMember("n1")]))
    alone.clock.advance(10 * STILL_MS)
    assert isinstance(await alone.one("n1", Set("a", b"v")), SetResult)


async def test_for_a_while_it_asks_the_others_what_it_missed(cluster: Cluster) -> None:
    await cluster.one("n2", Set(KEY, b"old"))
    await run_for(cluster, STILL_MS)
    cluster.calls.clear()
    assert value(await cluster.one("n2", Get(KEY))) == b"old"
    assert cluster.calls == []
    cluster.clock.advance(STILL_MS + 1)
    _, missed = cluster.nodes["n3"].shard.apply(Set(KEY, b"missed"))
    assert missed is not None
    assert value(await cluster.one("n2", Get(KEY))) == b"missed"
    assert ("n2", "n3", 1) in cluster.calls
    await run_for(cluster, DOUBT_MS - STILL_MS)
    cluster.calls.clear()
    await cluster.one("n2", Get(KEY))
    assert cluster.calls == [("n2", "n3", 1)]
    await run_for(cluster, STILL_MS)
    cluster.calls.clear()
    assert value(await cluster.one("n2", Get(KEY))) == b"missed"
    assert cluster.calls == []


async def test_it_asks_also_when_it_has_not_settled_since_the_ring_changed(cluster: Cluster) -> None:
    """It is sure of what it owned before, but not when it stood still since."""
    await cluster.one("n2", Set(KEY, b"old"))
    more = Ring([RingMember(name) for name in (*NAMES, "n5")])
    key = next(key for key in map(str, range(10_000)) if is_owned_by_n2_then_n3(key, more))
    await cluster.one("n2", Set(key, b"old"))
    stays = dict.fromkeys((*NAMES, "n5"), 1)
    cluster.nodes["n2"].set_view(View(more, stays=stays, absences=dict.fromkeys(stays, 0)))
    cluster.calls.clear()
    assert value((await do(cluster.nodes["n2"], Get(key)))[0]) == b"old"
    assert cluster.calls == []
    cluster.clock.advance(STILL_MS + 1)
    cluster.nodes["n3"].shard.apply(Set(key, b"missed"))
    assert value((await do(cluster.nodes["n2"], Get(key)))[0]) == b"missed"


def is_owned_by_n2_then_n3(key: str, ring: Ring) -> bool:
    return RING.owners(key, 2) == ring.owners(key, 2) == ("n2", "n3")


@pytest.mark.parametrize(("least", "works"), [(0, True), (4, True), (5, False)])
async def test_with_too_few_members_writes_are_refused_and_reads_are_not(
    cluster: Cluster, least: int, works: bool
) -> None:
    await cluster.one("n2", Set(KEY, b"v"))
    node = cluster._make("n2", RING, NodeConfig("n2", min_members=least))
    settle(node)
    node.shard.apply(Set(KEY, b"v"))
    read, *written = await do(node, Get(KEY), Set(KEY, b"w"), Delete(KEY), Increment(KEY))
    assert value(read) == b"v"
    if works:
        assert not any(isinstance(answer, TooFewMembers) for answer in written)
        return
    for answer in written:
        assert isinstance(answer, TooFewMembers)
        assert answer.metadata == {"members": "4", "min_members": "5"}


ASYNC = key_owned_by("n2", "n3")
NAMESPACES = Namespaces(by_name={"later": NamespacePolicy(is_async=True)})


@pytest.fixture
def later(cluster: Cluster) -> tuple[Cluster, str, str]:
    """A cluster with an asynchronous namespace, and a key of n2 in it, and one of n2 that is not."""
    for name in NAMES:
        cluster.nodes[name] = cluster._make(name, RING, namespaces=NAMESPACES)
        settle(cluster.nodes[name])
    keys = (f"later:{number}" for number in range(10_000))
    return cluster, next(key for key in keys if RING.owners(key, 2) == ("n2", "n3")), KEY


async def test_copies_of_an_asynchronous_namespace_are_made_later(later: tuple[Cluster, str, str]) -> None:
    cluster, key, _ = later
    cluster.down.add("n3")
    answer = await cluster.one("n2", Set(key, b"v"))
    assert isinstance(answer, SetResult)
    assert (answer.stored, answer.replicas) == (True, 1)
    assert cluster.calls == []
    assert cluster.holders(key) == {"n2"}
    cluster.down.clear()
    await cluster.nodes["n2"].owner.replay_hints()
    assert cluster.holders(key) == {"n2", "n3"}
    await cluster.one("n2", Delete(key))
    assert cluster.holders(key) == {"n3"}
    await cluster.nodes["n2"].owner.replay_hints()
    assert cluster.holders(key) == set()


async def test_other_namespaces_are_copied_at_once(later: tuple[Cluster, str, str]) -> None:
    cluster, key, other = later
    answers = await do(cluster.nodes["n2"], Set(key, b"v"), Set(other, b"v"))
    assert [answer.replicas for answer in answers if isinstance(answer, SetResult)] == [1, 2]
    assert (cluster.holders(key), cluster.holders(other)) == ({"n2"}, {"n2", "n3"})


async def test_who_asks_for_replicas_waits_for_them_all_the_same(later: tuple[Cluster, str, str]) -> None:
    cluster, key, _ = later
    answer = await cluster.one("n2", Set(key, b"v", min_replicas=2))
    assert isinstance(answer, SetResult)
    assert answer.replicas == 2
    assert cluster.holders(key) == {"n2", "n3"}
    assert len(cluster.nodes["n2"].owner.replicator.hints) == 0


async def test_an_attempt_has_half_of_the_time_that_is_left(cluster: Cluster) -> None:
    call = Call(cluster.clock, cluster.clock.now_ms() + 1_000, 0)
    assert (call.attempt_ms(400), call.attempt_ms(900)) == (400, 500)
    cluster.clock.advance(900)
    assert call.attempt_ms(400) == 50
    cluster.clock.advance(200)
    assert call.attempt_ms(400) == 1
