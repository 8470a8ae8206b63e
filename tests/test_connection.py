"""Connections whose other end, and whose files, are replaced."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from cacheservice.certificates import Certificates
from cacheservice.connection import Connection
from tests.certificates import Authority, server_credentials

OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
]


class Peer:
    """A server with health, which can be started anew at the same port."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = grpc.aio.server()
        add_HealthServicer_to_server(health.aio.HealthServicer(), self._server)
        credentials = server_credentials(self._certificates)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)


@pytest.fixture
async def peer(tmp_path: Path, stack: AsyncExitStack) -> Peer:
    made = Peer(Certificates(Authority().issue(tmp_path)))
    await made.start()
    stack.push_async_callback(made.stop)
    return made


@pytest.fixture
async def connection(tmp_path: Path, peer: Peer, stack: AsyncExitStack) -> Connection[Any]:
    """To the peer, with the same files as it has."""
    tls = Authority().issue(tmp_path)
    made = Connection[Any](f"127.0.0.1:{peer.port}", OPTIONS, Certificates(tls), HealthStub)
    stack.push_async_callback(made.close)
    return made


async def check(connection: Connection[Any]) -> None:
    await connection.stubs.Check(HealthCheckRequest(), timeout=10)


async def until_failed(connection: Connection[Any]) -> None:
    async with asyncio.timeout(20):
        while not connection.has_failed:
            await connection.connects(0.05)


async def test_a_lost_connection_comes_back_with_new_files(
    connection: Connection[Any], peer: Peer, tmp_path: Path
) -> None:
    await check(connection)
    before = connection.stubs
    await peer.stop()
    await until_failed(connection)
    assert connection.stubs is before
    Authority().issue(tmp_path)
    await peer.start()
    await check(connection)
    assert connection.stubs is not before


async def test_a_connection_stays_when_the_files_change(connection: Connection[Any], tmp_path: Path) -> None:
    await check(connection)
    before = connection.stubs
    Authority().issue(tmp_path)
    await check(connection)
    assert connection.stubs is before


async def test_without_new_files_a_connection_comes_back_as_it_was(
    connection: Connection[Any], peer: Peer
) -> None:
    await check(connection)
    before = connection.stubs
    await peer.stop()
    await until_failed(connection)
    await peer.start()
    async with asyncio.timeout(20):
        while not await connection.connects(1):
            pass
    await check(connection)
    assert connection.stubs is before
