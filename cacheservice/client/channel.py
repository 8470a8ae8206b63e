"""One node's stubs over one channel."""

from __future__ import annotations

import random

import grpc

from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.wire import connects

MAX_MESSAGE_BYTES = 1024 * 1024 * 1024

_KEEPALIVE_MS = 10_000
_PING_TIMEOUT_MS = 5_000

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


class NodeStubs:
    """The stubs of one node's services."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.cache = CacheServiceStub(self._channel)
        self.cluster = ClusterServiceStub(self._channel)
        self.admin = AdminServiceStub(self._channel)

    async def connects(self, seconds: float) -> bool:
        """Whether there is a connection, or comes about in time."""
        return await connects(self._channel, seconds)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)


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
