"""Methods served at a free port, and a channel of grpcio's to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from cacheservice.http2.server import Server
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
