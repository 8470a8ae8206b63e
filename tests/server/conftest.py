from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import grpc
import pytest

from cacheservice.config import Settings
from cacheservice.server.app import NodeServer

StartNode = Callable[..., Awaitable[grpc.aio.Channel]]


@pytest.fixture
async def start_node() -> AsyncIterator[StartNode]:
    """Starts a real server in this process, with the given settings, and gives a channel to it."""
    async with AsyncExitStack() as stack:

        async def start(**settings: object) -> grpc.aio.Channel:
            server = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=0, **settings))  # type: ignore[arg-type]
            address = await server.start()
            await server.join()
            stack.push_async_callback(server.stop)
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            return await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))

        yield start
