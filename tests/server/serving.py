"""Methods served at a free port, and a channel of grpcio's to it; and whole nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from cacheservice.config import Settings
from cacheservice.http2.server import Server
from cacheservice.server.app import NodeServer
from cacheservice.server.methods import Methods

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@asynccontextmanager
async def serving(methods: Methods, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    server = Server(methods.handlers, MAX_MESSAGE_BYTES)
    port = server.bind("127.0.0.1", 0)
    server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", **options) as channel:
            yield channel
    finally:
        await methods.finish(0)
        await server.close()


async def started(stack: AsyncExitStack, *siblings: str, **settings: Any) -> NodeServer:
    """A node in this process that has joined, and stops with the stack."""
    server = NodeServer(Settings(**{"listen": "127.0.0.1:0", "drain_seconds": 0, **settings}), siblings)
    await server.start()
    await server.join()
    stack.push_async_callback(server.stop)
    return server


def address_of(server: NodeServer) -> str:
    return f"127.0.0.1:{server.port}"
