"""PeerService: what other nodes ask of this one."""

from __future__ import annotations

import logging
from functools import partial

from cacheservice.clock import Clock
from cacheservice.config import Settings
from cacheservice.errors import (
    CacheServiceError,
    ClusterIdMismatch,
    InternalError,
    InvalidArgument,
    NodeIdMismatch,
)
from cacheservice.node.node import MAX_HOPS, Node
from cacheservice.server import decode, encode, peer_codec
from cacheservice.server.gossip import Gossip
from cacheservice.server.guard import Admission, Context, guarded
from cacheservice.server.streams import Begun, Streams
from cacheservice.v1 import peer_pb2
from cacheservice.v1.peer_pb2_grpc import PeerServiceServicer
from cacheservice.wire import to_status

_log = logging.getLogger(__name__)


class PeerServicer(PeerServiceServicer):
    def __init__(
        self,
        node: Node,
        gossip: Gossip,
        clock: Clock,
        settings: Settings,
        admission: Admission,
        streams: Streams,
    ) -> None:
        self._node = node
        self._gossip = gossip
        self._clock = clock
        self._admission = admission
        self._streams = streams
        self._cluster_id = settings.cluster_id
        self._node_id = settings.node_id
        self._bounds = decode.Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = settings.max_message_bytes
        self._default_timeout_ms = round(settings.default_timeout_seconds * 1_000)

    @guarded
    async def Exchange(self, request: object, context: Context) -> None:  # type: ignore[override]
        await self._streams.serve(context, self._begin)

    @guarded
    async def Gossip(self, request: peer_pb2.GossipRequest, context: Context) -> peer_pb2.GossipResponse:
        response = self._gossip.receive(request)
        response.ring_epoch = self._node.ring_epoch
        return response

    def _begin(
        self, request: peer_pb2.PeerServiceExchangeRequest
    ) -> Begun[peer_pb2.PeerServiceExchangeResponse]:
        try:
            match request.WhichOneof("request"):
                case "forward":
                    return partial(self._forward, request)
                case "replicate":
                    response = peer_pb2.PeerServiceExchangeResponse(
                        replicate=self._replicate(request.replicate)
                    )
                case "fetch":
                    response = peer_pb2.PeerServiceExchangeResponse(fetch=self._fetch(request.fetch))
                case _:
                    raise InvalidArgument.of("request", "present", "none")
        except CacheServiceError as error:
            response = peer_pb2.PeerServiceExchangeResponse(error=to_status(error))
        except Exception:
            response = _defect()
        return self._addressed(request, response)

    async def _forward(
        self, request: peer_pb2.PeerServiceExchangeRequest
    ) -> peer_pb2.PeerServiceExchangeResponse:
        try:
            timeout_ms = request.timeout_ms or self._default_timeout_ms
            answers = await self._execute(request.forward, timeout_ms)
            response = peer_pb2.PeerServiceExchangeResponse(forward=answers)
        except CacheServiceError as error:
            response = peer_pb2.PeerServiceExchangeResponse(error=to_status(error))
        except Exception:
            response = _defect()
        return self._addressed(request, response)

    async def _execute(self, request: peer_pb2.ForwardRequest, timeout_ms: int) -> peer_pb2.ForwardResponse:
        self._check(request.header)
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

    def _replicate(self, request: peer_pb2.ReplicateRequest) -> peer_pb2.ReplicateResponse:
        self._check(request.header)
        decode.batch_size("entries", request.entries)
        return peer_pb2.ReplicateResponse(versions=map(self._merge, request.entries))

    def _fetch(self, request: peer_pb2.FetchRequest) -> peer_pb2.FetchResponse:
        self._check(request.header)
        decode.batch_size("keys", request.keys)
        now = self._clock.now_ms()
        response = peer_pb2.FetchResponse()
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
        if header.ring_epoch != self._node.ring_epoch:
            self._gossip.peer_differs(header.from_node)

    def _addressed(
        self, request: peer_pb2.PeerServiceExchangeRequest, response: peer_pb2.PeerServiceExchangeResponse
    ) -> peer_pb2.PeerServiceExchangeResponse:
        response.request_id = request.request_id
        response.ring_epoch = self._node.ring_epoch
        return response


def _defect() -> peer_pb2.PeerServiceExchangeResponse:
    _log.exception("defect in PeerService")
    return peer_pb2.PeerServiceExchangeResponse(
        error=to_status(InternalError("a defect in the node; its log has the details"))
    )
