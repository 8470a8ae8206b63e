"""One gRPC channel for each address of a peer, and the streams over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cacheservice.certificates import Certificates
from cacheservice.connection import CLOSE_GRACE_SECONDS, Connection, open_channel, stream_opener
from cacheservice.http2.client_stream import ClientStream
from cacheservice.server.peer_stream import PeerStream
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.peer_pb2_grpc import PeerServiceStub
from cacheservice.wire import PEER_EXCHANGE

if TYPE_CHECKING:
    import grpc

    from cacheservice.v1.cache_pb2_grpc import CacheServiceAsyncStub
    from cacheservice.v1.peer_pb2_grpc import PeerServiceAsyncStub

_RECONNECT_MS = 100
_MAX_RECONNECT_MS = 500
_CONNECT_TIMEOUT_MS = 1_000
_KEEPALIVE_MS = 10_000
_PING_TIMEOUT_MS = 5_000


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options of every channel: message bounds, and quick returns to a peer that restarted."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
        # Despite its name this bounds the time that one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        # Without this one the pings of a peer that hangs are waited for a minute.
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]


class PeerStubs(NamedTuple):
    """Of the services that peers call."""

    peer: PeerServiceAsyncStub
    cache: CacheServiceAsyncStub


class PeerChannels:
    """Channels by address, opened at first use; `retain` closes those that nobody needs any longer."""

    def __init__(self, max_message_bytes: int, certificates: Certificates | None = None) -> None:
        self._opener = stream_opener(max_message_bytes, certificates)
        self._options = channel_options(max_message_bytes)
        self._certificates = certificates
        self._open: dict[str, Connection[PeerStubs]] = {}
        self._streams: dict[str, dict[str, PeerStream]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def gossip_stub(
        self, address: str, *, keep: bool, host: str = ""
    ) -> AsyncIterator[PeerServiceAsyncStub]:
        """For one message; unless `keep`, over a channel of its own, which does not go on connecting.

        That one's certificate is to have the name `host`, if it is given, instead of that of the address.
        """
        if keep or address in self._open:
            yield self._get(address).stubs.peer
            return
        given = self._certificates
        pems, name = (given.current(), given.server_name or host) if given else (None, "")
        async with open_channel(address, self._options, pems, name) as channel:
            yield PeerServiceStub(channel)

    def stream(self, address: str, purpose: str) -> PeerStream:
        streams = self._streams.setdefault(address, {})
        found = streams.get(purpose)
        if found is None:
            found = streams[purpose] = PeerStream(partial(self._open_stream, address))
        return found

    def cache_stub(self, address: str) -> CacheServiceAsyncStub:
        """For what the peer also does for clients."""
        return self._get(address).stubs.cache

    async def connects(self, address: str, seconds: float) -> bool:
        """Whether there is a connection to `address`, or comes about in time."""
        return await self._get(address).connects(seconds)

    def retain(self, addresses: Collection[str]) -> None:
        """Closes the channels to all other addresses, and the streams over them; calls under way get a moment
        to finish, because what is cut off would be done again elsewhere."""
        for address in (self._open.keys() | self._streams.keys()).difference(addresses):
            task = asyncio.create_task(
                _close(self._open.pop(address, None), self._streams.pop(address, {}).values())
            )
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self.retain(())
        await asyncio.gather(*self._closing)

    def _open_stream(
        self, address: str, on_message: Callable[[bytes], None], on_writable: Callable[[], None]
    ) -> Awaitable[ClientStream]:
        return self._opener.open(address, PEER_EXCHANGE, on_message, on_writable, _CONNECT_TIMEOUT_MS / 1_000)

    def _get(self, address: str) -> Connection[PeerStubs]:
        found = self._open.get(address)
        if found is None:
            found = self._open[address] = Connection(address, self._options, self._certificates, _stubs)
        return found


def _stubs(channel: grpc.aio.Channel) -> PeerStubs:
    return PeerStubs(PeerServiceStub(channel), CacheServiceStub(channel))


async def _close(connection: Connection[PeerStubs] | None, streams: Iterable[PeerStream]) -> None:
    closing = [stream.finish(CLOSE_GRACE_SECONDS) for stream in streams]
    if connection is not None:
        closing.append(connection.close(CLOSE_GRACE_SECONDS))
    await asyncio.gather(*closing)
