"""Leases over real connections, to the owner itself and through a node that is none."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from cacheservice.config import NamespaceSettings
from cacheservice.errors import CacheServiceError, InvalidArgument
from cacheservice.ring import Ring, RingMember
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1 import cluster_pb2
from cacheservice.v1.admin_pb2 import StatsRequest
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.wire import from_rpc_error
from tests.server.conftest import StartNode
from tests.server.test_exchange import exchange

RING = Ring([RingMember("n1"), RingMember("n2")])
KEY = next(key for key in map(str, range(1_000)) if RING.owners(key, 1) == ("n1",))
OTHER = next(key for key in map(str, range(1_000)) if RING.owners(key, 1) == ("n2",))
WAIT = pb.LeaseOptions(wait_ms=20_000)


@pytest.fixture(params=["n1", "n2"], ids=["by the owner", "forwarded"])
async def channel(start_node: StartNode, request: pytest.FixtureRequest) -> grpc.aio.Channel:
    """To the node of that name, of two which keep one copy of each entry."""
    nodes = {"n1": await start_node(node_id="n1", replication_factor=1, retry_seconds=60)}
    described = await ClusterServiceStub(nodes["n1"]).Describe(cluster_pb2.DescribeRequest())
    seeds = described.topology.members[0].address
    nodes["n2"] = await start_node(node_id="n2", replication_factor=1, retry_seconds=60, seeds=seeds)
    async with asyncio.timeout(20):
        for node in nodes.values():
            while True:
                described = await ClusterServiceStub(node).Describe(cluster_pb2.DescribeRequest())
                states = [member.state for member in described.topology.members]
                if states == [cluster_pb2.MEMBER_STATE_ALIVE] * 2:
                    break
                await asyncio.sleep(0.01)
    return nodes[request.param]


@pytest.fixture
def cache(channel: grpc.aio.Channel) -> Any:
    return CacheServiceStub(channel)


async def refusal(call: Any) -> CacheServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def leased(cache: Any, key: str = KEY, wait: pb.LeaseOptions | None = None) -> pb.GetResponse:
    response: pb.GetResponse = await cache.Get(pb.GetRequest(key=key, lease=wait or pb.LeaseOptions()))
    return response


async def test_one_loads_and_all_who_wait_have_it(cache: Any) -> None:
    first = await leased(cache)
    assert (first.outcome, first.lease_ms, first.served_by) == (pb.GET_OUTCOME_MISS, 10_000, "n1")
    assert len(first.lease_token) == 16
    at_once = await leased(cache)
    assert (at_once.outcome, at_once.lease_token) == (pb.GET_OUTCOME_MISS, b"")
    waiting = [asyncio.create_task(leased(cache, wait=WAIT)) for _ in range(50)]
    stored = await cache.Set(pb.SetRequest(key=KEY, value=b"v", lease_token=first.lease_token))
    assert stored.outcome == pb.SET_OUTCOME_STORED
    found = await asyncio.gather(*waiting)
    assert {(read.outcome, read.value, read.lease_token) for read in found} == {
        (pb.GET_OUTCOME_HIT, b"v", b"")
    }


async def test_stats_tell_of_loads(start_node: StartNode) -> None:
    channel = await start_node(retry_seconds=60)
    cache: Any = CacheServiceStub(channel)
    for key in ("filled", "void", "failed"):
        token = (await leased(cache, key)).lease_token
        if key == "failed":
            await cache.ReleaseLease(pb.ReleaseLeaseRequest(key=key, lease_token=token, error="down"))
            continue
        if key == "void":
            await cache.Delete(pb.DeleteRequest(key=key))
        await cache.Set(pb.SetRequest(key=key, value=b"v", lease_token=token))
    await leased(cache, "held")
    waiting = asyncio.create_task(leased(cache, "held", WAIT))
    admin = AdminServiceStub(channel)
    async with asyncio.timeout(10):
        while not (stats := await admin.Stats(StatsRequest())).waiting:
            await asyncio.sleep(0.01)
    told = (stats.leases_granted, stats.early_refreshes, stats.fills_refused, stats.loads_failed)
    assert told == (4, 0, 1, 1)
    assert stats.waiting == 1
    await cache.Set(pb.SetRequest(key="held", value=b"v"))
    assert (await waiting).value == b"v"


async def test_a_refused_fill_says_why(cache: Any) -> None:
    token = (await leased(cache)).lease_token
    await cache.Delete(pb.DeleteRequest(key=KEY))
    void = await cache.Set(pb.SetRequest(key=KEY, value=b"v", lease_token=token))
    assert (void.outcome, void.reason) == (pb.SET_OUTCOME_NOT_STORED, pb.NOT_STORED_REASON_LEASE_VOID)
    unknown = await cache.Set(pb.SetRequest(key=KEY, value=b"v", lease_token=b"?"))
    assert unknown.reason == pb.NOT_STORED_REASON_LEASE_UNKNOWN
    condition = await cache.Set(pb.SetRequest(key=KEY, value=b"v", if_present=True))
    assert condition.reason == pb.NOT_STORED_REASON_CONDITION


async def test_those_who_wait_are_told_of_a_failure_and_the_next_one_loads(cache: Any) -> None:
    token = (await leased(cache)).lease_token
    waiting = asyncio.create_task(leased(cache, wait=WAIT))
    release = pb.ReleaseLeaseRequest(key=KEY, lease_token=token, error="the database is down")
    assert (await cache.ReleaseLease(release)).outcome == pb.RELEASE_LEASE_OUTCOME_RELEASED
    assert (await cache.ReleaseLease(release)).outcome == pb.RELEASE_LEASE_OUTCOME_UNKNOWN
    told = await waiting
    assert told.load_failure.error == "the database is down"
    assert told.load_failure.retry_after_ms <= 250
    again = pb.ReleaseLeaseRequest(key=KEY, lease_token=await next_token(cache), error="still down")
    await cache.ReleaseLease(again)
    assert (await leased(cache, wait=WAIT)).load_failure.retry_after_ms > 50_000


async def next_token(cache: Any) -> bytes:
    async with asyncio.timeout(10):
        while not (token := (await leased(cache)).lease_token):
            await asyncio.sleep(0.01)
    return token


async def test_an_entry_that_outlived_its_time_is_there_for_errors(cache: Any) -> None:
    await cache.Set(pb.SetRequest(key=KEY, value=b"old", ttl_seconds=0.001, stale_if_error_seconds=600))
    token = await next_token(cache)
    released = await cache.ReleaseLease(pb.ReleaseLeaseRequest(key=KEY, lease_token=token, error="down"))
    assert (released.fallback.outcome, released.fallback.value) == (pb.GET_OUTCOME_STALE, b"old")
    told = await leased(cache)
    assert (told.outcome, told.value, told.load_failure.error) == (pb.GET_OUTCOME_STALE, b"old", "down")


async def test_known_absence(cache: Any) -> None:
    await cache.Set(pb.SetRequest(key=KEY, absent=True, ttl_seconds=60))
    found = await leased(cache)
    assert (found.outcome, found.value) == (pb.GET_OUTCOME_ABSENT, b"")
    assert 30 < found.ttl_seconds <= 60


async def test_batches_take_leases_and_wait(cache: Any) -> None:
    await cache.Set(pb.SetRequest(key="there", value=b"v"))
    keys = [KEY, "there", OTHER]
    batch = pb.BatchGetRequest(keys=keys, lease=pb.LeaseOptions())
    first = [result.response for result in (await cache.BatchGet(batch)).results]
    assert [bool(read.lease_token) for read in first] == [True, False, True]
    waiting = cache.BatchGet(pb.BatchGetRequest(keys=keys, lease=WAIT))
    fills = [
        pb.SetRequest(key=key, value=b"loaded", lease_token=read.lease_token)
        for key, read in zip(keys, first, strict=True)
        if read.lease_token
    ]
    for fill in (await cache.BatchSet(pb.BatchSetRequest(requests=fills))).results:
        assert fill.response.outcome == pb.SET_OUTCOME_STORED
    found = [result.response.value for result in (await waiting).results]
    assert found == [b"loaded", b"v", b"loaded"]


async def test_leases_on_a_stream(channel: grpc.aio.Channel, cache: Any) -> None:
    get = pb.GetColumns(keys=["there", KEY, "", OTHER], lease=pb.LeaseOptions(), values_only=True)
    await cache.Set(pb.SetRequest(key="there", value=b"v"))
    [answer] = await exchange(channel, pb.ExchangeRequest(batch_id=1, get=get))
    assert [error.index for error in answer.errors] == [2]
    tokens = {lease.index: lease.token for lease in answer.get.leases}
    assert tokens.keys() == {1, 3}
    assert {lease.lease_ms for lease in answer.get.leases} == {10_000}
    get.lease.wait_ms = 20_000
    waiting = asyncio.create_task(exchange(channel, pb.ExchangeRequest(batch_id=2, get=get)))
    await cache.Set(pb.SetRequest(key=KEY, value=b"loaded", lease_token=tokens[1]))
    release = pb.ReleaseLeaseRequest(key=OTHER, lease_token=tokens[3], error="down")
    await cache.ReleaseLease(release)
    [answer] = await waiting
    assert list(answer.get.values) == [b"v", b"loaded", b"", b""]
    assert [(at.index, at.failure.error) for at in answer.get.load_failures] == [(3, "down")]


@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("Get", pb.GetRequest(key="k", lease=pb.LeaseOptions(wait_ms=60_001)), "lease.wait_ms"),
        (
            "BatchGet",
            pb.BatchGetRequest(keys=["k"], lease=pb.LeaseOptions(wait_ms=60_001)),
            "lease.wait_ms",
        ),
        ("Set", pb.SetRequest(key="k", lease_token=b"t" * 65), "lease_token"),
        ("Set", pb.SetRequest(key="k", stale_if_error_seconds=-1), "stale_if_error_seconds"),
        ("Set", pb.SetRequest(key="k", value=b"v", absent=True), "value"),
        ("ReleaseLease", pb.ReleaseLeaseRequest(key="", lease_token=b"t"), "key"),
        ("ReleaseLease", pb.ReleaseLeaseRequest(key="k"), "lease_token"),
        ("ReleaseLease", pb.ReleaseLeaseRequest(key="k", lease_token=b"t", error="e" * 1_025), "error"),
    ],
)
async def test_bounds(start_node: StartNode, rpc: str, request_: Any, field: str) -> None:
    cache: Any = CacheServiceStub(await start_node())
    error = await refusal(getattr(cache, rpc)(request_))
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field


async def test_settings_for_all_and_for_a_namespace(start_node: StartNode) -> None:
    namespaces = {"quick": NamespaceSettings(lease_seconds=3, stale_seconds=60)}
    cache: Any = CacheServiceStub(await start_node(lease_seconds=7, namespaces=namespaces))
    assert [(await leased(cache, key)).lease_ms for key in ("a", "quick:a")] == [7_000, 3_000]
    await cache.Set(pb.SetRequest(key="quick:b", value=b"v", ttl_seconds=0.001))
    async with asyncio.timeout(10):
        while (await cache.Get(pb.GetRequest(key="quick:b"))).outcome != pb.GET_OUTCOME_STALE:
            await asyncio.sleep(0.001)


async def test_those_who_wait_do_not_count_as_in_flight_and_are_bounded(start_node: StartNode) -> None:
    cache: Any = CacheServiceStub(await start_node(max_in_flight=4))
    token = (await leased(cache)).lease_token
    reads = [asyncio.create_task(leased(cache, wait=WAIT)) for _ in range(4)]
    done, waiting = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    async with asyncio.timeout(10):
        while len(done) < 2:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
    assert {(read.result().outcome, read.result().lease_token) for read in done} == {
        (pb.GET_OUTCOME_MISS, b"")
    }
    for _ in range(4):
        assert (await cache.Get(pb.GetRequest(key="other"))).outcome == pb.GET_OUTCOME_MISS
    await cache.Set(pb.SetRequest(key=KEY, value=b"v", lease_token=token))
    assert [read.value for read in await asyncio.gather(*waiting)] == [b"v", b"v"]
