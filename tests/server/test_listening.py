"""The port of a whole node, and who comes to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cacheservice.client import Client
from cacheservice.config import Settings
from cacheservice.server.app import NodeServer
from tests.certificates import Authority, settings_of
from tests.server.serving import address_of, started

Start = Callable[..., Awaitable[NodeServer]]


@pytest.fixture
def start(stack: AsyncExitStack) -> Start:
    return partial(started, stack)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


@pytest.mark.parametrize("field", ["listen", "health_listen"])
async def test_a_port_that_is_taken_is_named(taken: int, field: str) -> None:
    chosen: dict[str, Any] = {"listen": "127.0.0.1:0", field: f"127.0.0.1:{taken}"}
    server = NodeServer(Settings(**chosen))
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{taken}: Address already in use"):
        await server.start()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "localhost"])
async def test_hosts(start: Start, host: str) -> None:
    server = await start(listen=f"{host}:0", advertise=None if host == "localhost" else "127.0.0.1:1")
    async with Client(address_of(server), routing="proxy", timeout=10) as cache:
        assert await cache.get("k") is None


async def test_a_node_stops_without_an_error_to_who_is_there(start: Start) -> None:
    """Its clients go on at the other one."""
    servers = [await start(node_id="n1")]
    servers.append(await start(node_id="n2", seeds=(address_of(servers[0]),)))
    async with Client([address_of(server) for server in servers], timeout=10) as cache:
        async with asyncio.timeout(20):
            while (await cache.set("k", b"v")).replicas != 2:
                await asyncio.sleep(0.01)
        is_over = False

        async def go_on(number: int) -> int:
            rounds = 0
            while not is_over:
                key = f"{number}:{rounds % 20}"
                await cache.set(key, key.encode())
                assert await cache.get(key) in (None, key.encode())
                rounds += 1
            return rounds

        callers = [asyncio.create_task(go_on(number)) for number in range(10)]
        async with asyncio.timeout(20):
            while not all(server._streams._open for server in servers):
                await asyncio.sleep(0.01)
        await servers[1].stop()
        await asyncio.sleep(0.2)
        is_over = True
        assert all(await asyncio.gather(*callers))


async def test_it_stops_while_somebody_shakes_hands(tmp_path: Path, stack: AsyncExitStack) -> None:
    tls = Authority().issue(tmp_path / "tls")
    server = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=0, **settings_of(tls)))  # type: ignore[arg-type]
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stack.callback(writer.close)
    writer.write(b"\x16\x03\x01")
    async with asyncio.timeout(20):
        while not server._server._handshakes:
            await asyncio.sleep(0.01)
        await server.stop()
        assert await reader.read() == b""
