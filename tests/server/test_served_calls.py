"""Calls of servicers' methods: what their callers get, and how they end; called by grpcio's client."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from cacheservice.errors import AnswerTooLarge, InternalError, InvalidArgument, NotReady, Overloaded
from cacheservice.http2.connection import MAX_STREAMS
from cacheservice.server.methods import Methods
from cacheservice.server.served_call import MAX_REQUESTS, ServedCall
from cacheservice.wire import from_rpc_error
from tests.server.serving import MAX_MESSAGE_BYTES, serving

SERVICE = "test.Test"
GZIP = grpc.Compression.Gzip
RESULTS = {
    b"refused": Overloaded("full", retry_after_ms="7"),
    b"defect": ZeroDivisionError("secret"),
}


class Servicer:
    """Whose requests and responses are bytes."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.asked = 0
        self.written = 0
        self.let_go = asyncio.Event()
        self.remaining: float | None = None

    async def one(self, request: bytes, context: Any) -> bytes:
        self.begun += 1
        self.remaining = context.time_remaining()
        if request in RESULTS:
            raise RESULTS[request]
        if request == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone: 100 % \u00e9")
        if request == b"cancelled":
            raise asyncio.CancelledError
        if request.isdigit():
            return bytes(int(request))
        if request.startswith(b"slow"):
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return request.upper()

    async def many(self, request: bytes, context: Any) -> None:
        size, count = map(int, request.split())
        try:
            for _ in range(count):
                await context.write(bytes(size))
                self.written += 1
            if not count:
                await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def generated(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for each in request.split():
            if each == b"refused":
                raise NotReady("later")
            yield each

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self.asked += 1
            if request == b"wait":
                await self.let_go.wait()
            yield request.upper()

    async def all_of(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([request async for request in requests])


def _parsed(message: bytes) -> bytes:
    if message == b"malformed":
        health_pb2.HealthCheckRequest.FromString(b"\xff")
    return message


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def methods(servicer: Servicer) -> Methods:
    made = Methods()
    kinds = {
        "one": grpc.unary_unary_rpc_method_handler,
        "many": grpc.unary_stream_rpc_method_handler,
        "generated": grpc.unary_stream_rpc_method_handler,
        "both": grpc.stream_stream_rpc_method_handler,
        "all_of": grpc.stream_unary_rpc_method_handler,
    }
    handlers = {name: kind(getattr(servicer, name), _parsed, bytes) for name, kind in kinds.items()}
    made.add_registered_method_handlers(SERVICE, handlers)
    return made


@pytest.fixture
async def channel(methods: Methods, stack: AsyncExitStack) -> grpc.aio.Channel:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return await stack.enter_async_context(serving(methods, options=options))


def one(channel: grpc.aio.Channel, request: bytes, **options: Any) -> Any:
    method: Any = channel.unary_unary(f"/{SERVICE}/one")
    return method(request, **options)


def many(channel: grpc.aio.Channel, request: bytes, name: str = "many") -> Any:
    method: Any = channel.unary_stream(f"/{SERVICE}/{name}")
    return method(request)


def both(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(f"/{SERVICE}/both")()


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 20)
    return caught.value


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_379, 65_535, 5_000_000])
async def test_answers_of_all_sizes(channel: grpc.aio.Channel, size: int) -> None:
    assert await one(channel, str(size).encode()) == bytes(size)
    assert await one(channel, b"x" * size) == b"X" * size


async def test_many_calls_at_a_time_over_one_connection(
    channel: grpc.aio.Channel, methods: Methods, servicer: Servicer
) -> None:
    """More than the node serves at a time: the others wait at the caller."""
    count = MAX_STREAMS + 50
    calls = [asyncio.ensure_future(one(channel, b"slow%d" % number)) for number in range(count)]
    await until(lambda: servicer.begun == MAX_STREAMS)
    servicer.let_go.set()
    assert await asyncio.gather(*calls) == [b"SLOW%d" % number for number in range(count)]
    await until(lambda: not methods._open)


async def test_errors_have_their_status_and_details(channel: grpc.aio.Channel) -> None:
    error = from_rpc_error(await failure(one(channel, b"refused")))
    assert isinstance(error, Overloaded)
    assert (error.message, error.metadata) == ("full", {"retry_after_ms": "7"})
    aborted = await failure(one(channel, b"abort"))
    assert (aborted.code(), aborted.details()) == (grpc.StatusCode.NOT_FOUND, "gone: 100 % \u00e9")
    malformed = from_rpc_error(await failure(one(channel, b"malformed")))
    assert isinstance(malformed, InvalidArgument)
    assert malformed.metadata["field"] == "request"
    assert (await failure(one(channel, b"cancelled"))).code() is grpc.StatusCode.CANCELLED


async def test_a_defect_is_told_without_its_traceback(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failure(one(channel, b"defect"))
    assert isinstance(from_rpc_error(error), InternalError)
    assert "secret" not in repr(error)
    assert "ZeroDivisionError: secret" in caplog.text
    assert await one(channel, b"a") == b"A"


async def test_an_answer_that_is_too_long(channel: grpc.aio.Channel) -> None:
    error = await failure(one(channel, str(MAX_MESSAGE_BYTES + 1).encode()))
    assert isinstance(from_rpc_error(error), AnswerTooLarge)


async def test_a_request_that_is_too_long(channel: grpc.aio.Channel, methods: Methods) -> None:
    error = await failure(one(channel, bytes(MAX_MESSAGE_BYTES + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not methods._open
    assert await one(channel, b"a") == b"A"


async def test_the_deadline_is_told_and_kept(
    channel: grpc.aio.Channel, servicer: Servicer, methods: Methods
) -> None:
    assert await one(channel, b"a") == b"A"
    assert servicer.remaining is None
    call = one(channel, b"slow", timeout=0.3)
    assert (await failure(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert servicer.remaining is not None
    assert 0 < servicer.remaining < 0.4
    await until(lambda: servicer.cancelled == 1 and not methods._open)


async def test_a_deadline_is_kept_without_a_word_of_the_caller(
    servicer: Servicer, methods: Methods, channel: grpc.aio.Channel
) -> None:
    """As of one who has gone without a trace: here the caller's own deadline is later."""
    metadata = (("grpc-timeout", "100m"),)
    error = await failure(one(channel, b"slow", metadata=metadata))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert servicer.cancelled == 1
    await until(lambda: not methods._open)


@pytest.mark.parametrize("ends", ["cancel", "channel"])
async def test_who_goes_away_is_not_worked_for(
    channel: grpc.aio.Channel, servicer: Servicer, methods: Methods, ends: str
) -> None:
    calls = [one(channel, b"slow"), many(channel, b"1 0"), many(channel, b"1000000 100")]
    await until(lambda: servicer.begun == 1 and len(methods._open) == 3 and servicer.written)
    if ends == "cancel":
        for call in calls:
            call.cancel()
    else:
        await channel.close()
    await until(lambda: not methods._open and servicer.cancelled == 3)


async def test_many_responses(channel: grpc.aio.Channel) -> None:
    assert [len(each) async for each in many(channel, b"100000 50")] == [100_000] * 50
    assert [each async for each in many(channel, b"a b c", "generated")] == [b"a", b"b", b"c"]
    call = many(channel, b"a refused b", "generated")
    assert await call.read() == b"a"
    assert isinstance(from_rpc_error(await failure(call.read())), NotReady)


async def test_who_writes_waits_for_who_reads(channel: grpc.aio.Channel, servicer: Servicer) -> None:
    call = many(channel, b"1000000 100")
    written = -1
    while written != servicer.written:
        written = servicer.written
        await asyncio.sleep(0.2)
    assert 0 < written < 100
    assert await one(channel, b"a") == b"A"
    assert len([each async for each in call]) == 100
    assert servicer.written == 100


async def test_requests_and_responses_side_by_side(
    channel: grpc.aio.Channel, servicer: Servicer, methods: Methods
) -> None:
    call = both(channel)
    for each in (b"a", b"b"):
        await call.write(each)
        assert await call.read() == each.upper()
    await call.write(b"wait")
    count = 20 * MAX_REQUESTS

    async def send() -> None:
        for _ in range(count):
            await call.write(b"x" * 100_000)
        await call.done_writing()

    sending = asyncio.create_task(send())
    await until(lambda: servicer.asked == 3)
    [served] = methods._open
    kept = -1
    while kept != len(served._requests):
        kept = len(served._requests)
        await asyncio.sleep(0.2)
    assert MAX_REQUESTS <= kept < count / 2
    servicer.let_go.set()
    assert await call.read() == b"WAIT"
    for _ in range(count):
        assert await call.read() == b"X" * 100_000
    await sending
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_many_requests_and_one_response(channel: grpc.aio.Channel) -> None:
    call: Any = channel.stream_unary(f"/{SERVICE}/all_of")()
    for each in (b"a", b"b", b"c"):
        await call.write(each)
    await call.done_writing()
    assert await call == b"abc"


@pytest.mark.parametrize("count", [0, 2])
async def test_a_call_of_one_request_has_one(
    channel: grpc.aio.Channel, servicer: Servicer, count: int
) -> None:
    call: Any = channel.stream_stream(f"/{SERVICE}/one")()
    for _ in range(count):
        await call.write(b"a")
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "request in a call of one" in await call.details()
    assert servicer.begun == 0


async def test_compressed_requests(methods: Methods) -> None:
    async with serving(methods, compression=GZIP) as channel:
        assert await one(channel, b"a" * 100_000) == b"A" * 100_000
        call = both(channel)
        await call.write(b"b" * 1_000)
        assert await call.read() == b"B" * 1_000


async def test_what_is_under_way_is_finished_before_the_end(
    channel: grpc.aio.Channel, servicer: Servicer, methods: Methods
) -> None:
    slow = asyncio.ensure_future(one(channel, b"slow"))
    await until(lambda: servicer.begun == 1)
    finishing = asyncio.create_task(methods.finish(20))
    await asyncio.sleep(0.05)
    assert not finishing.done()
    servicer.let_go.set()
    assert await slow == b"SLOW"
    await finishing


async def test_what_takes_too_long_is_cancelled_then(channel: grpc.aio.Channel, methods: Methods) -> None:
    calls = [one(channel, b"slow"), many(channel, b"1 0").read(), both(channel).read()]
    failures = [asyncio.ensure_future(failure(call)) for call in calls]
    await until(lambda: len(methods._open) == 3)
    await methods.finish(0)
    for error in await asyncio.gather(*failures):
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the node is about to stop")
    assert not methods._open


async def test_health_of_grpcio(methods: Methods) -> None:
    servicer: Any = health.aio.HealthServicer()
    registering: Any = methods
    add_HealthServicer_to_server(servicer, registering)
    async with serving(methods) as channel:
        stub: Any = HealthStub(channel)
        request = health_pb2.HealthCheckRequest
        assert (await stub.Check(request())).status == health_pb2.HealthCheckResponse.SERVING
        error = await failure(stub.Check(request(service="what")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        watching = stub.Watch(request(service="a"))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        await servicer.set("a", health_pb2.HealthCheckResponse.SERVING)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        await until(lambda: not methods._open)


async def test_nothing_is_left_of_calls(channel: grpc.aio.Channel, methods: Methods) -> None:
    for _ in range(3):
        await asyncio.gather(*(one(channel, b"a") for _ in range(100)))
    await until(lambda: not methods._open)
    gc.collect()
    calls = [each for each in gc.get_objects() if isinstance(each, ServedCall)]
    assert not [call for call in calls if call._on_end.__self__ is methods]  # type: ignore[attr-defined]
