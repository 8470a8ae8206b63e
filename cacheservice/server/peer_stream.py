"""One stream to a peer: requests that wait together leave as one, and their answers come back apart."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from cacheservice.errors import CacheServiceError
from cacheservice.http2.client import ConnectFailed
from cacheservice.http2.client_stream import ClientStream, StreamFailed
from cacheservice.v1 import peer_pb2
from cacheservice.wire import from_call, from_status

_log = logging.getLogger(__name__)

MAX_ROWS = 1_000
"""Operations or copies of several requests that leave together."""
MAX_BYTES = 1024 * 1024
"""Of what they carry, but for the last of them."""
SLOW_SECONDS = 0.05
"""What is under way for longer lets others of its kind leave, which wait for it until then."""
REFUSAL_SECONDS = 0.1


class StreamEnded(Exception):
    """The stream ended before the answer came. `was_sent`: the request may have been received."""

    def __init__(self, why: str, *, was_sent: bool) -> None:
        super().__init__(why)
        self.was_sent = was_sent


@dataclass(eq=False, slots=True)
class Question:
    """What one caller asks: rows, and how to make a request of them and of others' rows."""

    kind: str
    """Rows of one kind may leave together; those of a kind without a name leave alone."""
    rows: list[Any]
    size: int
    """Bytes that the rows carry, about."""
    timeout_ms: int
    to_request: Callable[[list[Any]], peer_pb2.PeerServiceExchangeRequest]
    rows_of: Callable[[peer_pb2.PeerServiceExchangeResponse], list[Any]]
    """The answer to each row, in order; or, of one without kind, the answer."""
    answer: asyncio.Future[list[Any]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    was_sent: bool = False


OpenStream = Callable[[Callable[[bytes], None], Callable[[], None]], Awaitable[ClientStream]]
"""Opens a stream; see `open_stream`, of which it is what differs between streams."""


class PeerStream:
    """Opened when something is asked, and again when it has ended."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._open_stream = open_stream
        self._stream: ClientStream | None = None
        self._pending: deque[Question] = deque()
        self._under_way: dict[int, list[Question]] = {}
        self._counted: dict[int, tuple[str, asyncio.TimerHandle]] = {}
        """The kinds of those that count, by id, and what ends that."""
        self._last_id = 0
        self._is_woken = False
        self._refuses_until = 0.0
        """After an attempt to connect that has failed nobody waits for another one so soon."""
        self._refusal = ""
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> list[Any]:
        """The answer to each row. StreamEnded when there is none; else the error that the peer answered with.

        Gives up after the question's timeout_ms, with TimeoutError.
        """
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            if loop.time() < self._refuses_until:
                raise StreamEnded(self._refusal, was_sent=False)
            self._task = asyncio.create_task(self._run())
        self._pending.append(question)
        self._wake()
        # asyncio.timeout does the same, and takes longer than all else here.
        timer = loop.call_later(question.timeout_ms / 1_000, _expire, question.answer)
        try:
            return await question.answer
        finally:
            timer.cancel()
            if not question.was_sent and question in self._pending:
                self._pending.remove(question)

    async def finish(self, seconds: float) -> None:
        """Closes it when all that has been asked is answered, or after so long."""
        if asked := self._asked:
            await asyncio.wait([question.answer for question in asked], timeout=seconds)
        await self.close()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    @property
    def _asked(self) -> list[Question]:
        """All that is not answered."""
        return [*(each for some in self._under_way.values() for each in some), *self._pending]

    async def _run(self) -> None:
        """Until nothing is left that was asked while a stream was being closed."""
        await self._serve()
        while self._pending:
            await self._serve()

    async def _serve(self) -> None:
        """Opens a stream, and sends and receives until it ends."""
        why, was_done = "the connection was closed", True
        try:
            self._stream = await self._open_stream(self._receive, self._wake)
            self._wake()
            await self._stream.finished()
            why, was_done = "it is about to stop", False
        except ConnectFailed as failure:
            why = self._refusal = str(failure)
            self._refuses_until = asyncio.get_running_loop().time() + REFUSAL_SECONDS
        except StreamFailed as failure:
            why = from_call(*failure.status).message
        finally:
            stream, self._stream = self._stream, None
            self._fail(why, maybe_done=was_done)
            if stream is not None:
                await stream.close()

    def _wake(self) -> None:
        """Has what waits sent, with what else is asked by all that is ready to run now."""
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._is_woken = False
        stream = self._stream
        if stream is None:
            return
        loop = asyncio.get_running_loop()
        try:
            while self._pending and not stream.is_blocked and (questions := self._take()):
                self._last_id += 1
                self._under_way[self._last_id] = questions
                for each in questions:
                    each.was_sent = True
                if questions[0].kind:
                    timer = loop.call_later(SLOW_SECONDS, self._let_others_pass, self._last_id)
                    self._counted[self._last_id] = questions[0].kind, timer
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

    def _receive(self, message: bytes) -> None:
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
            if not question.answer.done():
                if error is not None:
                    question.answer.set_exception(error)
                else:
                    question.answer.set_result(rows[start:end])
            start = end

    def _let_others_pass(self, request_id: int) -> None:
        counted = self._counted.pop(request_id, None)
        if counted is not None:
            counted[1].cancel()
            self._wake()

    def _fail(self, why: str, *, maybe_done: bool) -> None:
        """`maybe_done`: what was sent may have been done. A node that stops does all that it has read."""
        questions = self._asked
        self._under_way.clear()
        for _, timer in self._counted.values():
            timer.cancel()
        self._counted.clear()
        self._pending.clear()
        for question in questions:
            if not question.answer.done():
                question.answer.set_exception(StreamEnded(why, was_sent=question.was_sent and maybe_done))


def _expire(answer: asyncio.Future[list[Any]]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
        answer.exception()  # Whoever asked may just have been cancelled.
