"""The driver of membership, between a real node and a peer that only listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from cacheservice.membership import Member, MembershipConfig
from cacheservice.server import gossip_codec
from cacheservice.v1 import peer_pb2
from cacheservice.v1.cluster_pb2 import DescribeRequest
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.v1.peer_pb2_grpc import (
    PeerServiceServicer,
    PeerServiceStub,
    add_PeerServiceServicer_to_server,
)
from tests.server.conftest import StartNode


class Listener(PeerServiceServicer):
    """A peer n2 that keeps what it is told, and says nothing."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[peer_pb2.GossipMessage] = asyncio.Queue()
        self.member = Member("n2", "")

    async def Gossip(self, request: peer_pb2.GossipRequest, context: Any) -> peer_pb2.GossipResponse:  # noqa: N802
        for message in request.messages:
            self.heard.put_nowait(message)
        sender = gossip_codec.member_to_proto(self.member)
        return peer_pb2.GossipResponse(cluster_id="cacheservice", sender=sender)

    async def hears(self, kind: str) -> peer_pb2.GossipMessage:
        """The next message of that kind."""
        async with asyncio.timeout(10):
            while True:
                message = await self.heard.get()
                if message.WhichOneof("message") == kind:
                    return message


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    server = grpc.aio.server()
    listener = Listener()  # type: ignore[abstract]
    add_PeerServiceServicer_to_server(listener, server)
    port = server.add_insecure_port("127.0.0.1:0")
    listener.member = Member("n2", f"127.0.0.1:{port}")
    await server.start()
    yield listener
    await server.stop(None)


async def introduce(channel: grpc.aio.Channel, listener: Listener) -> None:
    """Makes the listener known to the node."""
    peer: Any = PeerServiceStub(channel)
    request = peer_pb2.GossipRequest(
        cluster_id="cacheservice",
        sender=gossip_codec.member_to_proto(listener.member),
        to_node="n1",
        messages=[peer_pb2.GossipMessage(ping=peer_pb2.Ping(sequence=7))],
        virtual_nodes=256,
        replication_factor=2,
    )
    response = await peer.Gossip(request)
    assert [message.ack.sequence for message in response.messages] == [7]


async def test_a_member_that_gossips_is_taken_in_and_probed(
    start_node: StartNode, listener: Listener
) -> None:
    channel = await start_node()
    await introduce(channel, listener)
    ping = await listener.hears("ping")
    assert ping.digest
    cluster: Any = ClusterServiceStub(channel)
    members = (await cluster.Describe(DescribeRequest())).topology.members
    assert [member.node_id for member in members] == ["n1", "n2"]
    assert members[1].reason


async def test_a_data_request_from_a_node_with_another_ring_has_views_exchanged(
    start_node: StartNode, listener: Listener
) -> None:
    channel = await start_node()
    await introduce(channel, listener)
    peer: Any = PeerServiceStub(channel)
    cluster: Any = ClusterServiceStub(channel)
    epoch = (await cluster.Describe(DescribeRequest())).ring_epoch

    async def replicate(ring_epoch: int) -> None:
        header = peer_pb2.PeerHeader(
            cluster_id="cacheservice", from_node="n2", to_node="n1", ring_epoch=ring_epoch
        )
        call = peer.Exchange()
        await call.write(
            peer_pb2.PeerServiceExchangeRequest(replicate=peer_pb2.ReplicateRequest(header=header))
        )
        await call.read()
        await call.done_writing()

    async def keep_asking() -> None:
        while True:
            await replicate(epoch ^ 1)
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(keep_asking())
    sync = await listener.hears("sync")
    asking.cancel()
    assert [member.node_id for member in sync.sync.members] == ["n1", "n2"]


async def test_a_suspect_is_told_of_it(start_node: StartNode, listener: Listener) -> None:
    channel = await start_node()
    await introduce(channel, listener)
    async with asyncio.timeout(MembershipConfig().probe_interval_ms / 100):
        while True:
            ping = await listener.hears("ping")
            if any(rumour.member.node_id == "n2" and rumour.accusers for rumour in ping.rumours):
                break
    assert list(ping.rumours[0].accusers) == ["n1"]
