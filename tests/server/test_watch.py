"""Watch over real connections: one node's events, those of all, slow readers, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import grpc
import pytest

from cacheservice.config import Settings
from cacheservice.errors import CacheServiceError, InvalidArgument, NotReady, Overloaded
from cacheservice.node import events as events_module
from cacheservice.ring import Ring, RingMember
from cacheservice.server.app import NodeServer
from cacheservice.server.watches import HEARTBEAT_MS
from cacheservice.v1 import admin_pb2, cluster_pb2
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.wire import from_rpc_error

DEADLINE_SECONDS = 20


class Nodes:
    """Real servers in this process, that can be started and stopped one by one."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.servers: dict[str, NodeServer] = {}
        self.channels: dict[str, grpc.aio.Channel] = {}
        self._seeds: tuple[str, ...] = ()

    async def start(self, *node_ids: str) -> None:
        for node_id in node_ids:
            settings = Settings(node_id=node_id, listen="127.0.0.1:0", drain_seconds=0, seeds=self._seeds)
            server = self.servers[node_id] = NodeServer(settings)
            address = await server.start()
            self._stack.push_async_callback(server.stop)
            await server.join()
            self._seeds = self._seeds or (address,)
            self.channels[node_id] = await self._stack.enter_async_context(grpc.aio.insecure_channel(address))
        await self.agree()

    async def stop(self, node_id: str) -> None:
        await self.servers.pop(node_id).stop()
        del self.channels[node_id]

    async def agree(self) -> None:
        """Until all see all that run as alive, and nobody else in the ring."""
        alive = cluster_pb2.MEMBER_STATE_ALIVE
        async with asyncio.timeout(DEADLINE_SECONDS):
            for channel in self.channels.values():
                while True:
                    described = await ClusterServiceStub(channel).Describe(cluster_pb2.DescribeRequest())
                    found = {m.node_id for m in described.topology.members if m.state == alive}
                    if found == set(self.channels):
                        break
                    await asyncio.sleep(0.01)

    def cache(self, node_id: str) -> Any:
        return CacheServiceStub(self.channels[node_id])

    async def set(self, node_id: str, key: str, **fields: Any) -> int:
        return int((await self.cache(node_id).Set(pb.SetRequest(key=key, value=b"v", **fields))).version)

    def watch(self, node_id: str, *prefixes: str, this_node_only: bool = True) -> Watch:
        request = pb.WatchRequest(prefixes=prefixes, this_node_only=this_node_only)
        return Watch(self.cache(node_id).Watch(request))

    def watchers(self, node_id: str) -> int:
        return self.servers[node_id]._node.events._count


class Watch:
    """A stream, and what has come on it."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.seen: list[pb.WatchResponse] = []

    async def next(self) -> pb.WatchResponse:
        async with asyncio.timeout(DEADLINE_SECONDS):
            message = await self.call.read()
        assert message is not grpc.aio.EOF
        self.seen.append(message)
        return message  # type: ignore[no-any-return]

    async def until(self, condition: Callable[[pb.WatchResponse], bool]) -> pb.WatchResponse:
        while True:
            message = await self.next()
            if condition(message):
                return message

    async def hears(self, *node_ids: str) -> None:
        """Reads on until each of the nodes has had a heartbeat after this call."""
        missing = set(node_ids)
        while missing:
            message = await self.next()
            if message.HasField("heartbeat"):
                missing.discard(message.node)

    async def key(self, key: str, node: str = "") -> pb.WatchResponse:
        return await self.until(
            lambda message: message.invalidation.key == key and message.node in (node, node or message.node)
        )

    async def error(self) -> CacheServiceError:
        try:
            while True:
                await self.next()
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        yield Nodes(stack)


async def test_a_stream_begins_with_a_heartbeat_and_has_all_that_follows(nodes: Nodes) -> None:
    await nodes.start("n1")
    watch = nodes.watch("n1", "user:")
    first = await watch.next()
    assert first.HasField("heartbeat")
    assert (first.node, first.sequence, first.moment_ms > 0) == ("n1", 0, True)
    await nodes.set("n1", "other")
    written = await nodes.set("n1", "user:1", tags=["t"])
    removed = (await nodes.cache("n1").Delete(pb.DeleteRequest(key="user:1"))).version
    await nodes.cache("n1").InvalidateTag(pb.InvalidateTagRequest(tag="t"))
    await nodes.cache("n1").InvalidatePrefix(pb.InvalidatePrefixRequest(prefix="user:7"))
    await AdminServiceStub(nodes.channels["n1"]).Flush(admin_pb2.FlushRequest(cluster_id="cacheservice"))
    await watch.until(lambda message: message.invalidation.WhichOneof("target") == "prefix")
    await watch.until(lambda message: message.invalidation.WhichOneof("target") == "prefix")
    events = [message for message in watch.seen if message.HasField("invalidation")]
    assert [message.sequence for message in events] == [1, 2, 3, 4, 5]
    assert [message.invalidation.key for message in events[:2]] == ["user:1", "user:1"]
    assert [message.invalidation.version for message in events[:2]] == [written, removed]
    assert events[2].invalidation.tag == "t"
    assert [message.invalidation.prefix for message in events[3:]] == ["user:7", ""]
    assert all(message.invalidation.version > removed for message in events[2:])
    topology = await ClusterServiceStub(nodes.channels["n1"]).Describe(cluster_pb2.DescribeRequest())
    assert {message.ring_epoch for message in watch.seen} == {topology.ring_epoch}
    moments = [message.moment_ms for message in watch.seen]
    assert moments == sorted(moments)


async def test_an_invalidation_is_told_when_nothing_old_can_be_read_any_longer(nodes: Nodes) -> None:
    await nodes.start("n1")
    keys = [f"user:{number}" for number in range(5_000)]
    for start in range(0, len(keys), 500):
        requests = [pb.SetRequest(key=key, value=b"v", tags=["t"]) for key in keys[start : start + 500]]
        await nodes.cache("n1").BatchSet(pb.BatchSetRequest(requests=requests))
    watch = nodes.watch("n1", "elsewhere:")
    await watch.next()
    call = nodes.cache("n1").InvalidateTag(pb.InvalidateTagRequest(tag="t"))
    await watch.until(lambda message: message.invalidation.tag == "t")
    found = await nodes.cache("n1").BatchGet(pb.BatchGetRequest(keys=keys))
    assert {result.response.outcome for result in found.results} == {pb.GET_OUTCOME_MISS}
    assert (await call).removed == len(keys)


async def test_copies_are_told_by_each_node_that_takes_them(nodes: Nodes) -> None:
    await nodes.start("n1", "n2")
    watches = {name: nodes.watch(name) for name in ("n1", "n2")}
    for watch in watches.values():
        await watch.next()
    version = await nodes.set("n1", "k")
    for name, watch in watches.items():
        message = await watch.key("k")
        assert (message.node, message.invalidation.version) == (name, version)


async def test_one_node_relays_what_happens_on_all(nodes: Nodes) -> None:
    await nodes.start("n1", "n2", "n3")
    watch = nodes.watch("n1", "k", this_node_only=False)
    await watch.hears("n1", "n2", "n3")
    gaps = {message.node for message in watch.seen if message.HasField("gap")}
    assert gaps == {"n2", "n3"}
    ring = Ring(map(RingMember, ("n1", "n2", "n3")))
    key = next(f"k{i}" for i in range(1_000) if set(ring.owners(f"k{i}", 2)) == {"n2", "n3"})
    await nodes.set("n2", "other")
    version = await nodes.set("n1", key)
    told = {(await watch.key(key)).node for _ in range(2)}
    assert told == {"n2", "n3"}
    events = [message for message in watch.seen if message.HasField("invalidation")]
    assert [(m.sequence, m.invalidation.version) for m in events] == [(1, version)] * 2
    assert all(nodes.watchers(name) == 1 for name in nodes.servers)
    watch.call.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while any(nodes.watchers(name) for name in nodes.servers):
            await asyncio.sleep(0.01)


async def test_nodes_that_come_and_go_are_followed(nodes: Nodes) -> None:
    await nodes.start("n1", "n2")
    watch = nodes.watch("n1", this_node_only=False)
    await watch.hears("n1", "n2")
    before = watch.seen[-1].ring_epoch
    await nodes.start("n3")
    joined = await watch.until(lambda message: message.node == "n3")
    assert joined.HasField("gap")
    changed = [message for message in watch.seen if message.node == "n1"][-1]
    assert changed.ring_epoch != before
    await watch.hears("n1", "n2", "n3")
    await nodes.stop("n2")
    await nodes.agree()
    epochs = {before, changed.ring_epoch, 0}
    await watch.until(lambda message: message.node == "n1" and message.ring_epoch not in epochs)
    start = len(watch.seen)
    await watch.hears("n1", "n3")
    await watch.hears("n1", "n3")
    assert {message.node for message in watch.seen[start:]} == {"n1", "n3"}


async def test_a_node_that_is_gone_but_in_the_ring_has_a_gap(nodes: Nodes) -> None:
    await nodes.start("n1", "n2")
    watch = nodes.watch("n1", this_node_only=False)
    await watch.hears("n1", "n2")
    nodes.servers["n2"]._watches.close()
    gap = await watch.until(lambda message: message.node == "n2" and not message.HasField("heartbeat"))
    assert (gap.HasField("gap"), gap.gap.lost, gap.sequence) == (True, 0, 0)
    start = len(watch.seen)
    await watch.hears("n1")
    await watch.hears("n1")
    assert {message.node for message in watch.seen[start:]} == {"n1"}


async def test_a_slow_reader_is_told_how_much_it_has_missed(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module.Backlog.__init__, "__defaults__", (50,))
    await nodes.start("n1")
    watch = nodes.watch("n1", "k")
    await watch.next()
    written = 0
    padding = "x" * 1_000
    last = ""
    [[backlog]] = nodes.servers["n1"]._node.events._watchers.values()
    while not backlog._lost:
        keys = [f"k{written + number}{padding}" for number in range(200)]
        requests = [pb.SetRequest(key=key, value=b"v") for key in keys]
        await nodes.cache("n1").BatchSet(pb.BatchSetRequest(requests=requests))
        written += len(keys)
        last = keys[-1]
    total = 0
    while True:
        message = await watch.next()
        total += message.gap.lost + message.HasField("invalidation")
        assert message.sequence == total
        if message.invalidation.key == last:
            break
    assert total == written
    assert any(message.gap.lost for message in watch.seen)


async def test_silence_is_filled_with_heartbeats(nodes: Nodes) -> None:
    await nodes.start("n1")
    watch = nodes.watch("n1")
    heartbeats = [await watch.next() for _ in range(3)]
    assert all(message.HasField("heartbeat") for message in heartbeats)
    pauses = [b.moment_ms - a.moment_ms for a, b in pairwise(heartbeats)]
    assert min(pauses) >= HEARTBEAT_MS


async def test_a_stream_ends_when_its_node_does(nodes: Nodes) -> None:
    await nodes.start("n1")
    watch = nodes.watch("n1")
    await watch.next()
    _, error = await asyncio.gather(nodes.servers["n1"].stop(), watch.error())
    assert isinstance(error, NotReady)
    assert nodes.watchers("n1") == 0


@pytest.mark.parametrize(
    ("prefixes", "field"),
    [(["p"] * 101, "prefixes"), (["ok", ""], "prefixes[1]"), (["x" * 1_025], "prefixes[0]")],
)
async def test_prefixes_are_bounded(nodes: Nodes, prefixes: list[str], field: str) -> None:
    await nodes.start("n1")
    error = await nodes.watch("n1", *prefixes).error()
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field


async def test_watchers_are_bounded(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_WATCHERS", 1)
    await nodes.start("n1")
    watch = nodes.watch("n1")
    await watch.next()
    assert isinstance(await nodes.watch("n1").error(), Overloaded)
    watch.call.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while nodes.watchers("n1"):
            await asyncio.sleep(0.01)
    assert (await nodes.watch("n1").next()).HasField("heartbeat")
