"""What other nodes ask of this one on a stream: most of it is answered at once."""

from __future__ import annotations

from asyncio import create_task
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import chain, repeat
from typing import Any

from cacheservice.clock import Clock
from cacheservice.config import Settings
from cacheservice.errors import CacheServiceError, ClusterIdMismatch, InvalidArgument, NodeIdMismatch
from cacheservice.node.later import Later, then
from cacheservice.node.node import Node
from cacheservice.node.operations import Change
from cacheservice.server import copies, decode, peer_codec
from cacheservice.server.admission import Admission
from cacheservice.server.completion import Pending, completed, defect
from cacheservice.server.direct_stream import Begun
from cacheservice.server.gossip import Gossip
from cacheservice.server.owned import OwnedBatches
from cacheservice.v1 import cache_pb2, peer_pb2
from cacheservice.wire import to_status

MAX_COPY_OVERHEAD = 4 * 1024
"""What key, tags and framing take beside a value on its way to another node, at most."""

_Answer = peer_pb2.PeerServiceExchangeResponse
Slow = Callable[[peer_pb2.PeerServiceExchangeRequest], Coroutine[Any, Any, _Answer]]


class PeerRequests:
    """`begin` is what a stream calls for each request. `slow` does those kinds that wait for other nodes."""

    def __init__(
        self,
        node: Node,
        gossip: Gossip,
        clock: Clock,
        settings: Settings,
        admission: Admission,
        owned: OwnedBatches,
        slow: Mapping[str, Slow],
    ) -> None:
        self._node = node
        self._ring_epoch = node.standing.ring_epoch
        self._gossip = gossip
        self._clock = clock
        self._admission = admission
        self._owned = owned
        self._slow = slow
        self._cluster_id = settings.cluster_id
        self._node_id = settings.node_id
        self._bounds = decode.Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = int(settings.max_message_bytes)
        self._default_timeout_ms = round(settings.default_timeout_seconds * 1_000)

    def begin(self, request: peer_pb2.PeerServiceExchangeRequest) -> Begun:
        try:
            match request.WhichOneof("request"):
                case "replicate":
                    return self._addressed(request, _Answer(replicate=self._replicate(request.replicate)))
                case "owned":
                    return self._begin_owned(request)
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
                case "forward" | "invalidate" | "scan" as kind:
                    slow = Later[_Answer](create_task(self._slow[kind](request)))
                    return self._pending(request, slow)
                case _:
                    raise InvalidArgument.of("request", "present", "none")
        except CacheServiceError as error:
            return self._refused(request, error)
        except Exception:
            return self._refused(request, defect())
        return self._addressed(request, response)

    def check(self, header: peer_pb2.PeerHeader) -> None:
        if header.cluster_id != self._cluster_id:
            raise ClusterIdMismatch.of(self._cluster_id, header.cluster_id)
        if header.to_node != self._node_id:
            raise NodeIdMismatch.of(self._node_id, header.to_node)
        if header.ring_epoch != self._ring_epoch():
            self._gossip.peer_differs(header.from_node)

    def _begin_owned(self, request: peer_pb2.PeerServiceExchangeRequest) -> Begun:
        self.check(request.owned.header)
        self._admission.check_open()
        done = self._owned.begin(request.owned.batch, request.timeout_ms or self._default_timeout_ms)
        answer = then(done, _owned)
        if isinstance(answer, Later):
            return self._pending(request, answer)
        return self._addressed(request, answer)

    def _pending(self, request: peer_pb2.PeerServiceExchangeRequest, later: Later[_Answer]) -> Pending:
        answer, refused = partial(self._addressed, request), partial(self._refused, request)
        return Pending(later.future, partial(completed, later, answer, refused))

    def _replicate(self, request: peer_pb2.ReplicateRequest) -> peer_pb2.ReplicateResponse:
        self.check(request.header)
        header = request.header
        return peer_pb2.ReplicateResponse(
            versions=self._take(
                request.copies,
                lambda changes: self._node.intake.take_copies(changes, header.from_node, header.ring_epoch),
            )
        )

    def _held(self, request: peer_pb2.HeldRequest) -> peer_pb2.HeldResponse:
        self.check(request.header)
        decode.batch_size("keys", request.keys)
        return peer_pb2.HeldResponse(versions=map(self._node.shard.version, request.keys))

    def _hand_over(self, request: peer_pb2.HandOverRequest) -> peer_pb2.HandOverResponse:
        self.check(request.header)
        take_in = partial(self._node.intake.take_in, if_room=request.if_room)
        return peer_pb2.HandOverResponse(versions=self._take(request.copies, take_in))

    def _reading(self, request: peer_pb2.ReadingRequest) -> peer_pb2.ReadingResponse:
        self.check(request.header)
        return peer_pb2.ReadingResponse(version=self._node.shard.reading())

    def _fences(self, request: peer_pb2.FencesRequest) -> peer_pb2.FencesResponse:
        self.check(request.header)
        fences = map(peer_codec.fence_to_proto, self._node.shard.fences)
        return peer_pb2.FencesResponse(fences=fences)

    def _handed_over(self, request: peer_pb2.HandedOverRequest) -> peer_pb2.HandedOverResponse:
        self.check(request.header)
        header = request.header
        self._node.handed_over(header.from_node, header.ring_epoch, request.absences)
        return peer_pb2.HandedOverResponse()

    def _fetch(self, request: peer_pb2.FetchRequest) -> peer_pb2.FetchResponse:
        self.check(request.header)
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
        kept = [change for change in changes if change is not None]
        held = take(kept)
        if len(kept) == len(changes):
            return held
        versions = iter(held)
        return [0 if change is None else next(versions) for change in changes]

    def _addressed(
        self, request: peer_pb2.PeerServiceExchangeRequest, response: peer_pb2.PeerServiceExchangeResponse
    ) -> bytes:
        response.request_id = request.request_id
        response.ring_epoch = self._ring_epoch()
        return response.SerializeToString()

    def _refused(self, request: peer_pb2.PeerServiceExchangeRequest, error: CacheServiceError) -> bytes:
        return self._addressed(request, _Answer(error=to_status(error)))


def _owned(response: cache_pb2.ExchangeResponse) -> peer_pb2.PeerServiceExchangeResponse:
    return _Answer(owned=response)
