"""PeerService: what other nodes ask of this one; on streams by `requests`."""

from __future__ import annotations

from typing import Any

from cacheservice.clock import Clock
from cacheservice.config import Settings
from cacheservice.node.node import MAX_HOPS, Node
from cacheservice.node.own_batches import OwnBatches
from cacheservice.server import decode, encode, peer_codec
from cacheservice.server.admission import Admission
from cacheservice.server.cluster_scan import ClusterScan
from cacheservice.server.gossip import Gossip
from cacheservice.server.guard import Context
from cacheservice.server.owned import OwnedBatches
from cacheservice.server.peer_requests import PeerRequests
from cacheservice.v1 import peer_pb2
from cacheservice.v1.peer_pb2_grpc import PeerServiceServicer

_Answer = peer_pb2.PeerServiceExchangeResponse


class PeerServicer(PeerServiceServicer):
    def __init__(
        self,
        node: Node,
        gossip: Gossip,
        clock: Clock,
        settings: Settings,
        admission: Admission,
        cluster_scan: ClusterScan,
    ) -> None:
        self._cluster_scan = cluster_scan
        self._node = node
        self._gossip = gossip
        self._admission = admission
        self._bounds = decode.Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = settings.max_message_bytes
        self._default_timeout_ms = round(settings.default_timeout_seconds * 1_000)
        slow = {"forward": self._forward, "invalidate": self._invalidate, "scan": self._scan}
        owned = OwnedBatches(OwnBatches(node), settings)
        self.requests = PeerRequests(node, gossip, clock, settings, admission, owned, slow)

    Exchange: Any = None
    """Streams are served by `Streams`, with less between the socket and what is done."""

    async def Gossip(self, request: peer_pb2.GossipRequest, context: Context) -> peer_pb2.GossipResponse:
        response = self._gossip.receive(request)
        response.ring_epoch = self._node.ring_epoch
        return response

    async def _forward(self, request: peer_pb2.PeerServiceExchangeRequest) -> _Answer:
        timeout_ms = request.timeout_ms or self._default_timeout_ms
        return _Answer(forward=await self._execute(request.forward, timeout_ms))

    async def _invalidate(self, request: peer_pb2.PeerServiceExchangeRequest) -> _Answer:
        self.requests.check(request.invalidate.header)
        decode.batch_size("fences", request.invalidate.fences)
        fences = list(map(peer_codec.fence_from_proto, request.invalidate.fences))
        removed = await self._node.invalidations.take(fences)
        return _Answer(invalidate=peer_pb2.InvalidateResponse(removed=removed))

    async def _scan(self, request: peer_pb2.PeerServiceExchangeRequest) -> _Answer:
        self.requests.check(request.scan.header)
        page = await self._cluster_scan.page_here(request.scan.scan, frozenset(request.scan.unreachable))
        return _Answer(scan=page)

    async def _execute(self, request: peer_pb2.ForwardRequest, timeout_ms: int) -> peer_pb2.ForwardResponse:
        self.requests.check(request.header)
        self._admission.check_open()
        decode.batch_size("operations", request.operations)
        batch = decode.Decoded(request.operations, lambda item: decode.operation(item, self._bounds))
        answers = await self._node.execute(
            batch.operations,
            timeout_ms=timeout_ms,
            hops_left=min(request.hops_left, MAX_HOPS - 1),
            unreachable=frozenset(request.unreachable),
        )
        answers = encode.within(batch.with_refusals(answers), self._max_answer_bytes)
        return peer_pb2.ForwardResponse(results=map(encode.operation_result, answers))
