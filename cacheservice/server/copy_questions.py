"""Copies for a peer to keep, as a question to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from cacheservice.clock import Clock
from cacheservice.node.operations import Change
from cacheservice.node.transport import PeerUnreachable
from cacheservice.server import copies
from cacheservice.server.peer_header import PeerHeaders
from cacheservice.server.questions import Question, unreachable
from cacheservice.v1 import peer_pb2

_log = logging.getLogger(__name__)

_KIND = "replicate"


class CopyQuestions:
    """Made with what heads each request to a node."""

    def __init__(self, headers: PeerHeaders, clock: Clock) -> None:
        self._headers = headers
        self._clock = clock

    def of(self, node_id: str, changes: Sequence[Change], timeout_ms: int) -> Question:
        """Answered with the version of each that the node holds then, 0 where it refuses to; or with
        PeerUnreachable."""
        size = 0
        for change in changes:
            if change.entry is not None:
                size += len(change.entry.value)
        request, failed = partial(self._request, node_id), partial(_failed, node_id)
        return Question(_KIND, list(changes), size, timeout_ms, request, _versions, failed)

    def _request(self, node_id: str, rows: list[Change]) -> peer_pb2.PeerServiceExchangeRequest:
        request = peer_pb2.PeerServiceExchangeRequest()
        replicate = request.replicate
        self._headers.fill(replicate.header, node_id)
        copies.fill(replicate.copies, rows, self._clock.now_ms())
        return request


def _versions(response: peer_pb2.PeerServiceExchangeResponse) -> list[int]:
    return list(response.replicate.versions)


def _failed(node_id: str, question: Question, error: Exception) -> None:
    told = unreachable(node_id, error, was_sent=question.was_sent)
    if isinstance(told, PeerUnreachable):
        question.answer.set_exception(told)
    else:
        _log.warning("%s keeps no copies: %s", node_id, error)
        question.answer.set_result([0] * len(question.rows))
