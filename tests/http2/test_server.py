"""The server on real sockets: whoever breaks the rules, hangs or stops reading is closed, and nobody else."""

from __future__ import annotations

import asyncio
import gc
import gzip
import resource
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheservice.certificates import Certificates, Tls
from cacheservice.http2 import frames, protocol, server
from cacheservice.http2.frames import PREFACE, Flag, Kind, frame
from cacheservice.http2.statuses import request
from tests.certificates import Authority
from tests.http2.echo import MAX_MESSAGE_BYTES, METHOD, Echoes, until

HELLO = PREFACE + frames.settings({})


class Client:
    """Speaks as much HTTP/2 as the test wants it to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.encoder = Encoder()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def call(self, number: int = 1, method: str = METHOD, *more: tuple[str, str]) -> None:
        headers = [*request(method, "localhost", is_tls=False), *more]
        self.send(frame(Kind.HEADERS, Flag.END_HEADERS, number, self.encoder.encode(headers)))

    def message(self, content: bytes, number: int = 1) -> None:
        self.send(frame(Kind.DATA, 0, number, b"\0" + len(content).to_bytes(4) + content))

    async def heard(self, kind: int) -> bytes:
        """The payload of the next frame of the kind."""
        async with asyncio.timeout(20):
            while True:
                upper, lower, found, _, _ = frames.parse_header(await self.reader.readexactly(9), 0)
                payload = await self.reader.readexactly(upper << 8 | lower)
                if found == kind:
                    return payload

    async def is_closed(self) -> bool:
        """Whether the server closes the connection, sooner or later."""
        async with asyncio.timeout(20):
            try:
                while await self.reader.read(65_536):
                    pass
            except OSError:
                pass
        return True

    async def echoes(self) -> bool:
        self.message(b"still there")
        return (await self.heard(Kind.DATA))[5:] == b"still there"


@pytest.fixture
async def echoes(stack: AsyncExitStack) -> Echoes:
    made = Echoes()
    stack.push_async_callback(made.close)
    return made


@pytest.fixture
async def port(echoes: Echoes) -> int:
    return echoes.listen()


async def connected(stack: AsyncExitStack, port: int, hello: bytes = HELLO) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    stack.callback(client.writer.close)
    client.send(hello)
    return client


async def test_who_breaks_the_protocol_is_closed_alone(
    echoes: Echoes, port: int, stack: AsyncExitStack
) -> None:
    bad, good = [await connected(stack, port) for _ in range(2)]
    for client in (bad, good):
        client.call()
        assert await client.echoes()
    bad.send(frame(Kind.PUSH_PROMISE, 0, 1, bytes(4)))
    assert b"PUSH_PROMISE" in await bad.heard(Kind.GOAWAY)
    assert await bad.is_closed()
    assert [len(call.ends) for call in echoes.calls] == [1, 0]
    assert await good.echoes()
    assert await (await connected(stack, port)).heard(Kind.SETTINGS)


async def test_a_defect_costs_the_connection_and_is_logged(
    port: int, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = [await connected(stack, port) for _ in range(2)]
    for client in (bad, good):
        client.call()
        assert await client.echoes()
    bad.message(b"defect")
    assert await bad.is_closed()
    assert "ZeroDivisionError: secret" in caplog.text
    assert await good.echoes()


@settings(max_examples=25)
@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_whatever_comes_the_server_goes_on(parts: list[bytes], begins_well: bool) -> None:
    async def throw() -> None:
        made = Echoes()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(made.close)
            port = made.listen()
            good = await connected(stack, port)
            good.call()
            bad = await connected(stack, port, HELLO if begins_well else b"")
            for part in parts:
                bad.send(frame(part[0] % 11, part[-1], 1, part) if part and begins_well else part)
            bad.writer.write_eof()
            assert await bad.is_closed()
            assert await good.echoes()
            await until(lambda: len(made._open) == 1)

    asyncio.run(throw())


@pytest.mark.parametrize(
    ("method", "more", "status"),
    [
        ("/other/Method", (), b"12"),
        (METHOD, (("grpc-encoding", "snappy"),), b"12"),
        (METHOD, (("grpc-timeout", "soon"),), b"13"),
    ],
)
async def test_calls_that_are_refused_and_nothing_is_kept_of_what_is_sent(
    echoes: Echoes, port: int, stack: AsyncExitStack, method: str, more: Any, status: bytes
) -> None:
    client = await connected(stack, port)
    client.call(1, method, *more)
    headers = dict(Decoder().decode(await client.heard(Kind.HEADERS), raw=True))
    assert headers[b":status"] == b"200"
    assert headers[b"grpc-status"] == status
    assert await client.heard(Kind.RST_STREAM) == bytes(4)
    client.send(frame(Kind.DATA, 0, 1, bytes([0, 0, 255, 255, 255]) + bytes(1_000)) * 10)
    client.call(3)
    client.message(b"echo", 3)
    assert (await client.heard(Kind.DATA))[5:] == b"echo"
    assert len(echoes.calls) == 1
    assert [stream.id for each in echoes._open for stream in each.connection.streams] == [3]


async def test_what_is_no_call_is_answered_as_http(port: int, stack: AsyncExitStack) -> None:
    client = await connected(stack, port)
    headers = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "localhost")]
    flags = Flag.END_HEADERS | Flag.END_STREAM
    client.send(frame(Kind.HEADERS, flags, 1, client.encoder.encode(headers)))
    told = dict(Decoder().decode(await client.heard(Kind.HEADERS), raw=True))
    assert told == {b":status": b"415"}
    client.call(3)
    client.message(b"echo", 3)
    assert (await client.heard(Kind.DATA))[5:] == b"echo"


async def test_messages_may_be_compressed(port: int, stack: AsyncExitStack) -> None:
    client = await connected(stack, port)
    client.call(1, METHOD, ("grpc-encoding", "gzip"))
    small = gzip.compress(b"a" * 1_000)
    client.send(frame(Kind.DATA, 0, 1, b"\1" + len(small).to_bytes(4) + small))
    assert (await client.heard(Kind.DATA))[5:] == b"a" * 1_000
    assert await client.echoes()


@pytest.mark.parametrize(
    ("encoding", "content", "status", "why"),
    [
        ("identity", gzip.compress(b"x"), b"13", "no header that says how"),
        ("gzip", b"what is this?", b"13", "gzip cannot read"),
        ("gzip", gzip.compress(b"x" * 1_000)[:-5], b"13", "its end is missing"),
        ("gzip", gzip.compress(bytes(MAX_MESSAGE_BYTES + 1)), b"8", "a message of more than"),
    ],
    ids=["no encoding", "no gzip", "cut off", "too large"],
)
async def test_what_cannot_be_decompressed_ends_its_call_alone(
    port: int, stack: AsyncExitStack, encoding: str, content: bytes, status: bytes, why: str
) -> None:
    client = await connected(stack, port)
    for number in (1, 3):
        client.call(number, METHOD, ("grpc-encoding", encoding))
        await client.heard(Kind.HEADERS)
    client.send(frame(Kind.DATA, 0, 1, b"\1" + len(content).to_bytes(4) + content[:16_000]))
    for start in range(16_000, len(content), 16_000):
        client.send(frame(Kind.DATA, 0, 1, content[start : start + 16_000]))
    headers = dict(Decoder().decode(await client.heard(Kind.HEADERS), raw=True))
    assert headers[b"grpc-status"] == status
    assert why in headers[b"grpc-message"].decode()
    client.message(b"echo", 3)
    assert (await client.heard(Kind.DATA))[5:] == b"echo"


async def test_who_has_no_call_yet_is_kept(
    port: int, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "KEEPALIVE_SECONDS", 0.02)
    monkeypatch.setattr(protocol, "PING_TIMEOUT_SECONDS", 0.5)
    client = await connected(stack, port)
    for _ in range(3):
        client.send(frame(Kind.PING, Flag.ACK, 0, await client.heard(Kind.PING)))
    client.call()
    assert await client.echoes()


@pytest.mark.parametrize("hello", [b"", PREFACE[:5]])
async def test_who_does_not_begin_is_not_kept(
    port: int, stack: AsyncExitStack, hello: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "KEEPALIVE_SECONDS", 0.05)
    assert await (await connected(stack, port, hello)).is_closed()


async def test_a_caller_that_hangs_is_given_up(
    echoes: Echoes, port: int, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "KEEPALIVE_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "PING_TIMEOUT_SECONDS", 0.05)
    client = await connected(stack, port)
    client.call()
    assert await client.heard(Kind.PING)
    assert await client.is_closed()
    [call] = echoes.calls
    assert call.ends[0].why == "the other side does not answer any longer"


async def test_a_caller_that_answers_is_kept(
    port: int, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "KEEPALIVE_SECONDS", 0.02)
    monkeypatch.setattr(protocol, "PING_TIMEOUT_SECONDS", 0.5)
    client = await connected(stack, port)
    client.call()
    for _ in range(3):
        client.send(frame(Kind.PING, Flag.ACK, 0, await client.heard(Kind.PING)))
    assert await client.echoes()


def narrow(port: int) -> socket.socket:
    """Whoever writes to it is soon behind."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    made.connect(("127.0.0.1", port))
    return made


async def test_who_reads_nothing_is_closed_all_the_same(
    echoes: Echoes, port: int, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although what was sent has not left; its call ends at once."""
    monkeypatch.setattr(protocol, "CLOSE_SECONDS", 0.5)
    reader, writer = await asyncio.open_connection(sock=narrow(port), limit=1_000)
    stack.callback(writer.close)
    client = Client(reader, writer)
    client.send(HELLO + frames.window_update(0, 2**30))
    client.send(frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 2**30}))
    client.call()
    for _ in range(2_000):
        client.message(bytes(16_000))
        await writer.drain()
    await until(lambda: echoes.calls and echoes.calls[0].received == 2_000)
    [connection] = [each.connection for each in echoes._open]
    assert connection.is_paused
    client.send(frame(Kind.PUSH_PROMISE, 0, 1, bytes(4)))
    await until(lambda: echoes.calls[0].ends)
    assert echoes._open
    await until(lambda: not echoes._open)


async def test_it_closes_soon_whoever_is_connected(
    echoes: Echoes, port: int, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "CLOSE_SECONDS", 0.1)
    silent = await connected(stack, port, b"")
    calling = await connected(stack, port)
    calling.call()
    assert await calling.echoes()
    accepted = len(echoes._open)
    late = await connected(stack, port)
    async with asyncio.timeout(20):
        await echoes.close()
    assert accepted == 2
    for client in (silent, calling, late):
        assert await client.is_closed()
    assert not echoes._open
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Authority().issue(tmp_path / "tls")


@pytest.fixture
async def encrypted(tls: Tls, stack: AsyncExitStack) -> tuple[Echoes, int]:
    certificates = Certificates(tls)
    made = Echoes(lambda: certificates.server_context(ask_clients=True))
    stack.push_async_callback(made.close)
    return made, made.listen()


async def test_it_goes_away_amid_handshakes(encrypted: Any, stack: AsyncExitStack) -> None:
    """Of somebody who takes their time, and of somebody who has only just come."""
    made, port = encrypted
    slow = await connected(stack, port, b"\x16\x03\x01")
    await until(lambda: made._handshakes)
    new = await connected(stack, port, b"")
    made.go_away()
    async with asyncio.timeout(20):
        await made.close()
    assert not made._handshakes
    for client in (slow, new):
        assert await client.is_closed()


async def test_handshakes_have_a_time_limit(
    encrypted: Any, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.1)
    made, port = encrypted
    client = await connected(stack, port, b"\x16\x03\x01")
    assert await client.is_closed()
    await until(lambda: not made._handshakes)
    assert not made._open


async def test_who_comes_without_tls_is_closed(encrypted: Any, stack: AsyncExitStack) -> None:
    made, port = encrypted
    client = await connected(stack, port)
    assert await client.is_closed()
    await until(lambda: not made._handshakes)
    assert not made._open


async def test_who_hangs_up_amid_the_handshake_leaves_nothing(encrypted: Any, tls: Tls) -> None:
    made, port = encrypted
    context = Certificates(tls).client_context()
    for _ in range(20):
        raw = socket.create_connection(("127.0.0.1", port))
        raw.setblocking(False)
        wrapped = context.wrap_socket(raw, server_hostname="127.0.0.1", do_handshake_on_connect=False)
        with wrapped:
            while True:
                try:
                    wrapped.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await asyncio.sleep(0.001)
            wrapped.send(HELLO)
    await until(lambda: not made._handshakes and not made._open)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_over_tls_with_either_event_loop(tls: Tls, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def call() -> None:
        certificates = Certificates(tls)
        made = Echoes(lambda: certificates.server_context(ask_clients=True))
        port = made.listen()
        for _ in range(5):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=certificates.client_context(), server_hostname="127.0.0.1"
            )
            client = Client(reader, writer)
            client.send(HELLO)
            client.call()
            assert await client.echoes()
            writer.close()
            await writer.wait_closed()
        await until(lambda: not made._open)
        await made.close()

    run(asyncio.wait_for(call(), 20))


async def test_whoever_is_being_accepted_when_it_closes_is_closed() -> None:
    for turns in range(6):
        made = Echoes()
        with socket.create_connection(("127.0.0.1", made.listen())):
            for _ in range(turns):
                await asyncio.sleep(0)
            await made.close()
    gc.collect()


async def test_without_files_to_spare_it_accepts_later(
    port: int, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE_SECONDS", 0.05)
    waiting = stack.enter_context(socket.socket())
    most, ever = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (most, ever))
    # A file's number is the lowest that is free.
    with socket.socket() as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), ever))
    waiting.connect(("127.0.0.1", port))
    await until(lambda: "cannot accept a connection: [Errno 24]" in caplog.text)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, ever))
    waiting.setblocking(False)
    async with asyncio.timeout(20):
        assert await asyncio.get_running_loop().sock_recv(waiting, 9)


async def test_a_port_that_is_taken(port: int) -> None:
    with pytest.raises(OSError, match="Address already in use"):
        Echoes().bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "localhost"])
async def test_hosts(echoes: Echoes, stack: AsyncExitStack, host: str) -> None:
    """All of IPv6 is all of IPv4, too."""
    client = await connected(stack, echoes.listen(host))
    client.call()
    assert await client.echoes()
