"""Which keys are hot, over real connections."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from cacheservice.errors import InvalidArgument
from cacheservice.node.hot_keys import HOT_MS
from cacheservice.ring import Ring, RingMember
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1 import cluster_pb2
from cacheservice.v1.admin_pb2 import HotKey, HotKeysRequest
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.wire import from_rpc_error
from tests.server.conftest import StartNode
from tests.server.test_exchange import exchange, reads, writes

RING = Ring([RingMember("n1"), RingMember("n2")])
OF_N1 = next(key for key in map(str, range(1_000)) if RING.owners(key, 1) == ("n1",))
OF_N2 = next(key for key in map(str, range(1_000)) if RING.owners(key, 1) == ("n2",))


async def heat(channel: grpc.aio.Channel, key: str) -> None:
    """Reads the key until it is hot."""
    async with asyncio.timeout(20):
        while True:
            answers = await exchange(channel, *(reads(number, *[key] * 5_000) for number in range(4)))
            if answers[-1].get.hot:
                return


async def hot_keys(channel: grpc.aio.Channel, limit: int = 0) -> list[HotKey]:
    return list((await AdminServiceStub(channel).HotKeys(HotKeysRequest(limit=limit))).keys)


async def two_nodes(start_node: StartNode) -> tuple[grpc.aio.Channel, grpc.aio.Channel]:
    """n1 and n2, when both know that."""
    first = await start_node(node_id="n1")
    [member] = (await topology(first)).members
    second = await start_node(node_id="n2", seeds=member.address)
    async with asyncio.timeout(20):
        for channel in (first, second):
            while (await topology(channel)).ring_epoch != RING.epoch:
                await asyncio.sleep(0.01)
    return first, second


async def topology(channel: grpc.aio.Channel) -> cluster_pb2.Topology:
    return (await ClusterServiceStub(channel).Describe(cluster_pb2.DescribeRequest())).topology


async def test_the_keys_that_are_served_most_are_listed(start_node: StartNode) -> None:
    channel = await start_node()
    assert await hot_keys(channel) == []
    await exchange(channel, *(reads(number, *["a"] * 6_000, *["b"] * 3_000) for number in range(5)))
    response = await AdminServiceStub(channel).HotKeys(HotKeysRequest())
    assert [hot.key for hot in response.keys] == ["a", "b"]
    assert response.keys[0].operations_per_second > response.keys[1].operations_per_second > 0
    assert response.ring_epoch == (await topology(channel)).ring_epoch
    assert [hot.key for hot in await hot_keys(channel, 1)] == ["a"]


async def test_twenty_are_listed_by_default_and_a_thousand_at_most(start_node: StartNode) -> None:
    channel = await start_node()
    keys = [f"k{number}" for number in range(100)]
    await exchange(channel, *(reads(number, *keys * 100) for number in range(20)))
    assert len(await hot_keys(channel)) == 20
    assert len(await hot_keys(channel, 1_000)) == 100
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await hot_keys(channel, 1_001)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgument)
    assert error.metadata == {"field": "limit", "bound": "at most 1000"}


async def test_answers_tell_which_keys_are_hot(start_node: StartNode) -> None:
    channel = await start_node()
    await exchange(channel, writes(1, {"a": b"1", "b": b"2"}))
    await heat(channel, "a")
    whole, values_only = await exchange(
        channel, reads(1, "b", "", "a", "none"), reads(2, "a", "b", "a", values_only=True)
    )
    assert (list(whole.get.hot), whole.get.hot_ms) == ([2], HOT_MS)
    assert (list(values_only.get.hot), values_only.get.hot_ms) == ([0, 2], HOT_MS)
    cache = CacheServiceStub(channel)
    assert (await cache.Get(pb.GetRequest(key="a"))).hot_ms == HOT_MS
    assert (await cache.Get(pb.GetRequest(key="b"))).hot_ms == 0
    found = await cache.BatchGet(pb.BatchGetRequest(keys=["b", "a"]))
    assert [result.response.hot_ms for result in found.results] == [0, HOT_MS]


async def test_a_node_passes_on_that_a_key_is_hot_at_another_one(start_node: StartNode) -> None:
    first, second = await two_nodes(start_node)
    await exchange(first, writes(1, {OF_N1: b"1", OF_N2: b"2"}))
    await heat(first, OF_N1)
    found = await CacheServiceStub(second).Get(pb.GetRequest(key=OF_N1))
    assert (found.served_by, found.hops, found.hot_ms) == ("n1", 1, HOT_MS)
    [columns] = await exchange(second, reads(1, OF_N2, OF_N1))
    assert (list(columns.get.hot), columns.get.hot_ms) == ([1], HOT_MS)
    assert [hot.key for hot in await hot_keys(first)] == [OF_N1]
    assert OF_N1 not in {hot.key for hot in await hot_keys(second)}
