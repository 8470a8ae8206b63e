"""The port for streams of a whole node, and who comes to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cacheservice.certificates import Tls
from cacheservice.client import Client
from cacheservice.config import Settings
from cacheservice.server.app import NodeServer
from cacheservice.server.direct_stream import DirectStream
from tests.certificates import Authority, settings_of

Start = Callable[..., Awaitable[NodeServer]]


@pytest.fixture
def start(stack: AsyncExitStack) -> Start:
    async def start_node(**settings: Any) -> NodeServer:
        server = NodeServer(Settings(**{"listen": "127.0.0.1:0", "drain_seconds": 0, **settings}))
        await server.start()
        await server.join()
        stack.push_async_callback(server.stop)
        return server

    return start_node


def address_of(server: NodeServer) -> str:
    return f"127.0.0.1:{server.port}"


def kinds(server: NodeServer) -> list[bool]:
    """Of each stream that is open at the node, whether it came to the port for streams."""
    return [isinstance(stream, DirectStream) for stream in server._streams._open]


async def has_come(server: NodeServer, *, count: int = 1) -> None:
    """Waits until so many streams are at the port for them, and none is left at the other one."""
    async with asyncio.timeout(20):
        while kinds(server) != [True] * count:
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


async def test_clients_come_to_it(start: Start) -> None:
    server = await start()
    async with Client(address_of(server), timeout=10) as cache:
        await cache.set("k", b"v")
        assert await cache.get("k") == b"v"
        await has_come(server)
    await has_come(server, count=0)


async def test_clients_come_to_it_over_tls(start: Start, tmp_path: Path) -> None:
    tls: Tls = Authority().issue(tmp_path / "tls")
    server = await start(**settings_of(tls))
    async with Client(address_of(server), tls=tls, timeout=10) as cache:
        await cache.set("k", bytes(1_000_000))
        assert await cache.get("k") == bytes(1_000_000)
        await has_come(server)


async def test_nodes_come_to_each_other_s(start: Start) -> None:
    first = await start(node_id="n1")
    second = await start(node_id="n2", seeds=(address_of(first),))
    async with Client(address_of(first), routing="proxy", timeout=10) as cache:
        async with asyncio.timeout(20):
            while (await cache.set("k", b"v")).replicas != 2:
                await asyncio.sleep(0.01)
        values = {f"k{number}": b"v" for number in range(100)}
        await cache.set_many(values)
        assert await cache.get_many(list(values)) == values
        async with asyncio.timeout(20):
            while not all(kinds(server) and all(kinds(server)) for server in (first, second)):
                await asyncio.sleep(0.01)


async def test_it_may_be_chosen(start: Start) -> None:
    port = free_port()
    server = await start(stream_port=port)
    assert server._streams.alternative is not None
    assert server._streams.alternative.port == port
    async with Client(address_of(server), timeout=10) as cache:
        assert await cache.get("k") is None
        await has_come(server)


async def test_one_that_is_taken_is_named(taken: int) -> None:
    server = NodeServer(Settings(listen="127.0.0.1:0", stream_port=taken))
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{taken}: Address already in use"):
        await server.start()


async def test_it_is_not_the_one_for_all_else() -> None:
    port = free_port()
    server = NodeServer(Settings(listen=f"127.0.0.1:{port}", stream_port=port))
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
        await server.start()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "localhost"])
async def test_hosts(start: Start, host: str) -> None:
    server = await start(listen=f"{host}:0", advertise=None if host == "localhost" else "127.0.0.1:1")
    async with Client(address_of(server), routing="proxy", timeout=10) as cache:
        assert await cache.get("k") is None
        await has_come(server)


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
            while not all(any(kinds(server)) for server in servers):
                await asyncio.sleep(0.01)
        await servers[1].stop()
        await asyncio.sleep(0.2)
        is_over = True
        assert all(await asyncio.gather(*callers))


async def test_it_stops_while_somebody_shakes_hands(tmp_path: Path, stack: AsyncExitStack) -> None:
    tls = Authority().issue(tmp_path / "tls")
    server = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=0, **settings_of(tls)))  # type: ignore[arg-type]
    await server.start()
    assert server._streams.alternative is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", server._streams.alternative.port)
    stack.callback(writer.close)
    writer.write(b"\x16\x03\x01")
    assert server._stream_server is not None
    async with asyncio.timeout(20):
        while not server._stream_server._handshakes:
            await asyncio.sleep(0.01)
        await server.stop()
        assert await reader.read() == b""
