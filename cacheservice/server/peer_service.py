"""PeerService: what other nodes ask of this one."""

from __future__ import annotations

import logging

from cacheservice.clock import Clock
from cacheservice.config import Settings
from cacheservice.errors import ClusterIdMismatch, InvalidArgument, NodeIdMismatch
from cacheservice.node.node import MAX_HOPS, Node
from cacheservice.server import decode, encode, peer_codec
from cacheservice.server.gossip import Gossip
from cacheservice.server.guard import Admission, Context, guarded, time_left_ms
from cacheservice.v1 import peer_pb2
from cacheservice.v1.peer_pb2_grpc import PeerServiceServicer

_log = logging.getLogger(__name__)


class PeerServicer(PeerServiceServicer):
    def __init__(
        self, node: Node, gossip: Gossip, clock: Clock, settings: Settings, admission: Admission
    ) -> None:
        self._node = node
        self._gossip = gossip
        self._clock = clock
        self._admission = admission
        self._cluster_id = settings.cluster_id
        self._node_id = settings.node_id
        self._bounds = decode.Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = settings.max_message_bytes
        self._default_timeout_ms = round(settings.default_timeout_seconds * 1_000)

    @guarded
    async def Forward(self, request: peer_pb2.ForwardRequest, context: Context) -> peer_pb2.ForwardResponse:
        self._check(request.header)
        self._admission.check_open()
        decode.batch_size("operations", request.operations)
        batch = decode.Decoded(request.operations, lambda item: decode.operation(item, self._bounds))
        answers = await self._node.execute(
            batch.operations,
            timeout_ms=time_left_ms(context, self._default_timeout_ms),
            hops_left=min(request.hops_left, MAX_HOPS - 1),
            unreachable=frozenset(request.unreachable),
        )
        answers = encode.within(batch.with_refusals(answers), self._max_answer_bytes)
        return peer_pb2.ForwardResponse(
            results=map(encode.operation_result, answers), ring_epoch=self._node.ring_epoch
        )

    @guarded
    async def Replicate(
        self, request: peer_pb2.ReplicateRequest, context: Context
    ) -> peer_pb2.ReplicateResponse:
        self._check(request.header)
        decode.batch_size("entries", request.entries)
        return peer_pb2.ReplicateResponse(
            versions=map(self._merge, request.entries), ring_epoch=self._node.ring_epoch
        )

    @guarded
    async def Fetch(self, request: peer_pb2.FetchRequest, context: Context) -> peer_pb2.FetchResponse:
        self._check(request.header)
        decode.batch_size("keys", request.keys)
        now = self._clock.now_ms()
        response = peer_pb2.FetchResponse(ring_epoch=self._node.ring_epoch)
        left = int(self._max_answer_bytes)
        for change in map(self._node.shard.change, request.keys):
            if change is None:
                continue
            entry = peer_codec.change_to_proto(change, now)
            left -= entry.ByteSize()
            if left < 0:
                break
            response.entries.append(entry)
        return response

    @guarded
    async def Gossip(self, request: peer_pb2.GossipRequest, context: Context) -> peer_pb2.GossipResponse:
        response = self._gossip.receive(request)
        response.ring_epoch = self._node.ring_epoch
        return response

    def _merge(self, entry: peer_pb2.ReplicaEntry) -> int:
        """The version held afterwards; 0 for an entry that no node within its bounds would have sent."""
        try:
            decode.replica(entry, self._bounds)
        except InvalidArgument as error:
            _log.warning("a copy was refused: %s", error)
            return 0
        return self._node.shard.merge(peer_codec.change_from_proto(entry, self._clock.now_ms()))

    def _check(self, header: peer_pb2.PeerHeader) -> None:
        if header.cluster_id != self._cluster_id:
            raise ClusterIdMismatch.of(self._cluster_id, header.cluster_id)
        if header.to_node != self._node_id:
            raise NodeIdMismatch.of(self._node_id, header.to_node)
