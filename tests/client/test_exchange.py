"""The client's batches against nodes that fail, real ones and scripted ones."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from cacheservice.client import Client, lane
from cacheservice.client.pending import LEAST_KEYS, MAX_KEYS, MAX_WAITING
from cacheservice.config import Settings
from cacheservice.errors import (
    AnswerTooLarge,
    CacheServiceError,
    DeadlineExceeded,
    NoOwnerReachable,
    NotReady,
    Overloaded,
    ResourceExhausted,
    Unavailable,
)
from cacheservice.server.app import NodeServer
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.admin_pb2 import StatsRequest
from cacheservice.v1.cache_pb2_grpc import add_CacheServiceServicer_to_server
from cacheservice.v1.cluster_pb2 import (
    MEMBER_STATE_ALIVE,
    MEMBER_STATE_DEAD,
    MEMBER_STATE_LEAVING,
    DescribeRequest,
    MemberState,
)
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub, add_ClusterServiceServicer_to_server
from cacheservice.wire import to_status
from tests.client.scripted import Answer, Script, ScriptedNode, Teller


def hits(request: pb.ExchangeRequest) -> pb.ExchangeResponse:
    """Finds every key, with itself as its value."""
    keys = request.get.keys
    values = [key.encode() for key in keys]
    columns = pb.GetResultColumns(outcomes=[pb.GET_OUTCOME_HIT] * len(keys), values=values)
    return pb.ExchangeResponse(get=columns)


def refusing(error: CacheServiceError) -> Script:
    return lambda _: pb.ExchangeResponse(refused=to_status(error))


def silence(_: pb.ExchangeRequest) -> Answer:
    return None


def cut(_: pb.ExchangeRequest) -> Answer:
    return Unavailable("cut")


Play = Callable[..., Awaitable[tuple[Any, str]]]
Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
def play(stack: AsyncExitStack) -> Play:
    """Starts a scripted node, which may be a teller too; the node and its address."""

    async def start(script: Script, teller: Teller | None = None) -> tuple[ScriptedNode, str]:
        server, servicer = grpc.aio.server(), ScriptedNode(script)  # type: ignore[abstract]
        add_CacheServiceServicer_to_server(servicer, server)
        if teller is not None:
            add_ClusterServiceServicer_to_server(teller, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        return servicer, f"127.0.0.1:{port}"

    return start


@pytest.fixture
def connect(stack: AsyncExitStack) -> Connect:
    async def open_client(targets: Sequence[str], timeout: float = 5, **options: Any) -> Client:
        return await stack.enter_async_context(Client(targets, timeout=timeout, **options))

    return open_client


async def cluster(stack: AsyncExitStack, count: int, **settings: Any) -> list[NodeServer]:
    servers: list[NodeServer] = []
    seeds: tuple[str, ...] = ()
    for number in range(count):
        server = NodeServer(
            Settings(node_id=f"n{number}", listen="127.0.0.1:0", drain_seconds=0, seeds=seeds, **settings)
        )
        address = await server.start()
        stack.push_async_callback(server.stop)
        await server.join()
        seeds = seeds or (address,)
        servers.append(server)
    await agreed(servers)
    return servers


async def agreed(servers: Sequence[NodeServer]) -> None:
    """Waits until each of the servers knows all of them."""
    for server in servers:
        async with grpc.aio.insecure_channel(address_of(server)) as channel, asyncio.timeout(20):
            stub = ClusterServiceStub(channel)
            while len((await stub.Describe(DescribeRequest())).topology.members) != len(servers):
                await asyncio.sleep(0.01)


def address_of(server: NodeServer) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    "script",
    [silence, cut, refusing(NotReady("not yet")), refusing(Unavailable("no"))],
    ids=["silence", "cut", "not ready", "unavailable"],
)
async def test_what_one_node_does_not_answer_another_one_does(
    play: Play, connect: Connect, script: Script
) -> None:
    bad, bad_address = await play(script)
    _, good_address = await play(hits)
    cache = await connect([bad_address, good_address], timeout=1)
    assert await cache.get("a") == b"a"
    assert await cache.get_many(["b", "c"]) == {"b": b"b", "c": b"c"}
    assert bad.requests


async def test_a_node_that_hangs_delays_few_calls(play: Play, connect: Connect) -> None:
    bad, bad_address = await play(silence)
    _, good_address = await play(hits)
    cache = await connect([bad_address, good_address], timeout=2)
    for number in range(200):
        assert await cache.get(str(number)) == str(number).encode()
    assert len(bad.requests) < 5


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (silence, DeadlineExceeded),
        (cut, Unavailable),
        (refusing(NotReady("not yet")), NotReady),
        (refusing(Overloaded("too much", retry_after_ms="100")), Overloaded),
    ],
    ids=["silence", "cut", "not ready", "overloaded"],
)
async def test_what_nobody_answers_is_an_error(
    play: Play, connect: Connect, script: Script, kind: type[CacheServiceError]
) -> None:
    _, address = await play(script)
    cache = await connect([address], timeout=0.5)
    for call in (cache.get("a"), cache.get_many(["a", "b"])):
        with pytest.raises(kind):
            await call


async def test_large_reads_that_gather_leave_when_those_before_are_slow(play: Play, connect: Connect) -> None:
    def answer(request: pb.ExchangeRequest) -> Answer:
        return None if "slow 0" in request.get.keys else hits(request)

    node, address = await play(answer)
    client = await connect([address])
    slow_keys = [f"slow {number}" for number in range(50)]
    slow = [asyncio.create_task(client.get_many(slow_keys)) for _ in range(2)]
    await asyncio.sleep(0)
    assert await client.get_many(["a", "b"]) == {"a": b"a", "b": b"b"}
    assert [len(request.get.keys) for request in node.requests] == [50, 50, 2]
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()


async def test_an_overloaded_node_is_not_made_up_for_by_another(play: Play, connect: Connect) -> None:
    _, address = await play(refusing(Overloaded("too much", retry_after_ms="100")))
    other, other_address = await play(hits)
    cache = await connect([address, other_address])
    with pytest.raises(Overloaded) as caught:
        await cache.get("a")
    assert caught.value.metadata == {"retry_after_ms": "100"}
    assert not other.requests


async def test_single_keys_that_found_no_owner_are_asked_for_elsewhere(play: Play, connect: Connect) -> None:
    def half(request: pb.ExchangeRequest) -> pb.ExchangeResponse:
        response = hits(request)
        for row in range(0, len(request.get.keys), 2):
            response.errors.add(index=row, status=to_status(NoOwnerReachable("lost")))
        return response

    _, address = await play(half)
    other, other_address = await play(hits)
    cache = await connect([address, other_address])
    keys = [str(number) for number in range(9)]
    assert await cache.get_many(keys) == {key: key.encode() for key in keys}
    assert [list(request.get.keys) for request in other.requests] == [keys[::2]]
    assert await asyncio.gather(*map(cache.get, keys)) == [key.encode() for key in keys]


async def test_values_that_did_not_fit_are_asked_for_again(play: Play, connect: Connect) -> None:
    def first_only(request: pb.ExchangeRequest) -> pb.ExchangeResponse:
        response = hits(request)
        for row in range(1, len(request.get.keys)):
            response.errors.add(index=row, status=to_status(AnswerTooLarge("too much")))
        return response

    node, address = await play(first_only)
    cache = await connect([address])
    assert await cache.get_many(["a", "b", "c"]) == {"a": b"a", "b": b"b", "c": b"c"}
    assert [list(request.get.keys) for request in node.requests] == [["a", "b", "c"], ["b", "c"], ["c"]]


async def test_callers_that_give_up_disturb_no_others(play: Play, connect: Connect) -> None:
    let_go = asyncio.Event()
    node, address = await play(lambda request: hits(request) if let_go.is_set() else None)
    cache = await connect([address], timeout=30)
    calls = [asyncio.create_task(cache.get(str(number))) for number in range(1_000)]
    calls.append(asyncio.create_task(cache.get_many(["a", "b"])))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        while not node.requests:
            await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await cache.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results[::2]} == {asyncio.CancelledError}
    assert {type(result) for result in results[1::2]} == {Unavailable}


async def test_a_closed_client_says_so(play: Play) -> None:
    _, address = await play(hits)
    cache = Client(address)
    assert await cache.get("a") == b"a"
    await cache.close()
    for call in (cache.get("a"), cache.get_many(["a"]), cache.set("a", b""), cache.delete("a")):
        with pytest.raises(Unavailable, match="closed"):
            await call
    await cache.close()


async def test_a_client_that_is_closed_before_it_has_begun_to_connect_gives_an_error(play: Play) -> None:
    """Nothing of the task that would connect has run by then."""
    _, address = await play(hits)
    cache = Client(address)
    async with asyncio.timeout(10):
        found, _ = await asyncio.gather(cache.get("a"), cache.close(), return_exceptions=True)
    assert isinstance(found, Unavailable)


async def test_a_closed_client_opens_nothing(play: Play) -> None:
    _, address = await play(hits)
    cache = Client(address)
    await cache.close()
    before = asyncio.all_tasks()
    for call in (cache.get("a"), cache.get_many(["a"]), cache.lookup("a"), cache.incr("a")):
        with pytest.raises(Unavailable, match="closed"):
            await call
    assert asyncio.all_tasks() == before


async def test_a_loop_that_is_held_up_does_not_hold_up_deadlines(play: Play, connect: Connect) -> None:
    _, address = await play(silence)
    cache = await connect([address], timeout=0.3)
    call = asyncio.create_task(cache.get("a"))
    turns = 0
    while not call.done():
        turns += 1
        assert turns < 50
        time.sleep(0.12)  # noqa: ASYNC251
        await asyncio.sleep(0)
    with pytest.raises((DeadlineExceeded, Unavailable), match="in time"):
        await call


async def test_a_value_too_large_for_the_node_fails_its_own_caller_alone(
    stack: AsyncExitStack, connect: Connect
) -> None:
    limits = {"max_message_bytes": 3 * 1024 * 1024, "max_value_bytes": 2 * 1024 * 1024}
    [server] = await cluster(stack, 1, **limits)
    cache = await connect([address_of(server)])
    large = bytes(9 * 1024 * 1024)

    async def others() -> None:
        for number in range(200):
            assert await cache.set(f"k{number}", b"v")

    results = await asyncio.gather(
        others(),
        cache.set("large", large),
        cache.set_many({"a": b"1", "large": large}),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), ResourceExhausted, ResourceExhausted]
    assert await cache.get("a") == b"1"


async def test_the_timeout_holds_for_a_call_as_a_whole(play: Play, connect: Connect) -> None:
    node, address = await play(silence)
    cache = await connect([address], timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        await cache.delete_many(str(number) for number in range(60_000))
    assert sum(len(request.delete.keys) for request in node.requests) < 40_000


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e9])
def test_timeouts_are_checked(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        Client("127.0.0.1:1", timeout=timeout)


async def test_more_than_a_node_can_be_waited_for_is_refused() -> None:
    async with Client("127.0.0.1:1", timeout=60) as cache:
        calls = [asyncio.create_task(cache.get(str(number))) for number in range(MAX_WAITING * MAX_KEYS + 1)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable, Overloaded}


async def test_nothing_is_left_of_a_closed_client(stack: AsyncExitStack) -> None:
    [server] = await cluster(stack, 1)
    before = asyncio.all_tasks()
    for _ in range(3):
        async with Client(address_of(server), timeout=5) as cache:
            await asyncio.gather(*(cache.set(str(number), b"v") for number in range(100)))
    async with asyncio.timeout(10):
        while any("AioServer" not in repr(task) for task in asyncio.all_tasks() - before):
            await asyncio.sleep(0.01)


async def forwarded(cache: Client, servers: Sequence[NodeServer]) -> int:
    stats = [await cache.nodes.at(address_of(server)).admin.Stats(StatsRequest()) for server in servers]
    return sum(answer.forwarded for answer in stats)


async def test_direct_routing_asks_the_owners(stack: AsyncExitStack, connect: Connect) -> None:
    servers = await cluster(stack, 3)
    cache = await connect([address_of(servers[0])])
    await routed_by(cache, 3)
    before = await forwarded(cache, servers)
    values = {f"k{number}": str(number).encode() for number in range(500)}
    await asyncio.gather(*(cache.set(key, value, ttl=60) for key, value in values.items()))
    assert await asyncio.gather(*map(cache.get, values)) == list(values.values())
    assert await cache.get_many(values) == values
    assert await cache.delete_many(values) == 500
    assert await forwarded(cache, servers) == before


async def routed_by(cache: Client, nodes: int) -> None:
    """Waits until the client knows so many nodes."""
    async with asyncio.timeout(20):
        while len(cache.nodes.addresses) != nodes:
            await cache.get("a")
            await asyncio.sleep(0.01)


async def test_more_reads_leave_for_one_of_several_nodes_when_they_are_worth_a_message(
    play: Play, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "SLOW_SECONDS", 600)
    teller = Teller()
    node, address = await play(served, teller)
    teller.tell(dict.fromkeys((address, (await play(served))[1]), MEMBER_STATE_ALIVE))
    cache = await connect([address], timeout=20)
    await routed_by(cache, 2)
    placement = cache._watch.placement
    assert placement is not None
    keys = (key for key in map(str, itertools.count()) if placement.owners(key)[0] == address)
    node.script = silence
    node.requests.clear()
    calls: list[asyncio.Task[Any]] = []

    async def after_asking(count: int, sent: list[int]) -> None:
        """So many reads more, and of how many each message then was."""
        calls.extend(asyncio.create_task(cache.get(next(keys))) for _ in range(count))
        async with asyncio.timeout(20):
            while len(node.requests) < len(sent):
                await asyncio.sleep(0.001)
        for _ in range(100):
            await asyncio.sleep(0)
        assert [len(request.get.keys) for request in node.requests] == sent

    await after_asking(1, [1])
    await after_asking(LEAST_KEYS - 1, [1])
    await after_asking(1, [1, LEAST_KEYS])
    await after_asking(LEAST_KEYS, [1, LEAST_KEYS, LEAST_KEYS])
    await after_asking(2 * LEAST_KEYS, [1, LEAST_KEYS, LEAST_KEYS])
    for call in calls:
        call.cancel()


async def test_proxy_routing_asks_the_target_alone(stack: AsyncExitStack, connect: Connect) -> None:
    servers = await cluster(stack, 3)
    cache = await connect([address_of(servers[1])], routing="proxy")
    values = {f"k{number}": str(number).encode() for number in range(500)}
    await cache.set_many(values)
    assert await asyncio.gather(*map(cache.get, values)) == list(values.values())
    assert await cache.get_many(values) == values
    assert list(cache.nodes.addresses) == [address_of(servers[1])]
    assert await forwarded(cache, servers) > 500


async def test_large_values_come_by_way_of_any_node(stack: AsyncExitStack, connect: Connect) -> None:
    servers = await cluster(stack, 2)
    cache = await connect([address_of(servers[0])], timeout=30, routing="proxy")
    values = {f"k{number}": bytes(1024 * 1024) for number in range(40)}
    await cache.set_many(values)
    assert await cache.get_many([*values, "missing"]) == values


@pytest.mark.parametrize("routing", ["direct", "proxy"])
async def test_thousands_of_callers_each_get_their_own(
    stack: AsyncExitStack, connect: Connect, routing: str
) -> None:
    servers = await cluster(stack, 2)
    cache = await connect([address_of(servers[0])], timeout=30, routing=routing)

    async def caller(number: int) -> None:
        key, value = f"k{number}", str(number).encode()
        assert await cache.get(key) is None
        assert (await cache.set(key, value)).replicas == 2
        assert await cache.get(key) == value
        assert await cache.delete(key)
        assert await cache.get(key, b"gone") == b"gone"

    await asyncio.gather(*map(caller, range(3_000)))


@pytest.mark.parametrize("routing", ["direct", "proxy"])
async def test_operations_on_one_key_keep_their_order_unawaited(
    stack: AsyncExitStack, connect: Connect, routing: str
) -> None:
    servers = await cluster(stack, 1)
    cache = await connect([address_of(servers[0])], routing=routing)
    await cache.get("a")
    for _ in range(20):
        calls: list[Any] = [
            cache.set("a", b"1"), cache.get("a"), cache.set("a", b"2"), cache.get("a"),
            cache.delete("a"), cache.get("a"), cache.set("a", b"3"), cache.get("a"),
        ]  # fmt: skip
        results = await asyncio.gather(*calls)
        assert results[1::2] == [b"1", b"2", None, b"3"]
        assert results[4] is True


async def test_a_node_that_stops_in_the_midst_of_batches_fails_nobody(
    stack: AsyncExitStack, connect: Connect
) -> None:
    servers = await cluster(stack, 3)
    cache = await connect([address_of(server) for server in servers], timeout=10)
    await routed_by(cache, 3)
    stopped = asyncio.Event()

    async def caller(number: int) -> None:
        rounds = 0
        while not stopped.is_set() or rounds < 5:
            key = f"k{number}-{rounds % 10}"
            await cache.set(key, b"v")
            assert await cache.get(key) == b"v"
            rounds += stopped.is_set()

    callers = [asyncio.create_task(caller(number)) for number in range(50)]
    await asyncio.sleep(0)
    await servers[2].stop()
    stopped.set()
    await asyncio.gather(*callers)


async def test_a_node_that_comes_back_is_found_again(stack: AsyncExitStack, connect: Connect) -> None:
    [server] = await cluster(stack, 1)
    address = address_of(server)
    cache = await connect([address], timeout=10)
    await cache.set("a", b"1")
    await server.stop()
    again = NodeServer(Settings(node_id="n0", listen=address, drain_seconds=0))
    await again.start()
    await again.join()
    stack.push_async_callback(again.stop)
    async with asyncio.timeout(20):
        while True:
            try:
                assert await cache.get("a") is None
                break
            except Unavailable:
                await asyncio.sleep(0.01)


def leasing(_: pb.ExchangeRequest) -> pb.ExchangeResponse:
    """Has nothing, and lets the caller load it."""
    response = pb.ExchangeResponse()
    response.get.outcomes.append(pb.GET_OUTCOME_MISS)
    response.get.values.append(b"")
    response.get.leases.add(index=0, token=b"late")
    return response


async def test_a_lease_that_comes_when_another_node_has_answered_is_given_back(
    play: Play, connect: Connect
) -> None:
    late, late_address = await play(leasing)
    late.may_answer.clear()
    good, good_address = await play(hits)
    cache = await connect([late_address, good_address], timeout=1)

    async def load(key: str) -> bytes:
        raise AssertionError(key)

    assert await cache.get_or_load("a", load) == b"a"
    late.may_answer.set()
    async with asyncio.timeout(20):
        while [*late.released, *good.released] != [("a", b"late")]:
            await asyncio.sleep(0.01)


def served(request: pb.ExchangeRequest) -> pb.ExchangeResponse:
    """Does writes, and finds every key."""
    if request.get.keys:
        return hits(request)
    ones = [1] * len(request.set.keys)
    return pb.ExchangeResponse(set=pb.SetResultColumns(versions=ones, replicas=ones))


def keys_written(node: ScriptedNode) -> list[str]:
    return [key for request in node.requests for key in request.set.keys]


class WriteUnderWay:
    """A write that a node is at work on, which the ring then loses to another node."""

    def __init__(self, teller: Teller, stays: ScriptedNode, goes: ScriptedNode, addresses: list[str]) -> None:
        self.stays, self.goes = stays, goes
        self._teller = teller
        self.addresses = addresses

    async def begin(self, cache: Client) -> asyncio.Task[Any]:
        """Writes the first key that the one which goes is asked for."""
        await routed_by(cache, 2)
        self.goes.may_answer.clear()
        keys = map(str, itertools.count())
        async with asyncio.timeout(20):
            while True:
                call = asyncio.create_task(cache.set(next(keys), b"v"))
                while not (call.done() or keys_written(self.goes)):
                    await asyncio.sleep(0.001)
                if not call.done():
                    return call

    def loses(self, state: MemberState.ValueType) -> None:
        stays, goes = self.addresses
        self._teller.tell({stays: MEMBER_STATE_ALIVE, goes: state})

    async def leaves(self, cache: Client) -> None:
        """Returns when the client knows that the node leaves."""
        self.loses(MEMBER_STATE_LEAVING)
        async with asyncio.timeout(20):
            while len(cache.nodes.addresses) > 1:
                await asyncio.sleep(0.001)

    async def let_go(self) -> None:
        """Returns when nobody has a stream to the node that goes."""
        async with asyncio.timeout(20):
            while self.goes.streams:
                await asyncio.sleep(0.001)

    def asked_for_elsewhere(self) -> bool:
        [key] = keys_written(self.goes)
        return key in keys_written(self.stays)


@pytest.fixture
async def under_way(play: Play) -> WriteUnderWay:
    teller = Teller()
    stays, address = await play(served, teller)
    goes, other = await play(served)
    teller.tell(dict.fromkeys((address, other), MEMBER_STATE_ALIVE))
    return WriteUnderWay(teller, stays, goes, [address, other])


async def test_what_a_node_that_leaves_is_at_work_on_is_not_done_by_another(
    under_way: WriteUnderWay, connect: Connect
) -> None:
    """It would be done twice, and the second time after later writes of the key."""
    cache = await connect(under_way.addresses[:1], timeout=20)
    call = await under_way.begin(cache)
    await under_way.leaves(cache)
    assert (await cache.set("another", b"v")).replicas == 1
    assert not call.done()
    under_way.goes.may_answer.set()
    assert (await call).replicas == 1
    assert not under_way.asked_for_elsewhere()
    await under_way.let_go()


@pytest.mark.parametrize(
    ("state", "targets", "timeout"),
    [(MEMBER_STATE_DEAD, 1, 60), (MEMBER_STATE_DEAD, 2, 60), (MEMBER_STATE_LEAVING, 1, 2)],
    ids=["dead", "dead target", "leaving"],
)
async def test_what_a_node_that_is_gone_does_not_answer_another_one_does(
    under_way: WriteUnderWay, connect: Connect, state: MemberState.ValueType, targets: int, timeout: float
) -> None:
    """At once when it is dead, and else in time."""
    cache = await connect(under_way.addresses[:targets], timeout=timeout)
    call = await under_way.begin(cache)
    under_way.loses(state)
    async with asyncio.timeout(20):
        assert (await call).replicas == 1
    assert under_way.asked_for_elsewhere()


async def test_a_client_that_is_closed_waits_for_no_node_that_leaves(
    under_way: WriteUnderWay, connect: Connect
) -> None:
    cache = await connect(under_way.addresses[:1], timeout=60)
    call = await under_way.begin(cache)
    await under_way.leaves(cache)
    async with asyncio.timeout(20):
        await cache.close()
        with pytest.raises(Unavailable, match="the client was closed"):
            await call
    under_way.goes.may_answer.set()
    await under_way.let_go()
