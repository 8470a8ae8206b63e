"""A node in this process, and a client of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cacheservice.client import Client
from cacheservice.config import Settings
from cacheservice.server.app import NodeServer

Start = Callable[..., Awaitable[str]]


@pytest.fixture
def start(stack: AsyncExitStack) -> Start:
    """Starts a node and gives its address."""

    async def start_node(**settings: Any) -> str:
        server = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=0, **settings))
        address = await server.start()
        await server.join()
        stack.push_async_callback(server.stop)
        return address

    return start_node


@pytest.fixture
async def address(start: Start) -> str:
    """That of a node."""
    return await start()


@pytest.fixture
async def cache(address: str, stack: AsyncExitStack) -> Client:
    return await stack.enter_async_context(Client(address, timeout=5))
