"""The client against real servers in this process: direct and by proxy, in plaintext and over TLS."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

import cacheservice
from cacheservice import client
from cacheservice.client import Client, Outcome, SetResult
from cacheservice.config import Settings
from cacheservice.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotACounter,
    OutcomeUnknown,
    TooFewReplicas,
    Unavailable,
)
from cacheservice.server.app import NodeServer
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.cache_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server
from tests.client.conftest import DIRECT, PROXY, Connect, Start, Way, in_ways

pytest_generate_tests = in_ways(*DIRECT, *PROXY)


def test_public_names() -> None:
    names = ["Client", "Codec", "JsonCodec", "MsgspecCodec", "NearCache", "PickleCodec", "SyncClient", "Tls"]
    assert cacheservice.__all__ == names
    for name in names:
        assert getattr(cacheservice, name) is getattr(client, name)
    with pytest.raises(AttributeError, match="Cleint"):
        cacheservice.Cleint  # noqa: B018


async def test_get_and_set(cache: Client) -> None:
    assert await cache.get("a") is None
    assert await cache.get("a", b"default") == b"default"
    stored = await cache.set("a", b"v", ttl=60)
    assert stored
    assert stored == SetResult(True, stored.version, 1)
    assert await cache.get("a", b"default") == b"v"
    assert await cache.delete("a")
    assert not await cache.delete("a")


async def test_an_empty_value_is_no_miss(cache: Client) -> None:
    await cache.set("a", b"")
    assert await cache.get("a", b"default") == b""
    assert await cache.get_many(["a", "b"]) == {"a": b""}


async def test_lookup(cache: Client) -> None:
    missing = await cache.lookup("a")
    assert (missing.outcome, missing.found, missing.value, missing.version) == (Outcome.MISS, False, None, 0)
    stored = await cache.set("a", b"v", ttl=60, tags=["t"])
    found = await cache.lookup("a")
    assert (found.outcome, found.found, found.stale, found.value) == (Outcome.HIT, True, False, b"v")
    assert (found.version, found.served_by, found.hops) == (stored.version, "n1", 0)
    assert 30 < found.ttl <= 60
    assert 0 <= found.age < 30


async def test_stale(cache: Client) -> None:
    await cache.set("a", b"v", ttl=0.001, stale=60)
    found = await cache.lookup("a")
    while not found.stale:
        found = await cache.lookup("a")
    assert (found.outcome, found.value) == (Outcome.STALE, b"v")
    assert await cache.get("a") == b"v"


async def test_conditions(cache: Client) -> None:
    assert not await cache.set("a", b"1", if_present=True)
    first = await cache.set("a", b"2", if_absent=True)
    assert not await cache.set("a", b"3", if_absent=True)
    assert not await cache.set("a", b"4", if_version=first.version + 1)
    assert await cache.set("a", b"5", if_version=first.version)
    assert await cache.get("a") == b"5"
    with pytest.raises(ValueError, match="only one"):
        await cache.set("a", b"", if_absent=True, if_present=True)


async def test_many(cache: Client) -> None:
    values = {f"k{number}": str(number).encode() for number in range(25_000)}
    await cache.set_many(values, ttl=60)
    assert await cache.get_many([*values, "missing", "k1"]) == values
    assert await cache.delete_many(["k1", "k2", "missing"]) == 2
    assert await cache.get_many([]) == {}


async def test_many_large_values_go_in_several_messages(cache: Client) -> None:
    values = {f"k{number}": bytes(3 * 1024 * 1024) for number in range(20)}
    await cache.set_many(values)
    assert await cache.get_many(values) == values


async def test_errors_of_single_keys_in_many(cache: Client) -> None:
    too_large = bytes(8 * 1024 * 1024 + 1)
    with pytest.raises(InvalidArgument, match="value must be at most 8388608 bytes"):
        await cache.set_many({"a": b"1", "large": too_large, "b": b"3"})
    assert await cache.get_many(["a", "large", "b"]) == {"a": b"1", "b": b"3"}
    with pytest.raises(InvalidArgument, match="value must be at most 8388608 bytes"):
        await cache.set("large", too_large)


async def test_many_with_a_key_out_of_bounds_send_nothing(cache: Client) -> None:
    await cache.set("a", b"1")
    for call in (cache.get_many([""]), cache.delete_many(["a", ""]), cache.set_many({"a": b"2", "": b"3"})):
        with pytest.raises(InvalidArgument, match="key must be"):
            await call
    assert await cache.get("a") == b"1"


async def test_touch_and_incr(cache: Client) -> None:
    assert not await cache.touch("a", 60)
    await cache.set("a", b"v")
    assert await cache.touch("a", 60)
    assert (await cache.lookup("a")).ttl > 0
    assert await cache.incr("c") == 1
    assert await cache.incr("c", 5) == 6
    assert await cache.incr("d", -1, initial=10, ttl=60) == 9
    assert (await cache.lookup("d")).ttl > 30
    with pytest.raises(NotACounter):
        await cache.incr("a")


async def test_a_target_that_is_down_is_passed_over(start: Start, connect: Connect) -> None:
    cache = await connect(["127.0.0.1:1", await start(), "127.0.0.1:2"])
    for number in range(10):
        assert await cache.set(f"k{number}", b"v")
        assert await cache.incr("c") == number + 1


@pytest.mark.parametrize("way", DIRECT, indirect=True, ids=" over ".join)
async def test_other_nodes_are_learnt_and_take_over(start: Start, connect: Connect, way: Way) -> None:
    first = NodeServer(Settings(node_id="n1", listen="127.0.0.1:0", drain_seconds=0, **way.settings))
    address = await first.start()
    await first.join()
    await start(node_id="n2", seeds=(address,))
    cache = await connect(address)
    served_by = set()
    for number in range(100):
        await cache.set(f"k{number}", b"v")
        served_by.add((await cache.lookup(f"k{number}")).served_by)
    assert served_by == {"n1", "n2"}
    await first.stop()
    for number in range(100):
        assert await cache.get(f"k{number}") == b"v"


@pytest.mark.parametrize("way", DIRECT, indirect=True, ids=" over ".join)
async def test_calls_of_their_own_learn_the_other_nodes_too(start: Start, connect: Connect, way: Way) -> None:
    first = NodeServer(Settings(node_id="n1", listen="127.0.0.1:0", drain_seconds=0, **way.settings))
    address = await first.start()
    await first.join()
    await start(node_id="n2", seeds=(address,))
    cache = await connect(address)
    assert await cache.incr("c") == 1
    async with asyncio.timeout(20):
        while len(cache.nodes.addresses) < 2:
            await asyncio.sleep(0.01)
    await first.stop()
    assert await cache.touch("c", 60)
    assert (await cache.lookup("c")).value == b"1"


async def test_keys_of_two_nodes_are_reached_through_one(start: Start, connect: Connect) -> None:
    address = await start(node_id="n1")
    await start(node_id="n2", seeds=(address,))
    cache = await connect(address)
    served_by = set()
    for number in range(100):
        await cache.set(f"k{number}", b"v")
        served_by.add((await cache.lookup(f"k{number}")).served_by)
    assert served_by == {"n1", "n2"}
    assert await cache.get_many([f"k{number}" for number in range(100)]) == {
        f"k{number}": b"v" for number in range(100)
    }


async def test_nobody_there(connect: Connect) -> None:
    cache = await connect("127.0.0.1:1")
    with pytest.raises(Unavailable, match="Connection refused"):
        await cache.get("a")
    with pytest.raises(Unavailable, match="Connection refused") as caught:
        await cache.incr("a")
    assert not isinstance(caught.value, OutcomeUnknown)


class Silent(CacheServiceServicer):
    """Takes calls, and never answers them."""

    calls = 0

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:  # noqa: N802
        self.calls += 1
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "silence")
        raise AssertionError

    async def Increment(self, request: pb.IncrementRequest, context: Any) -> pb.IncrementResponse:  # noqa: N802
        self.calls += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "silence")
        raise AssertionError


@pytest.fixture
async def silent(stack: AsyncExitStack) -> tuple[Silent, str]:
    server, servicer = grpc.aio.server(), Silent()  # type: ignore[abstract]
    add_CacheServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return servicer, f"127.0.0.1:{port}"


async def test_what_may_have_been_done_is_not_done_again(silent: tuple[Silent, str]) -> None:
    servicer, address = silent
    async with Client([address], timeout=5) as cache:
        with pytest.raises(OutcomeUnknown):
            await cache.incr("c")
        with pytest.raises(DeadlineExceeded):
            await cache.lookup("c")
    assert servicer.calls == 2


async def test_closing_the_client_ends_calls_under_way_with_an_error(stack: AsyncExitStack) -> None:
    started = asyncio.Event()

    class Slow(Silent):
        async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:  # noqa: N802
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

    server = grpc.aio.server()
    add_CacheServiceServicer_to_server(Slow(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    cache = Client(f"127.0.0.1:{port}", timeout=60)
    reading = asyncio.create_task(cache.lookup("a"))
    await started.wait()
    await cache.close()
    with pytest.raises(OutcomeUnknown):
        await reading


async def test_arguments_of_another_type(cache: Client) -> None:
    wrong: Any
    for wrong in (None, "text", 5, bytearray(b"v")):
        with pytest.raises(TypeError, match="must be bytes"):
            await cache.set("k", wrong)
    for wrong in (None, b"k", 5):
        with pytest.raises(TypeError, match="must be str"):
            await cache.get(wrong)
    wrong = 1.5
    with pytest.raises(TypeError, match="must be int"):
        await cache.incr("k", wrong)
    assert await cache.get("k") is None


async def test_arguments_beyond_what_the_wire_can_carry(cache: Client) -> None:
    for call in (
        cache.get("\udcff"),
        cache.incr("k", 2**63),
        cache.incr("k", initial=-(2**63) - 1),
        cache.set("k", b"", if_version=-1),
        cache.set("k", b"", min_replicas=2**32),
    ):
        with pytest.raises(InvalidArgument):
            await call


async def test_members_that_cannot_be_called_do_not_displace_the_target(
    stack: AsyncExitStack, connect: Connect, way: Way
) -> None:
    """As behind a port-forward: the node tells an address that is of no use here."""
    settings = {"listen": "127.0.0.1:0", "advertise": "127.0.0.1:1", "drain_seconds": 0, **way.settings}
    server = NodeServer(Settings(**settings))
    await server.start()
    await server.join()
    stack.push_async_callback(server.stop)
    cache = await connect(f"127.0.0.1:{server.port}")
    for number in range(20):
        assert await cache.set(f"k{number}", b"v")
        assert await cache.incr("c") == number + 1


async def test_a_conditional_write_that_was_done_on_too_few_nodes_is_not_done_again(
    start: Start, connect: Connect
) -> None:
    first = await start()
    cache = await connect([first, first])
    with pytest.raises(TooFewReplicas):
        await cache.set("k", b"v", if_absent=True, min_replicas=2)
    assert await cache.get("k") == b"v"


@pytest.mark.parametrize("target", ["", "localhost", "a:b", "a:1,b:2", "host:99999"])
def test_targets_are_checked(target: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Client(target)


def test_a_client_needs_a_target() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Client([])
