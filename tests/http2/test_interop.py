"""Our client with grpcio's server, and grpcio's client with our server, in plaintext and over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cacheservice.certificates import Certificates, Tls
from cacheservice.connection import open_channel
from cacheservice.http2.client import ConnectFailed, Opener
from cacheservice.http2.client_stream import ClientStream, StreamFailed
from cacheservice.http2.statuses import CallStatus
from tests.certificates import NAME, Authority, server_credentials
from tests.http2.echo import MAX_MESSAGE_BYTES, METHOD, Echoes, Messages, opened, until

OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
]
SIZES = [0, 1, 16_379, 16_380, 65_535, 5_000_000, 0, 20_000_000]
DETAILS = b"\x08\x03\x12\x05hello"


class GrpcEcho(grpc.GenericRpcHandler):
    """Echoes messages, but for those that tell how the call is to end."""

    def __init__(self) -> None:
        self.ended = 0

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._echo)

    async def _echo(self, requests: Any, context: Any) -> None:
        await context.send_initial_metadata(())
        try:
            async for request in requests:
                if request == b"abort":
                    details = (("grpc-status-details-bin", DETAILS),)
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "100 % wrong: \u00e9\n", details)
                if request == b"end":
                    return
                await context.write(request)
        finally:
            self.ended += 1


class GrpcRefusal(grpc.GenericRpcHandler):
    """Ends each call before its first headers: so its last headers are the only ones."""

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")


Serve = Callable[..., Awaitable[tuple[grpc.aio.Server, str]]]


@pytest.fixture
def serve(stack: AsyncExitStack) -> Serve:
    """Starts grpcio's server."""

    async def start(
        handler: grpc.GenericRpcHandler, credentials: grpc.ServerCredentials | None = None
    ) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((handler,))
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        return server, f"127.0.0.1:{port}"

    return start


@pytest.fixture
def open_to(stack: AsyncExitStack) -> Callable[..., Awaitable[tuple[ClientStream, Messages]]]:
    """Opens a stream of our client's, which is closed in the end."""

    async def open_stream(*arguments: Any) -> tuple[ClientStream, Messages]:
        stream, messages = await opened(*arguments)
        stack.push_async_callback(stream.close)
        return stream, messages

    return open_stream


OpenTo = Callable[..., Awaitable[tuple[ClientStream, Messages]]]


def contents(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


async def failure(stream: ClientStream) -> CallStatus:
    with pytest.raises(StreamFailed) as caught:
        async with asyncio.timeout(20):
            await stream.finished()
    return caught.value.status


async def test_messages_of_all_sizes_come_back_from_grpcio(serve: Serve, open_to: OpenTo) -> None:
    _, target = await serve(GrpcEcho())
    stream, messages = await open_to(target)
    for size in SIZES:
        stream.send(contents(size))
    for size in SIZES:
        assert await messages.next() == contents(size)
    assert not stream.is_blocked


async def test_how_calls_end_at_grpcio(serve: Serve, open_to: OpenTo) -> None:
    _, target = await serve(GrpcEcho())
    stream, _ = await open_to(target)
    stream.send(b"abort")
    assert await failure(stream) == CallStatus(3, "100 % wrong: \u00e9\n", DETAILS)
    stream.send(b"nobody hears this")
    stream, messages = await open_to(target)
    stream.send(b"first")
    stream.send(b"end")
    async with asyncio.timeout(20):
        await stream.finished()
    assert await messages.next() == b"first"


async def test_last_headers_alone(serve: Serve, open_to: OpenTo) -> None:
    _, target = await serve(GrpcRefusal())
    stream, _ = await open_to(target)
    assert await failure(stream) == CallStatus(7, "not you")


async def test_a_method_that_grpcio_does_not_serve(open_to: OpenTo, serve: Serve) -> None:
    class Nothing(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return None

    _, target = await serve(Nothing())
    stream, _ = await open_to(target)
    assert (await failure(stream)).code == 12


@pytest.mark.parametrize("grace", [0, 1])
async def test_grpcio_shuts_down(serve: Serve, open_to: OpenTo, grace: int) -> None:
    server, target = await serve(GrpcEcho())
    stream, messages = await open_to(target)
    stream.send(b"x")
    await messages.next()
    stopping = asyncio.create_task(server.stop(grace))
    assert (await failure(stream)).code in (1, 14)
    await stopping


@pytest.mark.parametrize("by_close", [False, True])
async def test_grpcio_is_told_when_a_call_is_given_up(serve: Serve, open_to: OpenTo, by_close: bool) -> None:
    handler = GrpcEcho()
    _, target = await serve(handler)
    stream, messages = await open_to(target)
    stream.send(b"x")
    await messages.next()
    if by_close:
        await stream.close()
    else:
        stream.cancel()
    await until(lambda: handler.ended)
    assert (await failure(stream)).message == "the stream was closed"


async def test_who_does_not_read_blocks_who_sends(serve: Serve, open_to: OpenTo) -> None:
    class Deaf(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(self._wait)

        async def _wait(self, requests: Any, context: Any) -> None:
            await context.send_initial_metadata(())
            await hears.wait()
            await context.write(await context.read())
            while await context.read() != b"":
                pass

    hears = asyncio.Event()
    _, target = await serve(Deaf())
    stream, messages = await open_to(target)
    for _ in range(50):
        stream.send(bytes(1_000_000))
    assert stream.is_blocked
    stream.send(b"")
    hears.set()
    assert await messages.next() == bytes(1_000_000)
    async with asyncio.timeout(20):
        await stream.finished()


@pytest.fixture
async def echoes(stack: AsyncExitStack) -> Echoes:
    made = Echoes()
    stack.push_async_callback(made.close)
    return made


@pytest.fixture
async def channel(echoes: Echoes, stack: AsyncExitStack) -> grpc.aio.Channel:
    """Of grpcio's client to our server."""
    port = echoes.listen()
    return await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS))


def call_of(channel: grpc.aio.Channel, method: str = METHOD, **options: Any) -> Any:
    return channel.stream_stream(method)(**options)


async def test_messages_of_all_sizes_come_back_to_grpcio(channel: grpc.aio.Channel) -> None:
    call = call_of(channel)

    async def send() -> None:
        for size in SIZES:
            await call.write(contents(size))
        await call.done_writing()

    sending = asyncio.create_task(send())
    for size in SIZES:
        assert await call.read() == contents(size)
    assert await call.read() is grpc.aio.EOF
    await sending
    assert await call.code() is grpc.StatusCode.OK


async def test_calls_of_grpcio_side_by_side(channel: grpc.aio.Channel, echoes: Echoes) -> None:
    async def echo(number: int) -> bool:
        call = call_of(channel)
        await call.write(contents(number * 10_000))
        await call.done_writing()
        return [message async for message in call] == [contents(number * 10_000)]

    assert all(await asyncio.gather(*map(echo, range(50))))
    assert len(echoes._open) == 1
    await until(lambda: not any(each.connection.streams for each in echoes._open))


@pytest.mark.parametrize("ends", ["cancel", "deadline", "channel"])
async def test_grpcio_gives_up_a_call(channel: grpc.aio.Channel, echoes: Echoes, ends: str) -> None:
    call = call_of(channel, timeout=0.5 if ends == "deadline" else None)
    await call.write(b"x")
    assert await call.read() == b"x"
    if ends == "cancel":
        call.cancel()
    elif ends == "channel":
        await channel.close()
    await until(lambda: echoes.calls[0].ends)
    if ends == "deadline":
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_grpcio_calls_what_there_is_not(channel: grpc.aio.Channel) -> None:
    call = call_of(channel, "/test.Test/Other")
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert await call.details() == "there is no method /test.Test/Other"


async def test_messages_that_grpcio_compresses(echoes: Echoes) -> None:
    target = f"127.0.0.1:{echoes.listen()}"
    async with grpc.aio.insecure_channel(target, OPTIONS, compression=grpc.Compression.Gzip) as channel:
        await test_messages_of_all_sizes_come_back_to_grpcio(channel)
    async with grpc.aio.insecure_channel(target, compression=grpc.Compression.Deflate) as channel:
        assert await call_of(channel).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_grpcio_is_told_of_messages_that_are_too_long(echoes: Echoes) -> None:
    port = echoes.listen()
    unbounded = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=unbounded) as channel:
        call = call_of(channel)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(bytes(MAX_MESSAGE_BYTES + 1))
        async with asyncio.timeout(20):
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "67,108,865 bytes" in await call.details()


async def test_grpcio_is_told_that_we_go_away(channel: grpc.aio.Channel, echoes: Echoes) -> None:
    call = call_of(channel)
    await call.write(b"x")
    assert await call.read() == b"x"
    echoes.go_away()
    await call.write(b"y")
    assert await call.read() == b"y"
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    assert await call_of(channel).code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> Tls:
    return authority.issue(tmp_path / "node")


@pytest.fixture(params=["ours", "grpcio"])
async def encrypted(request: Any, serve: Serve, stack: AsyncExitStack, tls: Tls) -> str:
    """The address of a server that wants TLS and certificates."""
    certificates = Certificates(tls)
    if request.param == "grpcio":
        _, target = await serve(GrpcEcho(), server_credentials(certificates))
        return target
    made = Echoes(lambda: certificates.server_context(ask_clients=True))
    stack.push_async_callback(made.close)
    return f"127.0.0.1:{made.listen()}"


def opener(tls: Tls) -> Opener:
    certificates = Certificates(tls)
    return Opener(MAX_MESSAGE_BYTES, certificates.client_context, certificates.server_name)


@pytest.mark.parametrize("server_name", ["", NAME])
async def test_our_client_over_tls(encrypted: str, open_to: OpenTo, tls: Tls, server_name: str) -> None:
    stream, messages = await open_to(encrypted, opener(replace(tls, server_name=server_name)))
    for size in SIZES:
        stream.send(contents(size))
    for size in SIZES:
        assert await messages.next() == contents(size)


async def test_grpcio_s_client_over_tls(stack: AsyncExitStack, tls: Tls) -> None:
    certificates = Certificates(tls)
    made = Echoes(lambda: certificates.server_context(ask_clients=True))
    stack.push_async_callback(made.close)
    port = made.listen()
    channel = open_channel(f"127.0.0.1:{port}", OPTIONS, certificates.current())
    await test_messages_of_all_sizes_come_back_to_grpcio(await stack.enter_async_context(channel))


@pytest.mark.parametrize("wrong", ["name", "authority", "certificate", "no certificate", "plaintext"])
async def test_who_may_not_connect_over_tls(encrypted: str, tls: Tls, tmp_path: Path, wrong: str) -> None:
    stranger = Authority().issue(tmp_path / "stranger")
    openers = {
        "name": lambda: opener(replace(tls, server_name="other.test")),
        "authority": lambda: opener(replace(tls, ca=stranger.ca)),
        "certificate": lambda: opener(replace(tls, cert=stranger.cert, key=stranger.key)),
        "no certificate": lambda: opener(replace(tls, cert=None, key=None)),
        "plaintext": lambda: Opener(MAX_MESSAGE_BYTES),
    }
    with pytest.raises(ConnectFailed) as caught:
        await opened(encrypted, openers[wrong]())
    reasons = {"name": "Hostname mismatch", "authority": "CERTIFICATE_VERIFY_FAILED"}
    assert reasons.get(wrong, "") in str(caught.value)


@pytest.mark.parametrize("server", ["ours", "grpcio"])
async def test_tls_where_there_is_none(serve: Serve, stack: AsyncExitStack, tls: Tls, server: str) -> None:
    if server == "ours":
        made = Echoes()
        stack.push_async_callback(made.close)
        target = f"127.0.0.1:{made.listen()}"
    else:
        _, target = await serve(GrpcEcho())
    with pytest.raises(ConnectFailed):
        await opened(target, opener(tls))
