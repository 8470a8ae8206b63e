"""The node's transport over gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import grpc

from cacheservice.clock import Clock
from cacheservice.errors import (
    CacheServiceError,
    ClusterIdMismatch,
    DeadlineExceeded,
    NodeIdMismatch,
    NotReady,
    Unavailable,
)
from cacheservice.node.operations import Answer, Change, Operation
from cacheservice.node.transport import PeerUnreachable
from cacheservice.server import peer_codec
from cacheservice.server.channels import PeerChannels
from cacheservice.v1 import peer_pb2
from cacheservice.wire import from_rpc_error, was_cancelled_here

if TYPE_CHECKING:
    from cacheservice.v1.peer_pb2_grpc import PeerServiceAsyncStub

_log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")


class GrpcTransport:
    """Requests to peers at the addresses that gossip knows for them."""

    def __init__(
        self,
        cluster_id: str,
        node_id: str,
        channels: PeerChannels,
        clock: Clock,
        ring_epoch: Callable[[], int],
    ) -> None:
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._channels = channels
        self._clock = clock
        self._ring_epoch = ring_epoch
        self._addresses: dict[str, str] = {}

    def set_addresses(self, addresses: dict[str, str]) -> None:
        """Takes over the members' addresses by node id."""
        self._addresses = addresses

    async def forward(
        self,
        node_id: str,
        operations: Sequence[Operation],
        *,
        hops_left: int,
        unreachable: frozenset[str],
        timeout_ms: int,
    ) -> list[Answer]:
        request = peer_pb2.ForwardRequest(
            header=self._header(node_id),
            hops_left=hops_left,
            unreachable=sorted(unreachable),
            operations=map(peer_codec.operation_to_proto, operations),
        )
        try:
            response = await self._call(node_id, lambda stub: stub.Forward, request, timeout_ms)
        except CacheServiceError as error:
            return [error] * len(operations)
        return list(map(peer_codec.answer_from_proto, response.results))

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[int]:
        now = self._clock.now_ms()
        request = peer_pb2.ReplicateRequest(
            header=self._header(node_id),
            entries=[peer_codec.change_to_proto(change, now) for change in changes],
        )
        try:
            response = await self._call(node_id, lambda stub: stub.Replicate, request, timeout_ms)
        except CacheServiceError as error:
            _log.warning("%s keeps no copies: %s", node_id, error)
            return [0] * len(changes)
        return list(response.versions)

    async def fetch(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[Change]:
        request = peer_pb2.FetchRequest(header=self._header(node_id), keys=keys)
        try:
            response = await self._call(node_id, lambda stub: stub.Fetch, request, timeout_ms)
        except CacheServiceError as error:
            _log.warning("%s gives no copies: %s", node_id, error)
            return []
        now = self._clock.now_ms()
        return [peer_codec.change_from_proto(entry, now) for entry in response.entries]

    async def _call(
        self,
        node_id: str,
        rpc: Callable[[PeerServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        timeout_ms: int,
    ) -> Response:
        """The peer's response. PeerUnreachable when it gave none; else the error that it answered with."""
        address = self._address(node_id)
        deadline = self._clock.now_ms() + timeout_ms
        if not await self._channels.connects(address, timeout_ms / 1_000):
            raise PeerUnreachable(node_id, f"no connection to {address}", maybe_done=False)
        left_ms = max(1, deadline - self._clock.now_ms())
        try:
            return await rpc(self._channels.stub(address))(request, timeout=left_ms / 1_000)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
        except asyncio.CancelledError:
            if was_cancelled_here():
                raise
            raise PeerUnreachable(node_id, "left the ring", maybe_done=True) from None
        if isinstance(error, NotReady | ClusterIdMismatch | NodeIdMismatch):
            raise PeerUnreachable(node_id, error.message, maybe_done=False) from None
        if isinstance(error, Unavailable | DeadlineExceeded):
            raise PeerUnreachable(node_id, error.message, maybe_done=True) from None
        raise error

    def _address(self, node_id: str) -> str:
        address = self._addresses.get(node_id)
        if address is None:
            raise PeerUnreachable(node_id, "has no known address", maybe_done=False)
        return address

    def _header(self, node_id: str) -> peer_pb2.PeerHeader:
        return peer_pb2.PeerHeader(
            cluster_id=self._cluster_id,
            from_node=self._node_id,
            to_node=node_id,
            ring_epoch=self._ring_epoch(),
        )
