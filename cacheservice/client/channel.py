"""One node's stubs over one channel."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import grpc

from cacheservice.certificates import Certificates
from cacheservice.connection import Connection, stream_opener
from cacheservice.errors import Unavailable
from cacheservice.handshake import explained
from cacheservice.http2.client import ConnectFailed
from cacheservice.http2.client_stream import ClientStream
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2 import DescribeRequest
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.wire import EXCHANGE, from_rpc_error, was_cancelled_here

if TYPE_CHECKING:
    from cacheservice.v1.admin_pb2_grpc import AdminServiceAsyncStub
    from cacheservice.v1.cache_pb2_grpc import CacheServiceAsyncStub
    from cacheservice.v1.cluster_pb2_grpc import ClusterServiceAsyncStub

MAX_MESSAGE_BYTES = 1024 * 1024 * 1024

_KEEPALIVE_MS = 10_000
_PING_TIMEOUT_MS = 5_000
_QUESTION_SECONDS = 0.1

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.use_local_subchannel_pool", 1),
]


class Stubs(NamedTuple):
    """Of the services that clients call."""

    cache: CacheServiceAsyncStub
    cluster: ClusterServiceAsyncStub
    admin: AdminServiceAsyncStub


class NodeStubs:
    """The stubs of one node's services."""

    def __init__(self, address: str, certificates: Certificates | None = None) -> None:
        self._address = address
        self._opener = stream_opener(MAX_MESSAGE_BYTES, certificates)
        self._connection = Connection(address, _OPTIONS, certificates, _stubs)
        self.trouble = ""
        """Why there was no connection when one was last asked for, as far as gRPC tells."""

    @property
    def cache(self) -> CacheServiceAsyncStub:
        return self._connection.stubs.cache

    @property
    def cluster(self) -> ClusterServiceAsyncStub:
        return self._connection.stubs.cluster

    @property
    def admin(self) -> AdminServiceAsyncStub:
        return self._connection.stubs.admin

    async def exchange(
        self, on_message: Callable[[bytes], None], on_writable: Callable[[], None], seconds: float
    ) -> ClientStream:
        """An Exchange stream, over a connection of its own. Unavailable when none comes about in time."""
        try:
            stream = await self._opener.open(self._address, EXCHANGE, on_message, on_writable, seconds)
        except ConnectFailed as error:
            self.trouble = explained(str(error))
            raise Unavailable(f"no connection to {self._address}") from None
        self.trouble = ""
        return stream

    async def connects(self, seconds: float) -> bool:
        """Whether there is a connection, or comes about in time."""
        is_connected = await self._connection.connects(seconds)
        self.trouble = "" if is_connected else await self._why_not()
        return is_connected

    async def close(self, grace: float | None = None) -> None:
        await self._connection.close(grace)

    async def _why_not(self) -> str:
        """Only a call can tell; where the last attempt has failed, it fails at once."""
        if self._connection.has_failed:
            try:
                await self.cluster.Describe(DescribeRequest(), timeout=_QUESTION_SECONDS)
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error).message
            except asyncio.CancelledError:
                if was_cancelled_here():
                    raise
        return ""


def _stubs(channel: grpc.aio.Channel) -> Stubs:
    return Stubs(CacheServiceStub(channel), ClusterServiceStub(channel), AdminServiceStub(channel))


class Backoff:
    """Pauses between attempts, in seconds: each up to twice as long as the one before, at random."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._bound = first

    def next(self) -> float:
        pause = random.uniform(self._bound / 2, self._bound)
        self._bound = min(self._longest, self._bound * 2)
        return pause

    def reset(self) -> None:
        self._bound = self._first
