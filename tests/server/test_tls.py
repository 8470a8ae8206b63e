"""Nodes that talk TLS, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from cacheservice.certificates import Certificates, Tls
from cacheservice.client import Client
from cacheservice.connection import open_channel
from cacheservice.server.app import READINESS, NodeServer
from cacheservice.v1.cache_pb2 import GetRequest
from tests.certificates import NAME, Authority, settings_of
from tests.server.serving import address_of, started

Start = Callable[..., Awaitable[NodeServer]]


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> Tls:
    """Those of all nodes."""
    return authority.issue(tmp_path / "node")


@pytest.fixture
def start(stack: AsyncExitStack, tls: Tls) -> Start:
    return lambda *siblings, **settings: started(stack, *siblings, **{**settings_of(tls), **settings})


async def status(address: str, tls: Tls | None) -> int:
    """What health says over a new connection; AioRpcError when there is none."""
    pems = None if tls is None else Certificates(tls).current()
    async with open_channel(address, [("grpc.use_local_subchannel_pool", 1)], pems) as channel:
        health: Any = HealthStub(channel)
        answer = await health.Check(HealthCheckRequest(service=READINESS), timeout=20)
    return int(answer.status)


async def test_new_connections_have_the_certificates_of_then(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    server = await start()
    client = authority.issue(tmp_path / "client", "client")
    other = Authority()
    stranger = other.issue(tmp_path / "stranger", "stranger")
    async with Client(address_of(server), tls=client, timeout=20) as cache:
        await cache.set("k", b"v")
        other.issue(tmp_path / "node")
        assert await status(address_of(server), stranger) == HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="CERTIFICATE_VERIFY_FAILED"):
            await status(address_of(server), client)
        assert await cache.get("k") == b"v"


async def test_files_that_cannot_be_used_do_not_end_the_service(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    server = await start()
    client = authority.issue(tmp_path / "client", "client")
    (tmp_path / "node" / "tls.crt").write_bytes(b"half of")
    assert await status(address_of(server), client) == HealthCheckResponse.SERVING


async def test_nodes_find_each_other_again_with_new_certificates(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    """The one that stays has connections of its own to make, which need the new files too."""
    first = await start(node_id="n1")
    second = await start(node_id="n2", seeds=(address_of(first),))
    client = authority.issue(tmp_path / "client", "client")
    async with Client(address_of(first), tls=client, timeout=20) as cache:
        await replicated(cache, 2)
        await second.stop()
        await replicated(cache, 1)
        other = Authority()
        other.issue(tmp_path / "node")
        other.issue(tmp_path / "client", "client")
        await start(node_id="n2", listen=address_of(second), seeds=(address_of(first),))
        await replicated(cache, 2)


async def replicated(cache: Client, replicas: int) -> None:
    """Waits until the client finds that entries are kept on so many nodes, at whatever node it writes."""
    async with asyncio.timeout(30):
        while [(await cache.set(f"k{number}", b"v")).replicas for number in range(20)] != [replicas] * 20:
            await asyncio.sleep(0.05)


async def test_nodes_may_all_have_one_name_instead_of_their_addresses(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    files = settings_of(authority.issue(tmp_path / "shared", NAME)) | {"tls_server_name": NAME}
    first = await start(node_id="n1", **files)
    await start(node_id="n2", seeds=(address_of(first),), **files)
    client = replace(authority.issue(tmp_path / "client", "client"), server_name=NAME)
    async with Client(address_of(first), tls=client, timeout=20) as cache:
        await replicated(cache, 2)


@pytest.mark.parametrize("is_sibling", [False, True])
async def test_nodes_are_found_by_names_that_their_certificates_have(
    start: Start, authority: Authority, tmp_path: Path, is_sibling: bool
) -> None:
    """Not by the addresses behind the names, which the certificates have not."""
    files = settings_of(authority.issue(tmp_path / "named", "localhost"))
    first = await start(node_id="n1", listen="localhost:0", **files)
    at = f"localhost:{first.port}"
    siblings, seeds = ((at,), ()) if is_sibling else ((), (at,))
    await start(*siblings, node_id="n2", listen="localhost:0", seeds=seeds, **files)
    client = authority.issue(tmp_path / "client", "client")
    async with Client(at, tls=client, timeout=20) as cache:
        await replicated(cache, 2)


async def test_who_is_found_at_a_seed_is_to_have_its_name(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    """Whatever DNS says: the address alone proves nothing."""
    files = settings_of(authority.issue(tmp_path / "numbered", "127.0.0.1"))
    first = await start(node_id="n1", **files)
    seeds = (f"localhost:{first.port}",)
    second = await start(node_id="n2", seeds=seeds, join_timeout_seconds=0.5, **files)
    client = authority.issue(tmp_path / "client", "client")
    async with Client(address_of(second), tls=client, timeout=20) as cache:
        assert (await cache.set("k", b"v")).replicas == 1


async def test_a_node_that_asks_for_no_certificates(start: Start, tls: Tls) -> None:
    server = await start(tls_client_auth="none")
    assert await status(address_of(server), Tls(tls.ca)) == HealthCheckResponse.SERVING


async def test_health_alone_is_there_without_tls(start: Start) -> None:
    server = await start(health_listen="127.0.0.1:0")
    address = f"127.0.0.1:{server.health_port}"
    assert await status(address, None) == HealthCheckResponse.SERVING
    async with Client(address, routing="proxy", timeout=20) as cache:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cache.nodes.at(address).cache.Get(GetRequest(key="k"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_that_is_taken_is_named(start: Start) -> None:
    server = await start(health_listen="127.0.0.1:0")
    taken = f"127.0.0.1:{server.health_port}"
    with pytest.raises(OSError, match=f"cannot listen on {taken}: Address already in use"):
        await start(node_id="n2", health_listen=taken)
