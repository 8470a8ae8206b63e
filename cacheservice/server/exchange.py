"""The Exchange streams: batches in, answers out, in the order in which they are ready."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc

from cacheservice.config import Settings
from cacheservice.errors import CacheServiceError, InternalError, InvalidArgument, NotReady
from cacheservice.node.batches import Batches, Soon
from cacheservice.node.columns import Errors, Reads, Removals, Writes
from cacheservice.server import column_codec as codec
from cacheservice.server.decode import Bounds
from cacheservice.server.guard import Admission, Context, Malformed
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import to_status

_log = logging.getLogger(__name__)

MAX_AT_WORK = 64
"""Batches of one stream that wait for other nodes at a time; then the node reads no further."""
MAX_UNSENT_BYTES = 1024 * 1024
"""Answers that the caller does not take; then, too, the node reads no further."""

Result = TypeVar("Result", Reads, Writes, Removals)
Work = pb.ExchangeResponse | Callable[[], Awaitable[pb.ExchangeResponse]]


class Exchange:
    """Serves streams until their callers end them, or `close` does."""

    def __init__(
        self, batches: Batches, admission: Admission, settings: Settings, ring_epoch: Callable[[], int]
    ) -> None:
        self._batches = batches
        self._admission = admission
        self._ring_epoch = ring_epoch
        self._bounds = Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = int(settings.max_message_bytes)
        self._default_timeout_ms = round(settings.default_timeout_seconds * 1_000)
        self._streams: set[_Stream] = set()
        self._closed = False

    def close(self) -> None:
        """Ends the streams: each when what it has read is answered."""
        self._closed = True
        for stream in self._streams:
            stream.stop_reading()

    async def serve(self, context: Context) -> None:
        """Answers the batches of one stream; returns when the stream is to end."""
        if self._closed:
            raise NotReady("this node is about to stop")
        stream = _Stream(context, self._begin)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def _begin(self, request: pb.ExchangeRequest) -> Work:
        """Does the batch, or as much of it as needs no other node; the rest is left to who calls the work."""
        batch_id = request.batch_id
        try:
            with self._admission:
                work = self._start(request)
        except CacheServiceError as error:
            return self._refused(batch_id, error)
        except Exception:
            return self._defect(batch_id)
        if isinstance(work, pb.ExchangeResponse):
            return self._addressed(batch_id, work)
        return partial(self._complete, batch_id, work)

    def _start(self, request: pb.ExchangeRequest) -> Work:
        timeout_ms = request.timeout_ms or self._default_timeout_ms
        match request.WhichOneof("batch"):
            case "get":
                keys = codec.keys(request.get.keys)
                values_only = request.get.values_only
                reads = self._batches.get(keys.keys, timeout_ms, values_only=values_only)
                return _then(reads, keys.refused, self._encode_reads)
            case "set":
                entries = codec.entries(request.set, self._bounds)
                writes = self._batches.set(
                    entries.keys, entries.values, entries.ttl_ms, entries.stale_ms, timeout_ms
                )
                return _then(writes, entries.refused, codec.writes)
            case "delete":
                keys = codec.keys(request.delete.keys)
                removals = self._batches.delete(keys.keys, timeout_ms)
                return _then(removals, keys.refused, codec.removals)
            case _:
                raise InvalidArgument.of("batch", "present", "none")

    async def _complete(
        self, batch_id: int, work: Callable[[], Awaitable[pb.ExchangeResponse]]
    ) -> pb.ExchangeResponse:
        with self._admission.counted():
            try:
                return self._addressed(batch_id, await work())
            except CacheServiceError as error:
                return self._refused(batch_id, error)
            except Exception:
                return self._defect(batch_id)

    def _encode_reads(self, reads: Reads) -> pb.ExchangeResponse:
        return codec.reads(reads, self._max_answer_bytes)

    def _refused(self, batch_id: int, error: CacheServiceError) -> pb.ExchangeResponse:
        return self._addressed(batch_id, pb.ExchangeResponse(refused=to_status(error)))

    def _defect(self, batch_id: int) -> pb.ExchangeResponse:
        _log.exception("defect in Exchange")
        return self._refused(batch_id, InternalError("a defect in the node; its log has the details"))

    def _addressed(self, batch_id: int, response: pb.ExchangeResponse) -> pb.ExchangeResponse:
        response.batch_id = batch_id
        response.ring_epoch = self._ring_epoch()
        return response


class _Stream:
    """One caller's stream: reads a batch, answers it, or leaves that to a task, and reads the next.

    What was begun goes on when the caller goes away, since replicas must hear of what was written; it ends
    by its own deadline.
    """

    def __init__(self, context: Context, begin: Callable[[pb.ExchangeRequest], Work]) -> None:
        self._context = context
        self._begin = begin
        self._at_work: set[asyncio.Task[None]] = set()
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
            request: Any = await self._context.read()
            if request is grpc.aio.EOF:
                return
            if isinstance(request, Malformed):
                raise InvalidArgument.of("request", "a message of its type", request.why)
            work = self._begin(request)
            if isinstance(work, pb.ExchangeResponse):
                self._send(work)
            else:
                task = asyncio.create_task(self._answer(work))
                self._at_work.add(task)
                task.add_done_callback(self._finished)

    async def _write(self) -> None:
        while True:
            while self._unsent:
                answer = self._unsent.popleft()
                await self._context.write(answer)
                self._unsent_bytes -= len(answer)
                self._has_room.set()
            self._has_answers.clear()
            await self._has_answers.wait()

    async def _progress(self) -> None:
        """Waits until an answer was sent, or work was finished."""
        self._has_room.clear()
        await self._has_room.wait()

    async def _answer(self, work: Callable[[], Awaitable[pb.ExchangeResponse]]) -> None:
        response = await work()
        if self._is_open:
            self._send(response)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._at_work.discard(task)
        self._has_room.set()

    def _send(self, response: pb.ExchangeResponse) -> None:
        answer = response.SerializeToString()
        self._unsent.append(answer)
        self._unsent_bytes += len(answer)
        self._has_answers.set()


def _then(result: Soon[Result], refused: Errors, encode: Callable[[Result], pb.ExchangeResponse]) -> Work:
    """The response, with the refused rows in their places; or what to call and await for it."""
    if callable(result):
        return partial(_later, result, refused, encode)
    return encode(result.with_refused(refused) if refused else result)


async def _later(
    work: Callable[[], Awaitable[Result]],
    refused: Errors,
    encode: Callable[[Result], pb.ExchangeResponse],
) -> pb.ExchangeResponse:
    result = await work()
    return encode(result.with_refused(refused) if refused else result)
