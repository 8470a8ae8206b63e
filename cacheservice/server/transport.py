"""The node's transport over gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

from cacheservice.clock import Clock
from cacheservice.errors import AnswerTooLarge, CacheServiceError
from cacheservice.node.columns import Reads, Row, Writes
from cacheservice.node.fences import Fence
from cacheservice.node.operations import Answer, Change, Operation
from cacheservice.node.transport import PeerUnreachable
from cacheservice.server import column_codec, copies, peer_codec
from cacheservice.server.channels import PeerChannels
from cacheservice.server.copy_questions import CopyQuestions
from cacheservice.server.decode import Bounds
from cacheservice.server.peer_header import PeerHeaders
from cacheservice.server.questions import Question, StreamEnded, unreachable
from cacheservice.v1 import cache_pb2, peer_pb2

_log = logging.getLogger(__name__)

_NO_ADDRESS = "has no known address"
FORWARDS = "forwards"
COPIES = "copies"
HANDOFF = "handoff"
"""Purposes of streams. What is handed over can wait, and nothing should wait for it. Forwards wait for
copies, and so must not stand before them: two nodes that forward to each other would each wait for the other
to read on."""


class GrpcTransport:
    """Requests to peers at the addresses that gossip knows for them."""

    def __init__(
        self,
        cluster_id: str,
        node_id: str,
        channels: PeerChannels,
        clock: Clock,
        ring_epoch: Callable[[], int],
        bounds: Bounds,
    ) -> None:
        self._bounds = bounds
        self._channels = channels
        self._clock = clock
        self._addresses: dict[str, str] = {}
        self._headers = PeerHeaders(cluster_id, node_id, ring_epoch)
        self._copy_questions = CopyQuestions(self._headers, clock)

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
        def to_request(rows: list[peer_pb2.Operation]) -> peer_pb2.PeerServiceExchangeRequest:
            forward = peer_pb2.ForwardRequest(
                header=self._headers.to(node_id), hops_left=hops_left, unreachable=tried, operations=rows
            )
            return peer_pb2.PeerServiceExchangeRequest(forward=forward)

        tried = sorted(unreachable)
        rows = list(map(peer_codec.operation_to_proto, operations))
        size = sum(len(row.set.value) for row in rows)
        deadline = self._clock.now_ms() + timeout_ms
        question = Question(f"forward {hops_left} {tried}", rows, size, timeout_ms, to_request, _forward_rows)
        try:
            results = await self._ask(node_id, FORWARDS, question)
            answers = list(map(peer_codec.answer_from_proto, results))
            cut = [row for row, answer in enumerate(answers) if isinstance(answer, AnswerTooLarge)]
            if cut:
                # It may be for others' values that these had no room.
                left_ms = max(1, deadline - self._clock.now_ms())
                alone = Question("", [rows[row] for row in cut], 0, left_ms, to_request, _forward_rows)
                for row, result in zip(cut, await self._ask(node_id, FORWARDS, alone), strict=True):
                    answers[row] = peer_codec.answer_from_proto(result)
        except CacheServiceError as error:
            return [error] * len(operations)
        return answers

    async def read(
        self, node_id: str, keys: Sequence[str], *, values_only: bool, timeout_ms: int
    ) -> Reads | None:
        def to_request(rows: list[str]) -> peer_pb2.PeerServiceExchangeRequest:
            columns = cache_pb2.GetColumns(keys=rows, values_only=values_only)
            return self._owned(node_id, cache_pb2.ExchangeRequest(get=columns))

        kind = f"read {values_only}"
        question = Question(kind, list(keys), 0, timeout_ms, to_request, column_codec.read_rows)
        try:
            rows = await self._ask(node_id, FORWARDS, question)
        except CacheServiceError:
            return None
        return column_codec.reads_of(rows, values_only=values_only) if rows else None

    async def write(self, node_id: str, rows: Sequence[Row], *, timeout_ms: int) -> Writes | None:
        def to_request(rows: list[Row]) -> peer_pb2.PeerServiceExchangeRequest:
            keys, values, ttl_ms, stale_ms = zip(*rows, strict=True)
            columns = cache_pb2.SetColumns(keys=keys, values=values, ttl_ms=ttl_ms, stale_ms=stale_ms)
            return self._owned(node_id, cache_pb2.ExchangeRequest(set=columns))

        size = sum(len(row[1]) for row in rows)
        question = Question("write", list(rows), size, timeout_ms, to_request, column_codec.written_rows)
        try:
            written = await self._ask(node_id, FORWARDS, question)
        except CacheServiceError:
            return None
        return column_codec.writes_of(written) if written else None

    def _owned(self, node_id: str, batch: cache_pb2.ExchangeRequest) -> peer_pb2.PeerServiceExchangeRequest:
        request = peer_pb2.OwnedRequest(header=self._headers.to(node_id), batch=batch)
        return peer_pb2.PeerServiceExchangeRequest(owned=request)

    def replicate(
        self, node_id: str, changes: Sequence[Change], *, timeout_ms: int
    ) -> asyncio.Future[list[int]]:
        question = self._copy_questions.of(node_id, changes, timeout_ms)
        address = self._addresses.get(node_id)
        if address is None:
            question.fail(StreamEnded(_NO_ADDRESS, was_sent=False))
            return question.answer
        return self._channels.stream(address, COPIES).ask(question)

    async def fetch(
        self, node_id: str, keys: Sequence[str], versions: Sequence[int], *, timeout_ms: int
    ) -> list[Change]:
        def to_request(rows: list[str]) -> peer_pb2.PeerServiceExchangeRequest:
            return peer_pb2.PeerServiceExchangeRequest(
                fetch=peer_pb2.FetchRequest(
                    header=self._headers.to(node_id), keys=rows, known_versions=versions
                )
            )

        question = Question("", list(keys), 0, timeout_ms, to_request, _fetch_rows)
        try:
            [found] = await self._ask(node_id, COPIES, question)
            changes = copies.from_proto(found, self._clock.now_ms(), self._bounds)
        except CacheServiceError as error:
            _log.warning("%s gives no copies: %s", node_id, error)
            return []
        return [change for change in changes if change is not None]

    async def held(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[int]:
        def to_request(rows: list[str]) -> peer_pb2.PeerServiceExchangeRequest:
            return peer_pb2.PeerServiceExchangeRequest(
                held=peer_pb2.HeldRequest(header=self._headers.to(node_id), keys=rows)
            )

        question = Question("", list(keys), 0, timeout_ms, to_request, _held_rows)
        return await self._ask_or_give_up(node_id, question)

    async def hand_over(
        self, node_id: str, changes: Sequence[Change], *, if_room: bool, timeout_ms: int
    ) -> list[int]:
        def to_request(rows: list[Change]) -> peer_pb2.PeerServiceExchangeRequest:
            request = peer_pb2.PeerServiceExchangeRequest()
            self._headers.fill(request.hand_over.header, node_id)
            request.hand_over.if_room = if_room
            copies.fill(request.hand_over.copies, rows, self._clock.now_ms())
            return request

        question = Question("", list(changes), 0, timeout_ms, to_request, _hand_over_rows)
        return await self._ask_or_give_up(node_id, question)

    async def handed_over(self, node_id: str, ring_epoch: int, absences: int, *, timeout_ms: int) -> None:
        def to_request(_: list[object]) -> peer_pb2.PeerServiceExchangeRequest:
            header = self._headers.to(node_id)
            header.ring_epoch = ring_epoch
            return peer_pb2.PeerServiceExchangeRequest(
                handed_over=peer_pb2.HandedOverRequest(header=header, absences=absences)
            )

        question = Question("", [], 0, timeout_ms, to_request, _no_rows)
        await self._ask_or_give_up(node_id, question)

    async def reading(self, node_id: str, *, timeout_ms: int) -> int:
        def to_request(_: list[object]) -> peer_pb2.PeerServiceExchangeRequest:
            return peer_pb2.PeerServiceExchangeRequest(
                reading=peer_pb2.ReadingRequest(header=self._headers.to(node_id))
            )

        question = Question("", [], 0, timeout_ms, to_request, lambda response: [response.reading.version])
        [version] = await self._ask_or_give_up(node_id, question, COPIES)
        return int(version)

    async def invalidate(self, node_id: str, fences: Sequence[Fence], *, timeout_ms: int) -> int:
        def to_request(rows: list[peer_pb2.Fence]) -> peer_pb2.PeerServiceExchangeRequest:
            return peer_pb2.PeerServiceExchangeRequest(
                invalidate=peer_pb2.InvalidateRequest(header=self._headers.to(node_id), fences=rows)
            )

        rows = list(map(peer_codec.fence_to_proto, fences))
        question = Question(
            "", rows, 0, timeout_ms, to_request, lambda response: [response.invalidate.removed]
        )
        [removed] = await self._ask_or_give_up(node_id, question, COPIES)
        return int(removed)

    async def fences(self, node_id: str, *, timeout_ms: int) -> list[Fence]:
        def to_request(_: list[object]) -> peer_pb2.PeerServiceExchangeRequest:
            return peer_pb2.PeerServiceExchangeRequest(
                fences=peer_pb2.FencesRequest(header=self._headers.to(node_id))
            )

        question = Question("", [], 0, timeout_ms, to_request, lambda response: list(response.fences.fences))
        found = await self._ask_or_give_up(node_id, question, COPIES)
        return list(map(peer_codec.fence_from_proto, found))

    async def scan(
        self, node_id: str, request: cache_pb2.ScanRequest, unreachable: Collection[str], *, timeout_ms: int
    ) -> cache_pb2.ScanResponse:
        """A page of what the node is the first to own. PeerUnreachable when it gives no answer."""

        def to_request(_: list[object]) -> peer_pb2.PeerServiceExchangeRequest:
            return peer_pb2.PeerServiceExchangeRequest(
                scan=peer_pb2.ScanNodeRequest(
                    header=self._headers.to(node_id), scan=request, unreachable=unreachable
                )
            )

        question = Question("", [], 0, timeout_ms, to_request, lambda response: [response.scan])
        [page] = await self._ask(node_id, FORWARDS, question)
        return cast("cache_pb2.ScanResponse", page)

    async def _ask_or_give_up(self, node_id: str, question: Question, purpose: str = HANDOFF) -> list[Any]:
        """The peer's answer; PeerUnreachable also when it refuses."""
        try:
            return await self._ask(node_id, purpose, question)
        except CacheServiceError as error:
            raise PeerUnreachable(node_id, error.message, maybe_done=False) from None

    async def _ask(self, node_id: str, purpose: str, question: Question) -> list[Any]:
        """The peer's answer. PeerUnreachable when it gave none; else the error that it answered with."""
        address = self._addresses.get(node_id)
        if address is None:
            raise PeerUnreachable(node_id, _NO_ADDRESS, maybe_done=False)
        try:
            return await self._channels.stream(address, purpose).ask(question)
        except (StreamEnded, TimeoutError, CacheServiceError) as error:
            raise unreachable(node_id, error, was_sent=question.was_sent) from None


def _forward_rows(response: peer_pb2.PeerServiceExchangeResponse) -> list[peer_pb2.OperationResult]:
    return list(response.forward.results)


def _fetch_rows(response: peer_pb2.PeerServiceExchangeResponse) -> list[peer_pb2.Copies]:
    return [response.fetch.copies]


def _held_rows(response: peer_pb2.PeerServiceExchangeResponse) -> list[int]:
    return list(response.held.versions)


def _hand_over_rows(response: peer_pb2.PeerServiceExchangeResponse) -> list[int]:
    return list(response.hand_over.versions)


def _no_rows(_: peer_pb2.PeerServiceExchangeResponse) -> list[int]:
    return []
