"""What is asked of a peer on one stream: requests that wait together leave as one, and are answered apart."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from cacheservice.errors import (
    CacheServiceError,
    ClusterIdMismatch,
    DeadlineExceeded,
    NodeIdMismatch,
    NotReady,
    Unavailable,
)
from cacheservice.node.transport import PeerUnreachable
from cacheservice.v1 import peer_pb2
from cacheservice.wire import from_status

_log = logging.getLogger(__name__)

MAX_ROWS = 1_000
"""Operations or copies of several requests that leave together."""
MAX_BYTES = 1024 * 1024
"""Of what they carry, but for the last of them."""
SLOW_SECONDS = 0.05
"""What is under way for longer lets others of its kind leave, which wait for it until then."""


class StreamEnded(Exception):
    """The stream ended before the answer came. `was_sent`: the request may have been received."""

    def __init__(self, why: str, *, was_sent: bool) -> None:
        super().__init__(why)
        self.was_sent = was_sent


class Question:
    """What one caller asks: rows, and how to make a request of them and of others' rows.

    Rows of one `kind` may leave together; those of a kind without a name leave alone. They carry about `size`
    bytes. `rows_of` gives the answer to each row, in order; or, of one without kind, the answer. `failed` may
    put something else than the error into the answer.
    """

    __slots__ = (
        "answer",
        "failed",
        "kind",
        "rows",
        "rows_of",
        "size",
        "timeout_ms",
        "timer",
        "to_request",
        "was_sent",
    )

    def __init__(
        self,
        kind: str,
        rows: list[Any],
        size: int,
        timeout_ms: int,
        to_request: Callable[[list[Any]], peer_pb2.PeerServiceExchangeRequest],
        rows_of: Callable[[peer_pb2.PeerServiceExchangeResponse], list[Any]],
        failed: Callable[[Question, Exception], None] | None = None,
    ) -> None:
        self.kind = kind
        self.rows = rows
        self.size = size
        self.timeout_ms = timeout_ms
        self.to_request = to_request
        self.rows_of = rows_of
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.was_sent = False
        self.failed = failed
        self.timer: asyncio.TimerHandle | None = None
        """Of its end without an answer."""

    def settle(self, rows: list[Any]) -> None:
        if not self.answer.done():
            self._stop_timer()
            self.answer.set_result(rows)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self._stop_timer()
            if self.failed is not None:
                self.failed(self, error)
            else:
                self.answer.set_exception(error)

    def expire(self) -> None:
        self.fail(TimeoutError())

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


def unreachable(node_id: str, error: Exception, *, was_sent: bool) -> Exception:
    """The error, or PeerUnreachable if it says that the peer gave no answer."""
    match error:
        case StreamEnded():
            return PeerUnreachable(node_id, str(error), maybe_done=error.was_sent)
        case TimeoutError():
            return PeerUnreachable(node_id, "no answer in time", maybe_done=was_sent)
        case NotReady() | ClusterIdMismatch() | NodeIdMismatch():
            return PeerUnreachable(node_id, error.message, maybe_done=False)
        case Unavailable() | DeadlineExceeded():
            return PeerUnreachable(node_id, error.message, maybe_done=True)
        case _:
            return error


class Stream(Protocol):
    """Where the requests go."""

    @property
    def is_blocked(self) -> bool: ...

    def send(self, message: bytes) -> None: ...

    def cancel(self) -> None: ...


class Questions:
    """Those that wait, and those under way, on a stream that comes and goes; made within an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._pending: deque[Question] = deque()
        self._under_way: dict[int, list[Question]] = {}
        self._counted: dict[int, tuple[str, float]] = {}
        """The kinds of those that count, by id, and since when; the oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        """Of when the oldest may have counted for long enough."""
        self._last_id = 0
        self._is_woken = False

    @property
    def are_waiting(self) -> bool:
        return any(not question.answer.done() for question in self._pending)

    @property
    def asked(self) -> list[Question]:
        """All that is not answered."""
        return [*(each for some in self._under_way.values() for each in some), *self._pending]

    def add(self, question: Question) -> None:
        """It fails after its timeout_ms."""
        self._pending.append(question)
        question.timer = self._loop.call_later(question.timeout_ms / 1_000, question.expire)
        self.wake()

    def opened(self, stream: Stream) -> None:
        self._stream = stream
        self.wake()

    def wake(self) -> None:
        """Has what waits sent, with what else is asked by all that is ready to run now."""
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_woken = False
        stream = self._stream
        if stream is None:
            return
        try:
            while self._pending and not stream.is_blocked and (questions := self._take()):
                self._last_id += 1
                self._under_way[self._last_id] = questions
                for each in questions:
                    each.was_sent = True
                if questions[0].kind:
                    self._counted[self._last_id] = questions[0].kind, self._loop.time()
                    if self._timer is None:
                        self._timer = self._loop.call_later(SLOW_SECONDS, self._look_for_slow)
                request = questions[0].to_request([row for each in questions for row in each.rows])
                request.request_id = self._last_id
                request.timeout_ms = max(each.timeout_ms for each in questions)
                stream.send(request.SerializeToString())
        except Exception:
            _log.exception("defect in a stream to a peer, which is opened anew")
            stream.cancel()

    def _take(self) -> list[Question]:
        """The first question that may leave, with all of its kind that can leave with it; not those that
        nobody waits for any longer."""
        busy = {kind for kind, _ in self._counted.values()}
        questions: list[Question] = []
        left: deque[Question] = deque()
        rows = size = 0
        for question in self._pending:
            if question.answer.done():
                continue
            kind = questions[0].kind if questions else question.kind
            rows += len(question.rows) if question.kind == kind else 0
            if questions:
                joins = bool(kind) and question.kind == kind and rows <= MAX_ROWS and size < MAX_BYTES
            else:
                joins = kind not in busy
            if joins:
                questions.append(question)
                size += question.size
            else:
                left.append(question)
        self._pending = left
        return questions

    def receive(self, message: bytes) -> None:
        response = peer_pb2.PeerServiceExchangeResponse.FromString(message)
        questions = self._under_way.pop(response.request_id, [])
        self._let_others_pass(response.request_id)
        error: CacheServiceError | None = None
        rows: list[Any] = []
        if response.HasField("error"):
            error = from_status(response.error)
        elif questions:
            rows = questions[0].rows_of(response)
        start = 0
        for question in questions:
            end = start + len(question.rows) if question.kind else len(rows)
            if error is not None:
                question.fail(error)
            else:
                question.settle(rows[start:end])
            start = end

    def _let_others_pass(self, request_id: int) -> None:
        if self._counted.pop(request_id, None) is not None:
            self.wake()

    def _look_for_slow(self) -> None:
        self._timer = None
        slow_since = self._loop.time() - SLOW_SECONDS
        for request_id, (_, since) in list(self._counted.items()):
            if since > slow_since:
                self._timer = self._loop.call_later(max(0.001, since - slow_since), self._look_for_slow)
                break
            self._let_others_pass(request_id)

    def ended(self, why: str, *, maybe_done: bool) -> None:
        """The stream is no longer there. `maybe_done`: what was sent may have been done. A node that stops
        does all that it has read."""
        self._stream = None
        questions = self.asked
        self._under_way.clear()
        self._counted.clear()
        self._pending.clear()
        for question in questions:
            question.fail(StreamEnded(why, was_sent=question.was_sent and maybe_done))
