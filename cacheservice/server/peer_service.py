"""PeerService: what other nodes ask of this one."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain, repeat

from cacheservice.clock import Clock
from cacheservice.config import Settings
from cacheservice.errors import (
    CacheServiceError,
    ClusterIdMismatch,
    InternalError,
    InvalidArgument,
    NodeIdMismatch,
)
from cacheservice.node.batches import Batches
from cacheservice.node.node import MAX_HOPS, Node
from cacheservice.node.operations import Change
from cacheservice.server import copies, decode, encode, peer_codec
from cacheservice.server.cluster_scan import ClusterScan
from cacheservice.server.direct_stream import Begun
from cacheservice.server.gossip import Gossip
from cacheservice.server.guard import Admission, Context, guarded
from cacheservice.server.owned import OwnedBatches
from cacheservice.server.streams import Streams
from cacheservice.v1 import cache_pb2, peer_pb2
from cacheservice.v1.peer_pb2_grpc import PeerServiceServicer
from cacheservice.wire import to_status

_log = logging.getLogger(__name__)

MAX_COPY_OVERHEAD = 4 * 1024
"""What key, tags and framing take beside a value on its way to another node, at most."""

_Answer = peer_pb2.PeerServiceExchangeResponse


class PeerServicer(PeerServiceServicer):
    def __init__(
        self,
        node: Node,
        gossip: Gossip,
        clock: Clock,
        settings: Settings,
        admission: Admission,
        streams: Streams,
        cluster_scan: ClusterScan,
    ) -> None:
        self._cluster_scan = cluster_scan
        self._owned = OwnedBatches(Batches(node), settings)
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
        self._slow = {"forward": self._forward, "invalidate": self._invalidate, "scan": self._scan}

    @guarded
    async def Exchange(self, request: object, context: Context) -> None:  # type: ignore[override]
        await self._streams.serve(context, self.begin)

    @guarded
    async def Gossip(self, request: peer_pb2.GossipRequest, context: Context) -> peer_pb2.GossipResponse:
        response = self._gossip.receive(request)
        response.ring_epoch = self._node.ring_epoch
        return response

    def begin(self, request: peer_pb2.PeerServiceExchangeRequest) -> Begun[bytes]:
        kind = request.WhichOneof("request")
        slow = self._slow.get(kind or "")
        if slow is not None:
            return partial(self._answer_later, request, slow)
        try:
            match kind:
                case "owned":
                    owned = self._begin_owned(request)
                    if callable(owned):
                        return partial(self._answer_later, request, owned)
                    response = owned
                case "replicate":
                    response = _Answer(replicate=self._replicate(request.replicate))
                case "fetch":
                    response = _Answer(fetch=self._fetch(request.fetch))
                case "held":
                    response = _Answer(held=self._held(request.held))
                case "hand_over":
                    response = _Answer(hand_over=self._hand_over(request.hand_over))
                case "handed_over":
                    response = _Answer(handed_over=self._handed_over(request.handed_over))
                case "reading":
                    response = _Answer(reading=self._reading(request.reading))
                case "fences":
                    response = _Answer(fences=self._fences(request.fences))
                case _:
                    raise InvalidArgument.of("request", "present", "none")
        except CacheServiceError as error:
            response = _Answer(error=to_status(error))
        except Exception:
            response = _defect()
        return self._addressed(request, response)

    async def _answer_later(
        self,
        request: peer_pb2.PeerServiceExchangeRequest,
        work: Callable[[peer_pb2.PeerServiceExchangeRequest], Awaitable[_Answer]],
    ) -> bytes:
        try:
            response = await work(request)
        except CacheServiceError as error:
            response = _Answer(error=to_status(error))
        except Exception:
            response = _defect()
        return self._addressed(request, response)

    def _begin_owned(
        self, request: peer_pb2.PeerServiceExchangeRequest
    ) -> _Answer | Callable[[object], Awaitable[_Answer]]:
        self._check(request.owned.header)
        self._admission.check_open()
        done = self._owned.begin(request.owned.batch, request.timeout_ms or self._default_timeout_ms)
        if isinstance(done, cache_pb2.ExchangeResponse):
            return _Answer(owned=done)

        async def answer(_: object) -> _Answer:
            return _Answer(owned=await done())

        return answer

    async def _forward(self, request: peer_pb2.PeerServiceExchangeRequest) -> _Answer:
        timeout_ms = request.timeout_ms or self._default_timeout_ms
        return _Answer(forward=await self._execute(request.forward, timeout_ms))

    async def _invalidate(self, request: peer_pb2.PeerServiceExchangeRequest) -> _Answer:
        self._check(request.invalidate.header)
        decode.batch_size("fences", request.invalidate.fences)
        fences = list(map(peer_codec.fence_from_proto, request.invalidate.fences))
        removed = await self._node.invalidations.take(fences)
        return _Answer(invalidate=peer_pb2.InvalidateResponse(removed=removed))

    async def _scan(self, request: peer_pb2.PeerServiceExchangeRequest) -> _Answer:
        self._check(request.scan.header)
        page = await self._cluster_scan.page_here(request.scan.scan, frozenset(request.scan.unreachable))
        return _Answer(scan=page)

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
        header = request.header
        return peer_pb2.ReplicateResponse(
            versions=self._take(
                request.copies,
                lambda changes: self._node.owner.take_copies(changes, header.from_node, header.ring_epoch),
            )
        )

    def _held(self, request: peer_pb2.HeldRequest) -> peer_pb2.HeldResponse:
        self._check(request.header)
        decode.batch_size("keys", request.keys)
        return peer_pb2.HeldResponse(versions=map(self._node.shard.version, request.keys))

    def _hand_over(self, request: peer_pb2.HandOverRequest) -> peer_pb2.HandOverResponse:
        self._check(request.header)
        take_in = partial(self._node.owner.take_in, if_room=request.if_room)
        return peer_pb2.HandOverResponse(versions=self._take(request.copies, take_in))

    def _reading(self, request: peer_pb2.ReadingRequest) -> peer_pb2.ReadingResponse:
        self._check(request.header)
        return peer_pb2.ReadingResponse(version=self._node.shard.reading())

    def _fences(self, request: peer_pb2.FencesRequest) -> peer_pb2.FencesResponse:
        self._check(request.header)
        fences = map(peer_codec.fence_to_proto, self._node.shard.fences)
        return peer_pb2.FencesResponse(fences=fences)

    def _handed_over(self, request: peer_pb2.HandedOverRequest) -> peer_pb2.HandedOverResponse:
        self._check(request.header)
        header = request.header
        self._node.handed_over(header.from_node, header.ring_epoch, request.absences)
        return peer_pb2.HandedOverResponse()

    def _fetch(self, request: peer_pb2.FetchRequest) -> peer_pb2.FetchResponse:
        self._check(request.header)
        decode.batch_size("keys", request.keys)
        found: list[Change] = []
        left = int(self._max_answer_bytes)
        for change, known in zip(
            map(self._node.shard.change, request.keys), chain(request.known_versions, repeat(0)), strict=False
        ):
            if change is None or change.version <= known:
                continue
            left -= MAX_COPY_OVERHEAD + (len(change.entry.value) if change.entry else 0)
            if left < 0:
                break
            found.append(change)
        response = peer_pb2.FetchResponse()
        copies.fill(response.copies, found, self._clock.now_ms())
        return response

    def _take(self, sent: peer_pb2.Copies, take: Callable[[list[Change]], list[int]]) -> list[int]:
        """The version held afterwards of each; 0 for one that no node within its bounds would have sent."""
        decode.batch_size("copies", range(copies.size_of(sent)))
        changes = copies.from_proto(sent, self._clock.now_ms(), self._bounds)
        versions = iter(take([change for change in changes if change is not None]))
        return [0 if change is None else next(versions) for change in changes]

    def _check(self, header: peer_pb2.PeerHeader) -> None:
        if header.cluster_id != self._cluster_id:
            raise ClusterIdMismatch.of(self._cluster_id, header.cluster_id)
        if header.to_node != self._node_id:
            raise NodeIdMismatch.of(self._node_id, header.to_node)
        if header.ring_epoch != self._node.ring_epoch:
            self._gossip.peer_differs(header.from_node)

    def _addressed(
        self, request: peer_pb2.PeerServiceExchangeRequest, response: peer_pb2.PeerServiceExchangeResponse
    ) -> bytes:
        response.request_id = request.request_id
        response.ring_epoch = self._node.ring_epoch
        return response.SerializeToString()


def _defect() -> _Answer:
    _log.exception("defect in PeerService")
    return _Answer(error=to_status(InternalError("a defect in the node; its log has the details")))
