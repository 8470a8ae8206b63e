"""Streams to peers, and when they are closed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc

from cacheservice.server.channels import PeerChannels
from cacheservice.server.questions import Question
from cacheservice.v1 import peer_pb2
from cacheservice.v1.peer_pb2_grpc import PeerServiceServicer, add_PeerServiceServicer_to_server


class Peer(PeerServiceServicer):
    """Answers when it may."""

    def __init__(self) -> None:
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.has_ended = asyncio.Event()

    async def Exchange(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.send_initial_metadata(())
        try:
            async for request in requests:
                self.was_asked.set()
                await self.may_answer.wait()
                await context.write(peer_pb2.PeerServiceExchangeResponse(request_id=request.request_id))
        finally:
            self.has_ended.set()


async def test_what_a_peer_that_leaves_is_at_work_on_is_waited_for(stack: AsyncExitStack) -> None:
    """To be cut off would have it done again elsewhere."""
    peer, server = Peer(), grpc.aio.server()  # type: ignore[abstract]
    add_PeerServiceServicer_to_server(peer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    stack.push_async_callback(server.stop, 0)
    channels = PeerChannels(1024)
    stack.push_async_callback(channels.close)
    question = Question(
        "", ["row"], 0, 60_000, lambda _: peer_pb2.PeerServiceExchangeRequest(), lambda _: ["done"]
    )
    asking = channels.stream(address, "forwards").ask(question)
    async with asyncio.timeout(20):
        await peer.was_asked.wait()
        channels.retain(())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asking.done()
        peer.may_answer.set()
        assert await asking == ["done"]
        await peer.has_ended.wait()
