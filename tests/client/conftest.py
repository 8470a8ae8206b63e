"""A node in this process, and a client of it, which reaches it in one of several ways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest

from cacheservice.certificates import Tls
from cacheservice.client import Client
from cacheservice.config import Settings
from cacheservice.server.app import NodeServer
from tests.certificates import Authority, settings_of

Start = Callable[..., Awaitable[str]]
Connect = Callable[..., Awaitable[Client]]


class Way(NamedTuple):
    """How clients reach nodes: with which options, and with which settings of the nodes."""

    options: dict[str, Any]
    settings: dict[str, Any]


@pytest.fixture(scope="session")
def tls_of_nodes(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Authority().issue(tmp_path_factory.mktemp("tls") / "nodes")


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    """Direct and in plaintext, unless the module has its tests run `in_ways` of its own."""
    routing, transport = getattr(request, "param", DIRECT[0])
    if transport == "plaintext":
        return Way({"routing": routing}, {})
    tls: Tls = request.getfixturevalue("tls_of_nodes")
    return Way({"routing": routing, "tls": tls}, settings_of(tls))


DIRECT = [("direct", "plaintext"), ("direct", "TLS")]
PROXY = [("proxy", "plaintext"), ("proxy", "TLS")]


def in_ways(*ways: tuple[str, str]) -> Callable[[pytest.Metafunc], None]:
    """To be a module's pytest_generate_tests: runs those tests in each way that have none of their own."""

    def generate(metafunc: pytest.Metafunc) -> None:
        marks = metafunc.definition.iter_markers("parametrize")
        if "way" in metafunc.fixturenames and not any(mark.args[0] == "way" for mark in marks):
            metafunc.parametrize("way", ways, indirect=True, ids=" over ".join)

    return generate


@pytest.fixture
def start(stack: AsyncExitStack, way: Way) -> Start:
    """Starts a node and gives its address."""

    async def start_node(**settings: Any) -> str:
        chosen = {**way.settings, **settings}
        server = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=0, **chosen))
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
def connect(stack: AsyncExitStack, way: Way) -> Connect:
    async def open_client(targets: str | Sequence[str], **options: Any) -> Client:
        chosen = {"timeout": 5, **way.options, **options}
        return await stack.enter_async_context(Client(targets, **chosen))

    return open_client


@pytest.fixture
async def cache(address: str, connect: Connect) -> Client:
    return await connect(address)
