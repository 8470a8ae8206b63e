"""Streams: how much is begun, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from cacheservice.errors import InvalidArgument
from cacheservice.http2 import frames
from cacheservice.http2.client_stream import ClientStream, StreamFailed
from cacheservice.http2.protocol import Http2Protocol
from cacheservice.http2.server import Server
from cacheservice.http2.statuses import request
from cacheservice.node.later import Later
from cacheservice.server.completion import Pending
from cacheservice.server.direct_stream import MAX_AT_WORK, MAX_UNSENT_BYTES
from cacheservice.server.streams import Streams
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import from_call

MiB = 1024 * 1024
METHOD = "/test/Method"


class Work:
    """What is begun: by its key, each is answered at once, later, or not at all."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self.let_go = asyncio.Event()

    def begin(self, asked: pb.GetRequest) -> Any:
        self.begun.append(asked.key)
        if asked.key == "defect":
            raise ZeroDivisionError("secret")
        if asked.key.startswith("slow"):
            later = Later[bytes](asyncio.create_task(self._later(asked.key)))
            return Pending(later.future, later.result)
        return pb.GetResponse(value=asked.key.encode() * max(1, asked.known_version)).SerializeToString()

    async def _later(self, key: str) -> bytes:
        await self.let_go.wait()
        self.done.append(key)
        if key == "slow defect":
            raise ZeroDivisionError("secret")
        return pb.GetResponse(value=key.encode()).SerializeToString()


class Caller:
    """A client's stream, and what it has received."""

    def __init__(self, protocol: Http2Protocol) -> None:
        self.protocol = protocol
        self.answers: list[bytes] = []
        headers = request(METHOD, "localhost", is_tls=False)
        self.stream = ClientStream(protocol, headers, self._receive, lambda: None)

    def ask(self, key: str, size: int = 1) -> None:
        self.stream.send(pb.GetRequest(key=key, known_version=size).SerializeToString())

    def stop_taking(self) -> None:
        """Leaves unread what comes from now on, and tells the node that there is room for all of it."""
        transport: Any = self.protocol._transport
        transport.pause_reading()
        window = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 2**30})
        transport.write(window + frames.window_update(0, 2**30))

    def take(self) -> None:
        transport: Any = self.protocol._transport
        transport.resume_reading()

    async def status(self) -> tuple[int, str, bytes]:
        async with asyncio.timeout(20):
            try:
                await self.stream.finished()
            except StreamFailed as failure:
                return failure.status
        return (0, "", b"")

    def _receive(self, message: bytes) -> None:
        self.answers.append(pb.GetResponse.FromString(message).value)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
async def port(stack: AsyncExitStack, streams: Streams, work: Work) -> int:
    handler = streams.handler(pb.GetRequest.FromString, work.begin)
    server = Server({METHOD: handler}, 64 * MiB)
    stack.push_async_callback(server.close)
    port = server.bind("127.0.0.1", 0)
    server.start()
    return port


@pytest.fixture
async def caller(port: int) -> AsyncIterator[Caller]:
    _, protocol = await asyncio.get_running_loop().create_connection(
        lambda: Http2Protocol(64 * MiB), "127.0.0.1", port
    )
    await protocol.ready
    made = Caller(protocol)
    yield made
    made.take()
    await made.stream.close()


async def test_each_answer_leaves_when_it_is_ready(caller: Caller, work: Work) -> None:
    for key in ("slow", "a", "b"):
        caller.ask(key)
    await until(lambda: caller.answers == [b"a", b"b"])
    work.let_go.set()
    await until(lambda: caller.answers == [b"a", b"b", b"slow"])


async def test_no_more_is_begun_than_may_be_at_work(caller: Caller, work: Work) -> None:
    for number in range(MAX_AT_WORK + 5):
        caller.ask(f"slow {number}")
    caller.ask("last")
    await until(lambda: len(work.begun) == MAX_AT_WORK)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(work.begun) == MAX_AT_WORK
    work.let_go.set()
    await until(lambda: len(caller.answers) == MAX_AT_WORK + 6)
    assert set(caller.answers) == {key.encode() for key in work.begun}


@pytest.mark.parametrize("size", [1_000, 15_000, 100_000])
async def test_no_more_is_begun_than_the_caller_takes(caller: Caller, work: Work, size: int) -> None:
    """However small the answers are, and however much room the caller's windows have."""
    count = 40 * MAX_UNSENT_BYTES // size
    caller.stop_taking()
    for number in range(count):
        caller.ask(chr(ord("a") + number % 26), size)
    begun = -1
    while begun != len(work.begun):
        begun = len(work.begun)
        await asyncio.sleep(0.2)
    assert 0 < begun < count - MAX_UNSENT_BYTES // size
    caller.take()
    await until(lambda: len(caller.answers) == count)
    assert [answer[:1].decode() for answer in caller.answers] == work.begun


async def test_what_is_no_message_ends_the_stream(caller: Caller, streams: Streams) -> None:
    caller.ask("a")
    caller.stream.send(b"\xff\xff")
    error = from_call(*await caller.status())
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == "request"
    assert caller.answers == [b"a"]
    await streams.finished(0)


async def test_after_that_nothing_is_begun_nor_kept(caller: Caller, work: Work, streams: Streams) -> None:
    caller.stop_taking()
    for _ in range(30):
        caller.ask("a", MiB)
    caller.stream.send(b"\xff\xff")
    for _ in range(100):
        caller.ask("b", 1)
    [stream] = streams._open
    await until(lambda: work.begun)
    caller.take()
    assert (await caller.status())[0] == 3
    assert work.begun == ["a"] * 30
    assert not stream._requests
    await until(lambda: not streams._open)


async def test_a_deadline_ends_the_stream_after_what_was_answered(port: int, streams: Streams) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream(METHOD)(metadata=(("grpc-timeout", "200m"),))
        await call.write(pb.GetRequest(key="a").SerializeToString())
        assert pb.GetResponse.FromString(await call.read()).value == b"a"
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not streams._open)


@pytest.mark.parametrize("key", ["defect", "slow defect"])
async def test_a_defect_is_told_without_its_traceback(
    caller: Caller, work: Work, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    work.let_go.set()
    caller.ask(key)
    code, message, details = await caller.status()
    assert code == 13
    assert b"secret" not in message.encode() + details
    assert "ZeroDivisionError: secret" in caplog.text


async def test_a_stream_that_stops_reading_answers_what_was_begun(
    caller: Caller, work: Work, streams: Streams
) -> None:
    for number in range(MAX_AT_WORK + 5):
        caller.ask(f"slow {number}")
    await until(lambda: len(work.begun) == MAX_AT_WORK)
    streams.close()
    caller.ask("late")
    finishing = asyncio.create_task(streams.finished(20))
    work.let_go.set()
    assert await caller.status() == (0, "", b"")
    await finishing
    assert len(caller.answers) == len(work.begun) == MAX_AT_WORK


async def test_a_caller_that_comes_too_late_is_sent_away_in_order(caller: Caller, streams: Streams) -> None:
    streams.close()
    assert await caller.status() == (0, "", b"")
    again = Caller(caller.protocol)
    assert await again.status() == (0, "", b"")


async def test_who_goes_away_leaves_nothing_behind_and_what_was_begun_goes_on(
    caller: Caller, work: Work, streams: Streams
) -> None:
    for number in range(MAX_AT_WORK + 5):
        caller.ask(f"slow {number}")
    await until(lambda: len(work.begun) == MAX_AT_WORK)
    await caller.stream.close()
    await until(lambda: not streams._open)
    work.let_go.set()
    await until(lambda: len(work.done) == MAX_AT_WORK)
    assert len(work.begun) == MAX_AT_WORK
