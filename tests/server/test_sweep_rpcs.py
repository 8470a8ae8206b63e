"""InvalidateTag, InvalidatePrefix, Scan and what Stats tells of the store, over a real connection."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from cacheservice.errors import ClusterIdMismatch, InvalidArgument
from cacheservice.v1 import admin_pb2, cluster_pb2
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.server.conftest import StartNode
from tests.server.test_cache_service import error_of


@pytest.fixture
async def channel(start_node: StartNode) -> grpc.aio.Channel:
    return await start_node()


@pytest.fixture
def cache(channel: grpc.aio.Channel) -> Any:
    return CacheServiceStub(channel)


async def fill(cache: Any, count: int, value: bytes = b"v", **fields: Any) -> None:
    keys = [f"item:{number}" for number in range(count)]
    requests = [pb.SetRequest(key=key, value=value, **fields) for key in keys]
    await cache.BatchSet(pb.BatchSetRequest(requests=requests))


async def test_a_tag_takes_its_entries_with_it(cache: Any) -> None:
    await fill(cache, 20, tags=["red", "round"])
    await cache.Set(pb.SetRequest(key="other", value=b"v", tags=["green"]))
    assert (await cache.InvalidateTag(pb.InvalidateTagRequest(tag="round"))).removed == 20
    assert (await cache.InvalidateTag(pb.InvalidateTagRequest(tag="red"))).removed == 0
    assert (await cache.Get(pb.GetRequest(key="item:3"))).outcome == pb.GET_OUTCOME_MISS
    assert (await cache.Get(pb.GetRequest(key="other"))).outcome == pb.GET_OUTCOME_HIT


async def test_a_prefix_takes_its_entries_with_it(cache: Any) -> None:
    await fill(cache, 20)
    answer = await cache.InvalidatePrefix(pb.InvalidatePrefixRequest(prefix="item:1"))
    assert (answer.removed, answer.ring_epoch > 0) == (11, True)
    assert (await cache.Get(pb.GetRequest(key="item:2"))).outcome == pb.GET_OUTCOME_HIT


async def test_pages_of_a_scan_hold_each_entry_once(cache: Any) -> None:
    await fill(cache, 250, ttl_seconds=60, stale_seconds=5, load_seconds=0.5, tags=["t"])
    await cache.Set(pb.SetRequest(key="other", value=b"v"))
    keys: list[str] = []
    token = ""
    while True:
        page = await cache.Scan(pb.ScanRequest(prefix="item:", page_size=100, page_token=token))
        keys += [entry.key for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert sorted(keys) == sorted(f"item:{number}" for number in range(250))
    entry = page.entries[0]
    assert (entry.value_bytes, entry.stale_seconds, entry.load_seconds) == (1, 5, 0.5)
    assert entry.tags == ["t"]
    assert not entry.HasField("value")
    assert 30 < entry.ttl_seconds <= 60
    assert 0 <= entry.age_seconds < 30
    assert entry.version > 0


async def test_a_scan_sends_values_when_asked_within_one_message(start_node: StartNode) -> None:
    cache: Any = CacheServiceStub(await start_node(max_message_bytes=1 << 20, max_value_bytes=1 << 19))
    for number in range(4):
        await cache.Set(pb.SetRequest(key=f"k{number}", value=bytes(300_000)))
    pages: list[list[int]] = []
    token = ""
    while not pages or token:
        page = await cache.Scan(pb.ScanRequest(include_values=True, page_token=token))
        pages.append([len(entry.value) for entry in page.entries])
        token = page.next_page_token
    assert pages == [[300_000]] * 4


BAD = [
    ("InvalidateTag", pb.InvalidateTagRequest(), "tag"),
    ("InvalidateTag", pb.InvalidateTagRequest(tag="x" * 129), "tag"),
    ("InvalidateTag", pb.InvalidateTagRequest(tag="a\0b"), "tag"),
    ("InvalidatePrefix", pb.InvalidatePrefixRequest(), "prefix"),
    ("InvalidatePrefix", pb.InvalidatePrefixRequest(prefix="x" * 1_025), "prefix"),
    ("Scan", pb.ScanRequest(prefix="x" * 1_025), "prefix"),
    ("Scan", pb.ScanRequest(page_size=1_001), "page_size"),
    ("Scan", pb.ScanRequest(page_token="nonsense"), "page_token"),
    ("Scan", pb.ScanRequest(page_token="00000000-0"), "page_token"),
]


@pytest.mark.parametrize(("rpc", "request_", "field"), BAD)
async def test_what_is_out_of_bounds_is_refused_by_name(
    cache: Any, rpc: str, request_: Any, field: str
) -> None:
    error = await error_of(getattr(cache, rpc)(request_))
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field


@pytest.fixture
async def several(start_node: StartNode) -> list[grpc.aio.Channel]:
    """Three nodes, each of which holds what it owns."""
    first = await start_node(node_id="n1")
    describe = ClusterServiceStub(first).Describe
    [member] = (await describe(cluster_pb2.DescribeRequest())).topology.members
    channels = [first, *[await start_node(node_id=name, seeds=member.address) for name in ("n2", "n3")]]
    async with asyncio.timeout(10):
        while True:
            topologies = [
                (await ClusterServiceStub(each).Describe(cluster_pb2.DescribeRequest())).topology
                for each in channels
            ]
            states = [[member.state for member in topology.members] for topology in topologies]
            if states == [[cluster_pb2.MEMBER_STATE_ALIVE] * 3] * 3:
                return channels
            await asyncio.sleep(0.01)


async def test_invalidations_and_scans_reach_all_nodes(several: list[grpc.aio.Channel]) -> None:
    caches: list[Any] = list(map(CacheServiceStub, several))
    await fill(caches[0], 60, tags=["t"])
    await caches[0].BatchSet(
        pb.BatchSetRequest(requests=[pb.SetRequest(key=f"other:{n}", value=b"v") for n in range(40)])
    )
    keys: list[str] = []
    token = ""
    while True:
        page = await caches[1].Scan(pb.ScanRequest(page_size=7, page_token=token))
        keys += [entry.key for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert sorted(keys) == sorted([f"item:{n}" for n in range(60)] + [f"other:{n}" for n in range(40)])
    assert list(page.unreachable) == []
    assert (await caches[2].InvalidatePrefix(pb.InvalidatePrefixRequest(prefix="item:1"))).removed == 11
    assert (await caches[1].InvalidateTag(pb.InvalidateTagRequest(tag="t"))).removed == 49
    for cache in caches:
        found = await cache.BatchGet(pb.BatchGetRequest(keys=[f"item:{n}" for n in range(60)]))
        assert {result.response.outcome for result in found.results} == {pb.GET_OUTCOME_MISS}


async def test_flush_empties_all_nodes_if_the_cluster_is_named(several: list[grpc.aio.Channel]) -> None:
    cache: Any = CacheServiceStub(several[0])
    admin: Any = AdminServiceStub(several[1])
    await fill(cache, 30)
    assert isinstance(await error_of(admin.Flush(admin_pb2.FlushRequest())), ClusterIdMismatch)
    flushed = await admin.Flush(admin_pb2.FlushRequest(cluster_id="cacheservice"))
    assert (flushed.removed, list(flushed.unreachable)) == (30, [])
    for channel in several:
        stats = await AdminServiceStub(channel).Stats(admin_pb2.StatsRequest())
        assert stats.entries == 0


async def test_a_drained_node_leaves_its_entries_with_the_others(several: list[grpc.aio.Channel]) -> None:
    caches: list[Any] = list(map(CacheServiceStub, several))
    await fill(caches[0], 300)
    drained = await AdminServiceStub(several[2]).Drain(admin_pb2.DrainRequest(deadline_seconds=20))
    assert drained.handed_off > 0
    assert drained.left_behind == 0
    again = await AdminServiceStub(several[2]).Drain(admin_pb2.DrainRequest(deadline_seconds=20))
    assert again == drained
    for channel in several[:2]:
        assert (await AdminServiceStub(channel).Stats(admin_pb2.StatsRequest())).entries == 300
    for cache in caches:
        found = await cache.BatchGet(pb.BatchGetRequest(keys=[f"item:{n}" for n in range(300)]))
        assert {result.response.outcome for result in found.results} == {pb.GET_OUTCOME_HIT}


async def test_a_deadline_to_drain_has_bounds(channel: grpc.aio.Channel) -> None:
    drain: Any = AdminServiceStub(channel).Drain
    for seconds in (-1.0, 3_601.0, float("nan")):
        error = await error_of(drain(admin_pb2.DrainRequest(deadline_seconds=seconds)))
        assert isinstance(error, InvalidArgument)
        assert error.metadata["field"] == "deadline_seconds"


async def test_stats_tell_of_parts_namespaces_and_other_amounts_of_memory(start_node: StartNode) -> None:
    channel = await start_node(policy="adaptive", namespaces={"item": {"share": 0.25, "policy": "lfu"}})
    cache: Any = CacheServiceStub(channel)
    admin: Any = AdminServiceStub(channel)
    await fill(cache, 30, tags=["t"])
    await cache.Set(pb.SetRequest(key="bare", value=b"v"))
    await cache.Get(pb.GetRequest(key="bare"))
    await cache.Get(pb.GetRequest(key="missing"))
    await cache.Delete(pb.DeleteRequest(key="item:1"))
    await cache.InvalidateTag(pb.InvalidateTagRequest(tag="t"))
    await cache.Set(pb.SetRequest(key="item:1", value=b"v"))
    stats = await admin.Stats(admin_pb2.StatsRequest())
    shared, item = stats.parts
    assert (shared.namespace, shared.policy, shared.hits, shared.misses) == ("", "adaptive", 1, 1)
    assert (item.namespace, item.policy, item.entries) == ("item", "lfu", 1)
    assert (item.deletes, item.invalidated, item.sets) == (1, 29, 31)
    assert item.max_bytes * 3 == pytest.approx(shared.max_bytes, rel=0.01)
    assert (stats.entries, stats.bytes) == (2, shared.bytes + item.bytes)
    assert stats.policy == "adaptive"
    assert [(usage.namespace, usage.entries) for usage in stats.namespaces] in (
        [("", 1), ("item", 1)],
        [("item", 1), ("", 1)],
    )
    assert [(estimate.factor, estimate.hit_ratio) for estimate in shared.estimates] == [
        (0.5, 0.5),
        (2.0, 0.5),
    ]
    assert list(item.estimates) == []
