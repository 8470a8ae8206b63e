"""A call of a servicer's method: its messages, its deadline, and the status with which it ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import grpc

from cacheservice.errors import AnswerTooLarge, CacheServiceError
from cacheservice.http2 import statuses
from cacheservice.http2.call import Call
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import End
from cacheservice.server.completion import call_status, defect, parsed

ANSWER_SECONDS = 1.0
"""After its deadline, for an answer to leave: its caller has ended the call by then, if it still can."""
WRITES_AT_A_TIME = 16
"""Without a turn for everybody else, where the caller takes all."""
MAX_REQUESTS = 16
"""Of a call of many, that wait to be taken; then the caller is told to send no more."""

_CANCELLED = CallStatus(statuses.CANCELLED, "the call was cancelled")


class Method(NamedTuple):
    """What a servicer does for a call, by how many messages come and go.

    `work` is given the request, or an iterator of requests, and the call. It gives an awaitable, of the
    response if there is a single one, or an iterator of responses.
    """

    work: Callable[[Any, Any], Any]
    parse: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]
    has_many_requests: bool
    has_many_responses: bool


class Aborted(Exception):
    """Raised by `abort`, for the method to end."""

    def __init__(self, status: CallStatus) -> None:
        super().__init__(status.message)
        self.status = status


class ServedCall:
    """Receives what the caller sends, and is the context that the servicer's method is given."""

    def __init__(self, method: Method, call: Call, on_end: Callable[[ServedCall], None]) -> None:
        self._method = method
        self._call = call
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self.deadline = None if call.timeout is None else self._loop.time() + call.timeout
        """When the call is to be cancelled, by the event loop's clock; None for a caller with patience."""
        self._requests: deque[bytes] = deque()
        self._has_all = False
        self._is_open = True
        self._why: CallStatus | None = None
        """What to tell the caller when the method is cancelled."""
        self._progress: asyncio.Future[None] | None = None
        """Done when there are more requests, or the caller takes more responses."""
        self._task: asyncio.Task[None] | None = None
        if method.has_many_responses:
            call.respond()
        self._written = 0
        if method.has_many_requests:
            self._start(self._each_request)

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None when the caller gave none."""
        return None if self.deadline is None else max(0.0, self.deadline - self._loop.time())

    async def write(self, response: Any) -> None:
        """Sends one of many responses; returns when the caller takes more."""
        self._call.send(self._method.serialize(response))
        self._written += 1
        if self._written % WRITES_AT_A_TIME == 0:
            await asyncio.sleep(0)
        while self._call.is_blocked:
            await self._next()

    async def abort(self, code: grpc.StatusCode, details: str = "", _: Sequence[object] = ()) -> NoReturn:
        """Ends the call; for servicers that are made for grpcio's server. Metadata is not sent."""
        raise Aborted(CallStatus(code.value[0], details))

    def cancel(self, status: CallStatus) -> asyncio.Task[None] | None:
        """Ends the call with that status, and its method with CancelledError; the method's task, if any.

        A call whose answer waits for its caller to take it ends without.
        """
        if not self._is_open:
            self._call.cancel()
            self._on_end(self)
        elif self._task is None:
            self._end(status)
        elif self._why is None:
            self._why = status
            self._task.cancel()
        return self._task

    def headers_received(self, headers: dict[str, str]) -> None:
        """Of a caller there are none but the first."""

    def message_received(self, message: bytes) -> None:
        if not self._is_open:
            return
        self._requests.append(message)
        if not self._method.has_many_requests and len(self._requests) > 1:
            self._end(CallStatus(statuses.UNIMPLEMENTED, "more than one request in a call of one"))
        if len(self._requests) >= MAX_REQUESTS:
            self._call.pause()
        self._go_on()

    def sending_ended(self) -> None:
        self._has_all = True
        if self._method.has_many_requests:
            self._go_on()
        elif not self._requests:
            self._end(CallStatus(statuses.UNIMPLEMENTED, "no request in a call of one"))
        elif self._is_open:
            self._start(self._the_request)

    def stream_ended(self, end: End) -> None:  # noqa: ARG002
        """The caller has all, or has gone: then, as with grpcio, the method is cancelled."""
        if self._is_open:
            self._is_open = False
            if self._task is not None:
                self._task.cancel()
        self._on_end(self)

    def writable(self) -> None:
        self._go_on()

    def _start(self, requested: Callable[[], Any]) -> None:
        self._task = self._loop.create_task(self._serve(requested))
        # A task that is cancelled before its first step does nothing at all.
        self._task.add_done_callback(self._cancelled)

    def _cancelled(self, _: asyncio.Task[None]) -> None:
        if self._is_open:
            self._end(self._why or _CANCELLED)

    async def _serve(self, requested: Callable[[], Any]) -> None:
        """Has the method do what is asked for, and tells the caller what comes of it."""
        try:
            work = self._method.work(requested(), self)
            if not self._method.has_many_responses:
                message = self._method.serialize(await work)
                if len(message) > self._call.max_message_bytes:
                    raise AnswerTooLarge("the answer exceeds one message; ask for less of it")
                self._answer(message)
                return
            if isinstance(work, Awaitable):
                await work
            else:
                async for response in work:
                    await self.write(response)
            self._end(statuses.DONE)
        except Aborted as aborted:
            self._end(aborted.status)
        except CacheServiceError as error:
            self._end(call_status(error))
        except asyncio.CancelledError:
            self._end(self._why or _CANCELLED)
        except Exception:
            self._end(call_status(defect()))

    def _the_request(self) -> Any:
        return parsed(self._method.parse, self._requests.popleft())

    async def _each_request(self) -> AsyncIterator[Any]:
        while self._requests or not self._has_all:
            if self._requests:
                request = self._requests.popleft()
                self._call.resume()
                yield parsed(self._method.parse, request)
            else:
                await self._next()

    async def _next(self) -> None:
        self._progress = self._loop.create_future()
        await self._progress

    def _go_on(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

    def _answer(self, message: bytes) -> None:
        if self._is_open:
            self._close()
            self._call.answer(message)

    def _end(self, status: CallStatus) -> None:
        if self._is_open:
            self._close()
            self._call.finish(status)

    def _close(self) -> None:
        self._is_open = False
        self._requests.clear()
        if self.deadline is not None:
            self.deadline += ANSWER_SECONDS
