"""The node's transport over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc

from cacheservice.clock import Clock
from cacheservice.node.operations import Answer, Change, Operation
from cacheservice.node.transport import PeerUnreachable
from cacheservice.server import peer_codec
from cacheservice.server.channels import PeerChannels
from cacheservice.v1 import peer_pb2

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
        address = self._address(node_id)
        request = peer_pb2.ForwardRequest(
            header=self._header(node_id),
            hops_left=hops_left,
            unreachable=sorted(unreachable),
            operations=map(peer_codec.operation_to_proto, operations),
        )
        rpc = self._channels.stub(address).Forward
        response = await self._call(node_id, address, rpc, request, timeout_ms)
        return list(map(peer_codec.answer_from_proto, response.results))

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[bool]:
        address = self._address(node_id)
        now = self._clock.now_ms()
        request = peer_pb2.ReplicateRequest(
            header=self._header(node_id),
            entries=[peer_codec.change_to_proto(change, now) for change in changes],
        )
        rpc = self._channels.stub(address).Replicate
        response = await self._call(node_id, address, rpc, request, timeout_ms)
        return list(response.held)

    async def _call(
        self,
        node_id: str,
        address: str,
        rpc: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_ms: int,
    ) -> Response:
        was_connected = self._channels.is_connected(address)
        try:
            return await rpc(request, timeout=timeout_ms / 1_000)
        except grpc.aio.AioRpcError as error:
            raise self._unreachable(node_id, address, error, was_connected=was_connected) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this call: its channel was closed, because the peer left the ring.
            raise PeerUnreachable(node_id, "left the ring", maybe_done=True) from None

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

    def _unreachable(
        self, node_id: str, address: str, error: grpc.aio.AioRpcError, *, was_connected: bool
    ) -> PeerUnreachable:
        """A peer that answers for itself to be somebody else, or to be overloaded, has done nothing.

        Nor has one to which there was no connection before the call, and to which none came about.
        """
        refused = error.code() in (
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.UNIMPLEMENTED,
        )
        never_sent = (
            error.code() is grpc.StatusCode.UNAVAILABLE
            and not was_connected
            and not self._channels.is_connected(address)
        )
        why = f"{error.code().name} {error.details()}"
        return PeerUnreachable(node_id, why, maybe_done=not (refused or never_sent))
