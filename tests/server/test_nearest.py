"""Reads that a replica nearby may answer, over real connections to nodes in two zones."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from cacheservice.errors import InvalidArgument
from cacheservice.ring import Ring, RingMember
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1 import cluster_pb2
from cacheservice.v1.admin_pb2 import StatsRequest
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.wire import from_status
from tests.server.conftest import StartNode
from tests.server.test_exchange import exchange, reads

ZONES = {"n1": "a", "n2": "b", "n3": "b"}
RING = Ring([RingMember(name, zone) for name, zone in ZONES.items()])
KEY = next(key for key in map(str, range(1_000)) if RING.owners(key, 2) == ("n1", "n2"))
OWN = next(key for key in map(str, range(1_000)) if RING.owners(key, 1) == ("n2",))
NEAREST = pb.READ_PREFERENCE_NEAREST
UNKNOWN: Any = 3

Channels = dict[str, grpc.aio.Channel]


@pytest.fixture
async def channels(start_node: StartNode) -> Channels:
    """The nodes of ZONES, when each has been given what it owns; KEY is written."""
    first = await start_node(node_id="n1", zone="a")
    [member] = (await topology(first)).members
    nodes = {"n1": first}
    for name in ("n2", "n3"):
        nodes[name] = await start_node(node_id=name, zone=ZONES[name], seeds=member.address)
    async with asyncio.timeout(20):
        for channel in nodes.values():
            while [member.state for member in (await topology(channel)).members] != [
                cluster_pb2.MEMBER_STATE_ALIVE
            ] * 3:
                await asyncio.sleep(0.01)
        await CacheServiceStub(first).Set(pb.SetRequest(key=KEY, value=b"v"))
        while (await read(nodes["n2"], read_preference=NEAREST)).served_by != "n2":
            await asyncio.sleep(0.01)
    return nodes


async def topology(channel: grpc.aio.Channel) -> cluster_pb2.Topology:
    response = await ClusterServiceStub(channel).Describe(cluster_pb2.DescribeRequest())
    return response.topology


async def read(channel: grpc.aio.Channel, key: str = KEY, **options: Any) -> pb.GetResponse:
    return await CacheServiceStub(channel).Get(pb.GetRequest(key=key, **options))


async def asked(channel: grpc.aio.Channel) -> int:
    """How often the node has looked for an entry."""
    stats = await AdminServiceStub(channel).Stats(StatsRequest())
    return stats.hits + stats.misses


async def test_a_replica_in_the_zone_is_asked_and_the_first_owner_is_not(channels: Channels) -> None:
    before = await asked(channels["n1"])
    for via, hops in (("n2", 0), ("n3", 1)):
        found = await read(channels[via], read_preference=NEAREST)
        assert (found.value, found.served_by, found.hops, found.from_replica) == (b"v", "n2", hops, True)
        assert 0 <= found.age_seconds < 60
    assert await asked(channels["n1"]) == before


@pytest.mark.parametrize("options", [{}, {"read_preference": pb.READ_PREFERENCE_OWNER}])
async def test_the_first_owner_is_asked_by_default(channels: Channels, options: dict[str, Any]) -> None:
    for via, hops in (("n1", 0), ("n2", 1), ("n3", 1)):
        found = await read(channels[via], **options)
        assert (found.value, found.served_by, found.hops, found.from_replica) == (b"v", "n1", hops, False)
    [columns] = await exchange(channels["n2"], reads(1, KEY, **options))
    assert list(columns.get.values) == [b"v"]
    assert list(columns.get.from_replica) == []


async def test_a_miss_is_the_first_owners(channels: Channels) -> None:
    missing = next(key for key in map(str, range(1_000)) if key != KEY and RING.owners(key, 1) == ("n1",))
    for via in ("n2", "n3"):
        found = await read(channels[via], missing, read_preference=NEAREST)
        assert (found.outcome, found.served_by) == (pb.GET_OUTCOME_MISS, "n1")
        assert not found.from_replica


async def test_batches_say_of_each_key_whether_it_is_from_a_replica(channels: Channels) -> None:
    await CacheServiceStub(channels["n1"]).Set(pb.SetRequest(key=OWN, value=b"own"))
    before = await asked(channels["n1"])
    for via in ("n2", "n3"):
        found = await CacheServiceStub(channels[via]).BatchGet(
            pb.BatchGetRequest(keys=[KEY, OWN], read_preference=NEAREST)
        )
        assert [result.response.value for result in found.results] == [b"v", b"own"]
        assert [result.response.from_replica for result in found.results] == [True, False]
        whole, values_only = await exchange(
            channels[via],
            reads(1, KEY, "", OWN, read_preference=NEAREST),
            reads(2, KEY, OWN, read_preference=NEAREST, values_only=True),
        )
        assert list(whole.get.from_replica) == [True, False, False]
        assert list(values_only.get.values) == [b"v", b"own"]
        assert list(values_only.get.from_replica) == []
    assert await asked(channels["n1"]) == before


async def test_an_exchange_with_a_preference_that_nobody_knows_is_refused(start_node: StartNode) -> None:
    [answer] = await exchange(await start_node(), reads(1, "k", read_preference=UNKNOWN))
    error = from_status(answer.refused)
    assert isinstance(error, InvalidArgument)
    assert error.metadata == {"field": "read_preference", "bound": "a ReadPreference, 0 to 2"}
