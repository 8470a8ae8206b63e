"""The client's reads from its own zone, against real nodes in two zones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cacheservice.client import Client
from cacheservice.client.batch import Reads
from cacheservice.client.placement import Placement
from cacheservice.client.waiting import Caller
from cacheservice.config import Settings
from cacheservice.ring import Ring, RingMember
from cacheservice.server.app import NodeServer
from cacheservice.v1 import cluster_pb2
from cacheservice.v1.admin_pb2 import StatsRequest
from tests.client.leaving import TIMES, pending, taken

ZONES = {"n1": "a", "n2": "b", "n3": "b"}
RING = Ring([RingMember(name, zone) for name, zone in ZONES.items()])
VALUES = {f"k{number}": str(number).encode() for number in range(300)}
OF_N1 = {key for key in VALUES if RING.owners(key, 1) == ("n1",)}
"""n1, alone in its zone, is an owner of all the others too."""

Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
async def servers(stack: AsyncExitStack) -> dict[str, NodeServer]:
    nodes: dict[str, NodeServer] = {}
    seeds: tuple[str, ...] = ()
    for name, zone in ZONES.items():
        nodes[name] = NodeServer(
            Settings(node_id=name, listen="127.0.0.1:0", drain_seconds=0, seeds=seeds, zone=zone)
        )
        address = await nodes[name].start()
        stack.push_async_callback(nodes[name].stop)
        await nodes[name].join()
        seeds = seeds or (address,)
    return nodes


@pytest.fixture
def connect(stack: AsyncExitStack, servers: dict[str, NodeServer]) -> Connect:
    async def open_client(**options: Any) -> Client:
        """A client that knows all nodes, when they hold VALUES and each has been given what it owns."""
        cache = await stack.enter_async_context(Client(address_of(servers["n1"]), timeout=10, **options))
        await cache.set_many(VALUES)
        async with asyncio.timeout(20):
            for name in ZONES:
                while not await holds_its_own(cache, servers[name]):
                    await asyncio.sleep(0.01)
            while len(cache.nodes.addresses) < len(ZONES):
                await asyncio.sleep(0.01)
        return cache

    return open_client


def address_of(server: NodeServer) -> str:
    return f"127.0.0.1:{server.port}"


async def holds_its_own(cache: Client, server: NodeServer) -> bool:
    describe = cache.nodes.at(address_of(server)).cluster.Describe
    topology = (await describe(cluster_pb2.DescribeRequest())).topology
    states = [member.state for member in topology.members]
    stats = await cache.nodes.at(address_of(server)).admin.Stats(StatsRequest())
    held = sum(topology.node_id in RING.owners(key, 2) for key in VALUES)
    return states == [cluster_pb2.MEMBER_STATE_ALIVE] * len(ZONES) and stats.entries == held


async def asked(cache: Client, servers: Iterable[NodeServer]) -> list[int]:
    """How often each of the nodes has looked for an entry, or passed an operation on."""
    stats = [await cache.nodes.at(address_of(server)).admin.Stats(StatsRequest()) for server in servers]
    return [answer.hits + answer.misses + answer.forwarded for answer in stats]


async def read_all(cache: Client, **options: Any) -> None:
    assert await cache.get_many(VALUES, **options) == VALUES
    found = await asyncio.gather(*(cache.get(key, **options) for key in VALUES))
    assert found == list(VALUES.values())


@pytest.mark.parametrize(
    ("of_client", "of_call"),
    [({"read_preference": "nearest"}, {}), ({}, {"read_preference": "nearest"})],
    ids=["by the client", "by the call"],
)
async def test_reads_are_answered_in_the_clients_zone(
    servers: dict[str, NodeServer], connect: Connect, of_client: dict[str, Any], of_call: dict[str, Any]
) -> None:
    cache = await connect(zone="a", **of_client)
    before = await asked(cache, servers.values())
    await read_all(cache, **of_call)
    for key in list(VALUES)[:20]:
        found = await cache.lookup(key, **of_call)
        assert (found.value, found.served_by, found.hops) == (VALUES[key], "n1", 0)
        assert found.from_replica == (key not in OF_N1)
        assert 0 <= found.age < 60
    after = await asked(cache, servers.values())
    assert after == [before[0] + 2 * len(VALUES) + 20, *before[1:]]


@pytest.mark.parametrize(
    ("of_client", "of_call"),
    [({}, {}), ({"read_preference": "nearest"}, {"read_preference": "owner"})],
    ids=["by the client", "by the call"],
)
async def test_the_first_owners_are_asked(
    servers: dict[str, NodeServer], connect: Connect, of_client: dict[str, Any], of_call: dict[str, Any]
) -> None:
    cache = await connect(zone="a", **of_client)
    before = await asked(cache, servers.values())
    await read_all(cache, **of_call)
    after = await asked(cache, servers.values())
    assert sum(after) == sum(before) + 2 * len(VALUES)
    assert after[0] == before[0] + 2 * len(OF_N1)
    for key in list(VALUES)[:20]:
        found = await cache.lookup(key, **of_call)
        assert (found.served_by == "n1", found.from_replica) == (key in OF_N1, False)


@pytest.mark.parametrize("zone", ["", "elsewhere"])
async def test_where_no_owner_is_in_the_zone_the_first_one_is_asked(
    servers: dict[str, NodeServer], connect: Connect, zone: str
) -> None:
    cache = await connect(zone=zone, read_preference="nearest")
    before = await asked(cache, servers.values())
    await read_all(cache)
    after = await asked(cache, servers.values())
    assert sum(after) == sum(before) + 2 * len(VALUES)
    assert after[0] == before[0] + 2 * len(OF_N1)


async def test_a_miss_and_a_node_that_stops_are_made_up_for(
    servers: dict[str, NodeServer], connect: Connect
) -> None:
    cache = await connect(zone="a", read_preference="nearest")
    assert await cache.get_many([f"missing{number}" for number in range(50)]) == {}
    await servers["n1"].stop()
    await read_all(cache)


async def test_only_reads_with_one_preference_leave_together() -> None:
    loop = asyncio.get_running_loop()
    waiting = pending(nearest=True)
    for number, nearest in enumerate([False, False, True]):
        waiting.add(Reads([str(number)], Caller(loop.create_future(), 1), TIMES, nearest))
    waiting.read("single")
    left = taken(waiting, under_way_large=100)
    assert sorted((batch.keys, batch.nearest) for batch in left) == [
        (["0", "1"], False),
        (["2"], True),
        (["single"], True),
    ]


def test_a_suspect_is_not_the_nearest() -> None:
    members = [
        cluster_pb2.Member(
            node_id=name,
            address=name,
            zone=zone,
            weight=1,
            state=cluster_pb2.MEMBER_STATE_SUSPECT if name == "n2" else cluster_pb2.MEMBER_STATE_ALIVE,
            phase=cluster_pb2.MEMBER_PHASE_SERVING,
        )
        for name, zone in ZONES.items()
    ]
    topology = cluster_pb2.Topology(
        members=members, ring_epoch=RING.epoch, virtual_nodes=RING.virtual_nodes, replication_factor=2
    )
    placement = Placement(topology, "b")
    nearest = {RING.owners(key, 2): placement.nearest(key) for key in VALUES}
    assert nearest == {
        ("n1", "n2"): "n1",
        ("n1", "n3"): "n3",
        ("n2", "n1"): "n1",
        ("n3", "n1"): "n3",
    }


async def test_preferences_are_checked() -> None:
    wrong: Any = "near"
    with pytest.raises(ValueError, match="read_preference must be 'owner' or 'nearest', not 'near'"):
        Client("127.0.0.1:1", read_preference=wrong)
    async with Client("127.0.0.1:1") as cache:
        for call in (cache.get, cache.lookup, cache.get_many):
            with pytest.raises(ValueError, match="read_preference"):
                await call("k", read_preference=wrong)
