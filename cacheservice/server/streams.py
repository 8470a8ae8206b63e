"""Streams of requests that are answered side by side, each when it is ready."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from cacheservice.errors import InvalidArgument, NotReady
from cacheservice.http2.alternative import Alternative
from cacheservice.http2.call import Call, Handler
from cacheservice.server.direct_stream import MAX_AT_WORK, MAX_UNSENT_BYTES, Begun, DirectStream
from cacheservice.server.guard import Context, Malformed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Framing:
    """How messages carry several requests or answers."""

    requests: Callable[[Any], Iterable[Any]]
    """Those in a message, in order."""
    asks_to_join: Callable[[Any], bool]
    """Whether the message allows that answers are joined from now on."""
    join: Callable[[Sequence[bytes]], bytes]
    """One message of several."""


PLAIN = Framing(lambda message: (message,), lambda _: False, b"".join)
"""One request a message, and one answer."""
MAX_JOINED_BYTES = 64 * 1024
"""Of answers that are joined: larger ones gain nothing by it."""


class Streams:
    """Serves streams until their callers end them, or `close` does.

    Callers of grpcio's server are told of `alternative`, at which they are served at less cost.
    """

    def __init__(self) -> None:
        self.alternative: Alternative | None = None
        self._open: set[_Stream | DirectStream] = set()
        self._closed = False
        self._idle: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Ends the streams: each when what it has read is answered."""
        self._closed = True
        for stream in list(self._open):
            stream.stop_reading()

    async def finished(self, seconds: float) -> None:
        """Returns when all streams have ended, or after so long."""
        if self._open:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._idle,), timeout=seconds)

    def handler(
        self,
        parse: Callable[[bytes], Any],
        begin: Callable[[Any], Begun[bytes]],
        requests: Callable[[Any], Iterable[Any]] = PLAIN.requests,
    ) -> Handler:
        """What serves the calls of a method that come to the alternative, as `serve` does all others."""

        def serve(call: Call) -> DirectStream:
            stream = DirectStream(call, parse, begin, requests, self._discard)
            self._open.add(stream)
            if self._closed:
                stream.stop_reading()
            return stream

        return serve

    def _discard(self, stream: _Stream | DirectStream) -> None:
        self._open.discard(stream)
        if not self._open and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def serve(
        self, context: Context, begin: Callable[[Any], Begun[bytes]], framing: Framing = PLAIN
    ) -> None:
        """Answers each request with what `begin` makes of it; returns when the stream is to end."""
        if self._closed:
            raise NotReady("this node is about to stop")
        if self.alternative is not None:
            await context.send_initial_metadata((self.alternative.offer(),))
        stream = _Stream(context, begin, framing)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._discard(stream)


class _Stream:
    """One caller's stream: reads a batch, answers it, or leaves that to a task, and reads the next.

    What was begun goes on when the caller goes away, since replicas must hear of what was written; it ends
    by its own deadline.
    """

    def __init__(self, context: Context, begin: Callable[[Any], Begun[bytes]], framing: Framing) -> None:
        self._framing = framing
        self._joins = False
        self._context = context
        self._begin = begin
        self._at_work: set[asyncio.Task[bytes]] = set()
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._is_open = True
        self._has_answers = asyncio.Event()
        self._has_room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    def stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    async def run(self) -> None:
        """Reads until the caller has sent everything, or `stop_reading`; returns when all is answered."""
        self._reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait((self._reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in (self._reader, writer):
                if task.done() and not task.cancelled():
                    task.result()
            while self._at_work or self._unsent_bytes:
                await self._progress()
        finally:
            self._is_open = False
            self._reader.cancel()
            writer.cancel()

    async def _read(self) -> None:
        while True:
            while len(self._at_work) >= MAX_AT_WORK or self._unsent_bytes > MAX_UNSENT_BYTES:
                await self._progress()
            message: Any = await self._context.read()
            if message is grpc.aio.EOF:
                return
            if isinstance(message, Malformed):
                raise InvalidArgument.of("request", "a message of its type", message.why)
            self._joins = self._joins or self._framing.asks_to_join(message)
            for request in self._framing.requests(message):
                while len(self._at_work) >= MAX_AT_WORK or self._unsent_bytes > MAX_UNSENT_BYTES:
                    await self._progress()
                work = self._begin(request)
                if not callable(work):
                    self._send(work)
                else:
                    task = asyncio.create_task(work())
                    self._at_work.add(task)
                    task.add_done_callback(self._finished)

    async def _write(self) -> None:
        while True:
            while self._unsent:
                answers = [self._unsent.popleft()]
                size = len(answers[0])
                while self._joins and self._unsent and size + len(self._unsent[0]) <= MAX_JOINED_BYTES:
                    size += len(self._unsent[0])
                    answers.append(self._unsent.popleft())
                await self._context.write(self._framing.join(answers) if len(answers) > 1 else answers[0])
                self._unsent_bytes -= size
                self._has_room.set()
            self._has_answers.clear()
            await self._has_answers.wait()

    async def _progress(self) -> None:
        """Waits until an answer was sent, or work was finished."""
        self._has_room.clear()
        await self._has_room.wait()

    def _finished(self, task: asyncio.Task[bytes]) -> None:
        self._at_work.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                _log.error("defect in a stream", exc_info=error)
            elif self._is_open:
                self._send(task.result())
        self._has_room.set()

    def _send(self, answer: bytes) -> None:
        self._unsent.append(answer)
        self._unsent_bytes += len(answer)
        self._has_answers.set()
