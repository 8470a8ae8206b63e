"""A stream of requests, begun as they arrive, and answered within that callback where nothing is awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from cacheservice.errors import CacheServiceError
from cacheservice.http2 import statuses
from cacheservice.http2.call import Call
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import End
from cacheservice.server.completion import Pending, call_status, defect, parsed

MAX_AT_WORK = 64
"""Requests of one stream that wait for other nodes at a time; then the node begins with no more."""
MAX_UNSENT_BYTES = 1024 * 1024
"""Answers that the caller does not take; then, too, the node begins with no more."""

Begun: TypeAlias = bytes | Pending
"""An answer, or what it waits for."""


class DirectStream:
    """Answers each request when it is ready; `begin` and `requests` are as of `Streams`.

    What was begun goes on when the caller goes away, since replicas must hear of what was written; it ends by
    its own deadline.
    """

    def __init__(
        self,
        call: Call,
        parse: Callable[[bytes], Any],
        begin: Callable[[Any], Begun],
        requests: Callable[[Any], Iterable[Any]],
        on_end: Callable[[DirectStream], None],
    ) -> None:
        self._call = call
        self._parse = parse
        self._begin = begin
        self._requests_of = requests
        self._on_end = on_end
        self._requests: deque[Any] = deque()
        """Those that are not begun; as many as the caller may send before it is told to go on."""
        self._at_work: set[asyncio.Future[Any]] = set()
        self._is_last = False
        """Whether no more requests come, or none are read."""
        self._is_open = True

    def stop_reading(self) -> None:
        """Begins with nothing more; the stream ends when what was begun is answered."""
        self._requests.clear()
        self.sending_ended()

    def headers_received(self, headers: dict[str, str]) -> None:
        """Of a caller there are none but the first."""

    def message_received(self, message: bytes) -> None:
        if self._is_last:
            return
        try:
            self._requests.extend(self._requests_of(parsed(self._parse, message)))
        except CacheServiceError as error:
            self._abort(error)
            return
        self._go_on()

    def sending_ended(self) -> None:
        self._is_last = True
        self._go_on()

    def stream_ended(self, end: End) -> None:  # noqa: ARG002
        self._is_open = False
        self._requests.clear()
        self._on_end(self)

    def writable(self) -> None:
        self._go_on()

    def _go_on(self) -> None:
        """Begins with what there is, as far as the bounds allow."""
        if not self._is_open:
            return
        call = self._call
        try:
            while self._requests:
                if len(self._at_work) >= MAX_AT_WORK or call.is_behind(MAX_UNSENT_BYTES):
                    call.pause()
                    return
                work = self._begin(self._requests.popleft())
                if isinstance(work, bytes):
                    call.send(work)
                else:
                    self._at_work.add(work.future)
                    work.future.add_done_callback(partial(self._finished, work.answer))
        except Exception:
            self._abort(defect())
            return
        call.resume()
        if self._is_last and not self._at_work:
            self.end(statuses.DONE)

    def _finished(self, answer: Callable[[], bytes], future: asyncio.Future[Any]) -> None:
        self._at_work.discard(future)
        try:
            message = answer()
            if self._is_open:
                self._call.send(message)
        except asyncio.CancelledError:
            pass
        except Exception:
            self._abort(defect())
        self._go_on()

    def _abort(self, error: CacheServiceError) -> None:
        self.end(call_status(error))

    def end(self, status: CallStatus) -> None:
        """Ends the stream, once the answers that are there have left."""
        if self._is_open:
            self._is_open = False
            self._is_last = True
            self._requests.clear()
            self._call.finish(status)
