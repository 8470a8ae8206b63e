"""Streams that are opened, and what is left where that is of no use."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from hpack import Encoder

from cacheservice.http2 import frames, protocol
from cacheservice.http2.client import ConnectFailed, Opener
from cacheservice.http2.client_stream import StreamFailed
from cacheservice.http2.frames import Flag, Kind, frame
from tests.http2.echo import MAX_MESSAGE_BYTES, METHOD, Echoes, opened, until


@pytest.fixture
def opener() -> Opener:
    return Opener(MAX_MESSAGE_BYTES)


@pytest.fixture
async def echoes(stack: AsyncExitStack) -> Echoes:
    made = Echoes()
    stack.push_async_callback(made.close)
    return made


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task of a test's, and no socket: one that is not closed is a warning, and so an error."""
    yield
    await asyncio.sleep(0)
    gc.collect()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def says_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(1_000):
        pass


async def says_something_else(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await says_nothing(reader, writer)


async def hangs_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(10)


async def never_begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(frames.settings({}))
    await says_nothing(reader, writer)


async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """With the first bytes, after which all seemed well."""
    writer.write(frames.settings({}) + frame(Kind.PUSH_PROMISE, 0, 1, bytes(4)))
    await says_nothing(reader, writer)


async def goes_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(frames.settings({}) + frames.goaway(0, frames.ErrorCode.NO_ERROR))
    await says_nothing(reader, writer)


async def knows_no_grpc(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    headers = Encoder().encode([(":status", "404"), ("content-type", "text/html")])
    writer.write(frames.settings({}))
    await reader.readuntil(frame(Kind.SETTINGS, Flag.ACK, 0))
    await reader.read(1_000)
    writer.write(frame(Kind.HEADERS, Flag.END_HEADERS, 1, headers))
    writer.write(frame(Kind.DATA, Flag.END_STREAM, 1, b"\0\0\0\0\1x"))
    await says_nothing(reader, writer)


USELESS = [says_nothing, says_something_else, hangs_up, never_begins, breaks_off, goes_away, knows_no_grpc]


@pytest.fixture
def start(stack: AsyncExitStack) -> Callable[[Answer], Awaitable[int]]:
    async def serve(answer: Answer) -> int:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                await answer(reader, writer)
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    return serve


@pytest.mark.parametrize("answer", [None, *USELESS], ids=lambda answer: getattr(answer, "__name__", "serves"))
async def test_giving_up_at_any_time_leaves_nothing(
    echoes: Echoes,
    start: Callable[[Answer], Awaitable[int]],
    answer: Answer | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After each step of the event loop, one after the other."""
    target = f"127.0.0.1:{echoes.listen() if answer is None else await start(answer)}"
    made: list[protocol.Http2Protocol] = []
    begin = protocol.Http2Protocol.connection_made

    def noted(self: protocol.Http2Protocol, transport: asyncio.BaseTransport) -> None:
        if self._accept is None:
            made.append(self)
        begin(self, transport)

    monkeypatch.setattr(protocol.Http2Protocol, "connection_made", noted)
    tasks = asyncio.all_tasks()
    for steps in range(40):
        opening = asyncio.create_task(
            Opener(MAX_MESSAGE_BYTES).open(target, METHOD, lambda _: None, lambda: None, 10)
        )
        for _ in range(steps):
            await asyncio.sleep(0.0001 if steps % 2 else 0)
        opening.cancel()
        [result] = await asyncio.gather(opening, return_exceptions=True)
        if not isinstance(result, BaseException):
            await result.close()
        await until(lambda: all(each.closed.done() for each in made))
        made.clear()
    await until(lambda: not echoes._open)
    ours = asyncio.all_tasks() - tasks
    await until(lambda: all(task.done() for task in ours))


@pytest.mark.parametrize("answer", USELESS[:3], ids=lambda answer: answer.__name__)
async def test_there_is_no_connection_to_what_speaks_something_else(
    opener: Opener, start: Callable[[Answer], Awaitable[int]], answer: Answer
) -> None:
    port = await start(answer)
    with pytest.raises(ConnectFailed, match=f"failed to connect to 127.0.0.1:{port}"):
        await opener.open(f"127.0.0.1:{port}", METHOD, lambda _: None, lambda: None, 0.2)


@pytest.mark.parametrize("answer", [breaks_off, goes_away, knows_no_grpc], ids=lambda answer: answer.__name__)
async def test_a_call_ends_where_it_cannot_go_on(
    opener: Opener, start: Callable[[Answer], Awaitable[int]], answer: Answer
) -> None:
    """Instead of being waited for for ever."""
    stream, _ = await opened(f"127.0.0.1:{await start(answer)}", opener)
    why: dict[Answer, str] = {
        breaks_off: "PUSH_PROMISE",
        goes_away: "about to stop",
        knows_no_grpc: "HTTP status 404",
    }
    with pytest.raises(StreamFailed, match=why[answer]):
        async with asyncio.timeout(20):
            await stream.finished()
    await stream.close()


@pytest.mark.parametrize("target", ["a..b:1", f"{'a' * 64}.test:1", "nobody.invalid:1", "127.0.0.1:1"])
async def test_targets_where_nobody_is(opener: Opener, target: str) -> None:
    with pytest.raises(ConnectFailed):
        await opened(target, opener)


async def echoed(target: str, opener: Opener) -> bytes:
    stream, messages = await opened(target, opener)
    stream.send(b"x")
    answer = await messages.next()
    await stream.close()
    return answer


@pytest.mark.parametrize("scheme", ["", "ipv4:", "dns:", "dns:///"])
async def test_targets_with_a_scheme(echoes: Echoes, opener: Opener, scheme: str) -> None:
    assert await echoed(f"{scheme}127.0.0.1:{echoes.listen()}", opener) == b"x"


async def test_a_unix_socket(stack: AsyncExitStack, tmp_path: Path, opener: Opener) -> None:
    async def echo(requests: Any, context: Any) -> None:
        async for request in requests:
            await context.write(request)

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(echo)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    target = f"unix:{tmp_path}/socket"
    server.add_insecure_port(target)
    await server.start()
    stack.push_async_callback(server.stop, 0)
    assert await echoed(target, opener) == b"x"


async def test_a_server_that_hangs_is_found_out(
    opener: Opener, start: Callable[[Answer], Awaitable[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "KEEPALIVE_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "PING_TIMEOUT_SECONDS", 0.05)
    stream, _ = await opened(f"127.0.0.1:{await start(never_begins)}", opener)
    with pytest.raises(StreamFailed, match="the other side does not answer any longer"):
        async with asyncio.timeout(20):
            await stream.finished()
    await stream.close()
