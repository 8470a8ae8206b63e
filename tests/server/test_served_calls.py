"""Calls of servicers' methods: what their callers get, and how they end; called by grpcio's client."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server
from hpack import Decoder, Encoder

from cacheservice.errors import AnswerTooLarge, InternalError, InvalidArgument, NotReady, Overloaded
from cacheservice.http2 import frames
from cacheservice.http2.connection import MAX_STREAMS
from cacheservice.http2.frames import PREFACE, Flag, Kind, Setting, frame
from cacheservice.http2.server import Server
from cacheservice.http2.statuses import request
from cacheservice.server.health import Health
from cacheservice.server.methods import CHECK_SECONDS, Methods
from cacheservice.server.served_call import MAX_REQUESTS, WRITES_AT_A_TIME, ServedCall
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
        async for each in requests:
            self.asked += 1
            if each == b"wait":
                await self.let_go.wait()
            yield each.upper()

    async def all_of(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([each async for each in requests])


def _parsed(message: bytes) -> bytes:
    if message == b"malformed":
        health_pb2.HealthCheckRequest.FromString(b"\xff")
    return message


class Http2Client:
    """Gives windows only as it is told to, and counts what comes."""

    def __init__(self, writer: asyncio.StreamWriter, settings: dict[Setting, int]) -> None:
        self.received = 0
        """Bytes of DATA."""
        self.ended = 0
        """Streams."""
        self.statuses: list[str] = []
        self._last = -1
        self._table_size = settings.get(Setting.HEADER_TABLE_SIZE, 4_096)
        self._writer = writer
        self._encoder = Encoder()
        writer.write(PREFACE + frames.settings(settings))

    def call(self, path: str, message: bytes, *more: tuple[str, str]) -> None:
        self._last += 2
        headers = [*request(path, "localhost", is_tls=False), *more]
        self._writer.write(frame(Kind.HEADERS, Flag.END_HEADERS, self._last, self._encoder.encode(headers)))
        content = b"\0" + len(message).to_bytes(4) + message
        self._writer.write(frame(Kind.DATA, Flag.END_STREAM, self._last, content))

    def takes(self, size: int) -> None:
        self._writer.write(frames.window_update(0, size) + frames.window_update(self._last, size))

    async def listen(self, reader: asyncio.StreamReader) -> None:
        decoder = Decoder()
        decoder.max_allowed_table_size = self._table_size
        while True:
            upper, lower, kind, flags, _ = frames.parse_header(await reader.readexactly(9), 0)
            payload = await reader.readexactly(upper << 8 | lower)
            if kind == Kind.DATA:
                self.received += len(payload)
            elif kind == Kind.HEADERS:
                fields = dict(decoder.decode(payload, raw=True))
                if b"grpc-status" in fields:
                    self.statuses.append(fields[b"grpc-status"].decode())
                self.ended += bool(flags & Flag.END_STREAM)


@asynccontextmanager
async def http2_client(
    methods: Methods, settings: dict[Setting, int] | None = None
) -> AsyncIterator[tuple[Http2Client, Server]]:
    server = Server(methods.handlers, MAX_MESSAGE_BYTES)
    port = server.bind("127.0.0.1", 0)
    server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Http2Client(writer, settings or {})
    listening = asyncio.create_task(client.listen(reader))
    try:
        yield client, server
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        writer.close()
        await server.close()


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


async def test_answers_that_wait_for_their_caller_leave_before_the_end(methods: Methods) -> None:
    """Of one whose window is small, and who takes it slowly."""
    async with http2_client(methods) as (client, server):
        client.call("/test.Test/one", b"2000000")
        await until(lambda: client.received)
        ending = asyncio.create_task(methods.finish(20))
        await asyncio.sleep(0.1)
        assert not ending.done()
        client.takes(2_000_100)
        await ending
        closing = asyncio.create_task(server.close())
        await until(lambda: client.received == 2_000_005)
        await closing


async def test_and_are_given_up_at_the_deadline(methods: Methods) -> None:
    async with http2_client(methods) as (client, _):
        client.call("/test.Test/one", b"2000000", ("grpc-timeout", "200m"))
        await until(lambda: client.received and not methods._open)


async def test_calls_whose_deadlines_pass_before_they_begin(methods: Methods) -> None:
    async with http2_client(methods) as (client, _):
        for _ in range(500):
            client.call("/test.Test/one", b"slow", ("grpc-timeout", "1n"))
        await until(lambda: client.ended == 500)
        assert not methods._open


async def test_a_method_past_its_deadline_is_cancelled_once(methods: Methods) -> None:
    cleaned = asyncio.Event()

    async def careful(_: bytes, __: Any) -> bytes:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(3 * CHECK_SECONDS)
            cleaned.set()
        return b""

    handler = grpc.unary_unary_rpc_method_handler(careful, bytes, bytes)
    methods.add_registered_method_handlers(SERVICE, {"careful": handler})
    async with serving(methods) as channel:
        method: Any = channel.unary_unary(f"/{SERVICE}/careful")
        await failure(method(b"", metadata=(("grpc-timeout", "10m"),)))
        assert cleaned.is_set()


async def test_who_takes_all_does_not_keep_the_node_to_itself(
    channel: grpc.aio.Channel, servicer: Servicer
) -> None:
    """Although each response leaves at once."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += servicer.written not in (0, 1_000)

    taking = asyncio.create_task(take_turns())
    assert len([each async for each in many(channel, b"1 1000")]) == 1_000
    taking.cancel()
    assert turns >= 1_000 // WRITES_AT_A_TIME - 2


@pytest.mark.parametrize("size", [0, 1_024])
async def test_callers_that_keep_fewer_headers_are_answered(methods: Methods, size: int) -> None:
    async with http2_client(methods, {Setting.HEADER_TABLE_SIZE: size}) as (client, _):
        for request in (b"a", b"refused", b"b"):
            client.call("/test.Test/one", request)
        client.call("/test.Test/none", b"x")
        await until(lambda: client.ended == 4)
        assert sorted(client.statuses) == ["0", "0", "12", "8"]


async def test_a_status_that_is_too_long_is_cut(methods: Methods, channel: grpc.aio.Channel) -> None:
    async def refuse(_: bytes, __: Any) -> bytes:
        raise InvalidArgument("\u00e9" * 20_000, field="x" * 5_000)

    handler = grpc.unary_unary_rpc_method_handler(refuse, bytes, bytes)
    methods.add_registered_method_handlers(SERVICE, {"refuse": handler})
    method: Any = channel.unary_unary(f"/{SERVICE}/refuse")
    error = await failure(method(b""))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(error.details() or "") == {"\u00e9"}
    assert await one(channel, b"a") == b"A"


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


async def test_health_is_told_to_who_takes_it_and_not_held_up_by_who_does_not(methods: Methods) -> None:
    servicer = Health()
    servicer.set({"": True, "a": False})
    registering: Any = methods
    add_HealthServicer_to_server(servicer, registering)
    serving_, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with http2_client(methods, {Setting.INITIAL_WINDOW_SIZE: 0}) as (client, _):
        client.call("/grpc.health.v1.Health/Watch", b"")
        async with serving(methods) as channel:
            stub: Any = HealthStub(channel)
            question = health_pb2.HealthCheckRequest
            assert (await stub.Check(question())).status == serving_
            assert (await stub.Check(question(service="a"))).status == not_serving
            error = await failure(stub.Check(question(service="what")))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            watching = stub.Watch(question())
            assert (await watching.read()).status == serving_
            servicer.set({"": False})
            assert (await watching.read()).status == not_serving
            unknown = stub.Watch(question(service="b"))
            assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            servicer.set({"b": True})
            assert (await unknown.read()).status == serving_
        client.takes(100)
        await until(lambda: client.received)


async def test_nothing_is_left_of_calls(channel: grpc.aio.Channel, methods: Methods) -> None:
    for _ in range(3):
        await asyncio.gather(*(one(channel, b"a") for _ in range(100)))
    await until(lambda: not methods._open)
    gc.collect()
    calls = [each for each in gc.get_objects() if isinstance(each, ServedCall)]
    assert not [call for call in calls if call._on_end.__self__ is methods._open]  # type: ignore[attr-defined]
