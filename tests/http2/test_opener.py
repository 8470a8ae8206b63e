"""Where streams are opened when a server offers another port, and what is left when that is of no use."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from hpack import Encoder

from cacheservice.certificates import Certificates
from cacheservice.connection import server_credentials
from cacheservice.http2 import client, frames, protocol
from cacheservice.http2.alternative import Alternative
from cacheservice.http2.client import ConnectFailed, Opener
from cacheservice.http2.client_stream import StreamFailed
from cacheservice.http2.frames import Flag, Kind, frame
from tests.certificates import Authority
from tests.http2.echo import MAX_MESSAGE_BYTES, METHOD, TOKEN, Echoes, opened, until


class Offering(grpc.GenericRpcHandler):
    """A grpcio server's echo that offers another port, and answers in capitals so as to be known by that."""

    def __init__(self) -> None:
        self.offer: Alternative | None = None
        self.calls = 0
        self.open_calls = 0

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._echo)

    async def _echo(self, requests: Any, context: Any) -> None:
        await context.send_initial_metadata(() if self.offer is None else (self.offer.offer(),))
        self.calls += 1
        self.open_calls += 1
        try:
            async for request in requests:
                await context.write(request.upper())
        finally:
            self.open_calls -= 1


class First:
    """The server that is called first, and where it is."""

    def __init__(self, handler: Offering, target: str) -> None:
        self.handler = handler
        self.target = target

    async def serves(self, opener: Opener) -> str:
        """By whom a new stream is served: "first" or "other"."""
        stream, messages = await opened(self.target, opener)
        stream.send(b"x")
        answer = await messages.next()
        await stream.close()
        return {b"X": "first", b"x": "other"}[answer]

    def offers(self, port: int, token: str = TOKEN) -> None:
        self.handler.offer = Alternative(port, token)


@pytest.fixture
def opener() -> Opener:
    return Opener(MAX_MESSAGE_BYTES)


@pytest.fixture
async def first(stack: AsyncExitStack) -> First:
    handler, server = Offering(), grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return First(handler, f"127.0.0.1:{port}")


@pytest.fixture
async def other(stack: AsyncExitStack) -> Echoes:
    made = Echoes()
    stack.push_async_callback(made.close)
    return made


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task of a test's, and no socket: one that is not closed is a warning, and so an error."""
    yield
    await asyncio.sleep(0)
    gc.collect()


async def test_streams_are_opened_where_the_server_would_rather_have_them(
    first: First, other: Echoes, opener: Opener
) -> None:
    first.offers(await other.start("127.0.0.1", 0))
    assert [await first.serves(opener) for _ in range(3)] == ["other"] * 3
    await until(lambda: not first.handler.open_calls and not other._open)


async def test_without_an_offer_they_stay(first: First, opener: Opener) -> None:
    assert await first.serves(opener) == "first"


async def test_over_tls(stack: AsyncExitStack, tmp_path: Path) -> None:
    certificates = Certificates(Authority().issue(tmp_path / "tls"))
    handler, server = Offering(), grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(certificates, ask_clients=True))
    await server.start()
    stack.push_async_callback(server.stop, 0)
    made = Echoes(lambda: certificates.server_context(ask_clients=True))
    stack.push_async_callback(made.close)
    first = First(handler, f"127.0.0.1:{port}")
    first.offers(await made.start("127.0.0.1", 0))
    opener = Opener(MAX_MESSAGE_BYTES, certificates.client_context)
    assert await first.serves(opener) == "other"
    plain = Echoes()
    stack.push_async_callback(plain.close)
    first.offers(await plain.start("127.0.0.1", 0))
    assert await first.serves(opener) == "first"


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


def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where it is connected to, as that comes."""
    seen: list[Any] = []
    connect = Opener._connect

    async def noted(self: Opener, where: Any, *arguments: Any) -> Any:
        seen.append(where)
        return await connect(self, where, *arguments)

    monkeypatch.setattr(Opener, "_connect", noted)
    return seen


async def stays(
    first: First, opener: Opener, port: int, monkeypatch: pytest.MonkeyPatch, token: str = TOKEN
) -> None:
    """The stream is on the first connection, soon; and the port is left alone, but not for ever."""
    first.offers(port, token)
    seen = attempts(monkeypatch)
    loop = asyncio.get_running_loop()
    assert [await first.serves(opener) for _ in range(2)] == ["first"] * 2
    assert [where[1] == port for where in seen] == [False, True, False]
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + client.AVOID_SECONDS)
    assert await first.serves(opener) == "first"
    assert seen[-1][1] == port


@pytest.mark.parametrize("answer", USELESS, ids=lambda answer: answer.__name__)
async def test_a_port_that_is_of_no_use(
    first: First,
    opener: Opener,
    start: Callable[[Answer], Awaitable[int]],
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await stays(first, opener, await start(answer), monkeypatch)


async def test_a_port_that_refuses(first: First, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        await stays(first, opener, taken.getsockname()[1], monkeypatch)


@pytest.mark.parametrize("connections", [0, 3], ids=["never accepts", "has a full backlog"])
async def test_a_port_that_swallows_packets(
    first: First, opener: Opener, monkeypatch: pytest.MonkeyPatch, stack: AsyncExitStack, connections: int
) -> None:
    listening = stack.enter_context(socket.socket())
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    for _ in range(connections):
        filling = stack.enter_context(socket.socket())
        filling.setblocking(False)
        filling.connect_ex(listening.getsockname())
    await stays(first, opener, listening.getsockname()[1], monkeypatch)


async def test_the_port_of_another_process(
    first: First, other: Echoes, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await other.start("127.0.0.1", 0)
    await stays(first, opener, port, monkeypatch, "another")
    assert other.calls == []
    first.offers(port)
    assert await first.serves(Opener(MAX_MESSAGE_BYTES)) == "other"


@pytest.mark.parametrize("answer", [None, *USELESS], ids=lambda answer: getattr(answer, "__name__", "serves"))
async def test_giving_up_at_any_time_leaves_nothing(
    first: First,
    other: Echoes,
    start: Callable[[Answer], Awaitable[int]],
    answer: Answer | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After each step of the event loop, one after the other."""
    first.offers(await (other.start("127.0.0.1", 0) if answer is None else start(answer)))
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
            Opener(MAX_MESSAGE_BYTES).open(first.target, METHOD, lambda _: None, lambda: None, 10)
        )
        for _ in range(steps):
            await asyncio.sleep(0.0001 if steps % 2 else 0)
        opening.cancel()
        [result] = await asyncio.gather(opening, return_exceptions=True)
        if not isinstance(result, BaseException):
            await result.close()
        await until(lambda: all(each.closed.done() for each in made))
        made.clear()
    await until(lambda: not other._open)
    ours = {task for task in asyncio.all_tasks() - tasks if "grpc" not in repr(task)}
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


@pytest.mark.parametrize("scheme", ["ipv4:", "dns:", "dns:///"])
async def test_targets_with_a_scheme(first: First, opener: Opener, scheme: str) -> None:
    assert await First(first.handler, scheme + first.target).serves(opener) == "first"


async def test_a_unix_socket(stack: AsyncExitStack, tmp_path: Path, opener: Opener) -> None:
    """Which has no other ports: an offer is of no use there."""
    handler, server = Offering(), grpc.aio.server()
    handler.offer = Alternative(1, TOKEN)
    server.add_generic_rpc_handlers((handler,))
    target = f"unix:{tmp_path}/socket"
    server.add_insecure_port(target)
    await server.start()
    stack.push_async_callback(server.stop, 0)
    assert await First(handler, target).serves(opener) == "first"


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
