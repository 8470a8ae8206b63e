"""CacheService: each rpc decodes, has the node do it, and encodes. Exchange is served by `exchange`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cacheservice.config import Settings
from cacheservice.errors import CacheServiceError
from cacheservice.node import operations as ops
from cacheservice.node.fences import Kind
from cacheservice.node.invalidations import Invalidated
from cacheservice.node.node import Node
from cacheservice.node.operations import Answer, Operation
from cacheservice.server import decode, encode
from cacheservice.server.admission import Admission
from cacheservice.server.cluster_scan import ClusterScan
from cacheservice.server.guard import Context, time_left_ms
from cacheservice.server.watches import Watches
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.cache_pb2_grpc import CacheServiceServicer
from cacheservice.wire import to_status


class CacheServicer(CacheServiceServicer):
    def __init__(
        self,
        node: Node,
        settings: Settings,
        admission: Admission,
        cluster_scan: ClusterScan,
        watches: Watches,
    ) -> None:
        self._watches = watches
        self._node = node
        self._cluster_scan = cluster_scan
        self._admission = admission
        self._bounds = decode.Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = settings.max_message_bytes
        self._default_timeout_ms = round(settings.default_timeout_seconds * 1_000)

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        read = decode.get(request)
        if not read.lease:
            with self._admission:
                found = self._node.read_own(read)
            return encode.get(found or await self._execute(read, context), self._node.ring_epoch)
        [answer] = await self._read([read], decode.lease_wait_ms(request), context)
        if isinstance(answer, CacheServiceError):
            raise answer
        return encode.get(answer, self._node.ring_epoch)  # type: ignore[arg-type]

    async def Set(self, request: pb.SetRequest, context: Context) -> pb.SetResponse:
        operation = decode.set_(request, self._bounds)
        return encode.set_(await self._execute(operation, context), self._node.ring_epoch)

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        return encode.delete(await self._execute(decode.delete(request), context), self._node.ring_epoch)

    async def Touch(self, request: pb.TouchRequest, context: Context) -> pb.TouchResponse:
        return encode.touch(await self._execute(decode.touch(request), context), self._node.ring_epoch)

    async def Increment(self, request: pb.IncrementRequest, context: Context) -> pb.IncrementResponse:
        operation = decode.increment(request)
        return encode.increment(await self._execute(operation, context), self._node.ring_epoch)

    async def BatchGet(self, request: pb.BatchGetRequest, context: Context) -> pb.BatchGetResponse:
        nearest = decode.is_nearest(request.read_preference)
        lease, wait_ms = request.HasField("lease"), decode.lease_wait_ms(request)
        decode.batch_size("keys", request.keys)
        batch = decode.Decoded(
            request.keys, lambda key: ops.Get(decode.key_(key), nearest=nearest, lease=lease), "keys"
        )
        reads = [operation for operation in batch.operations if isinstance(operation, ops.Get)]
        answers = batch.with_refusals(await self._read(reads, wait_ms, context))
        return pb.BatchGetResponse(
            results=[
                pb.GetResult(error=to_status(answer))
                if isinstance(answer, CacheServiceError)
                else pb.GetResult(response=encode.get(answer))  # type: ignore[arg-type]
                for answer in encode.within(answers, self._max_answer_bytes)
            ],
            ring_epoch=self._node.ring_epoch,
        )

    async def BatchSet(self, request: pb.BatchSetRequest, context: Context) -> pb.BatchSetResponse:
        decode.message_size(request, self._max_answer_bytes)
        answers = await self._execute_batch(
            "requests", request.requests, lambda item: decode.set_(item, self._bounds), context
        )
        return pb.BatchSetResponse(
            results=[
                pb.SetResult(error=to_status(answer))
                if isinstance(answer, CacheServiceError)
                else pb.SetResult(response=encode.set_(answer))  # type: ignore[arg-type]
                for answer in answers
            ],
            ring_epoch=self._node.ring_epoch,
        )

    async def BatchDelete(self, request: pb.BatchDeleteRequest, context: Context) -> pb.BatchDeleteResponse:
        answers = await self._execute_batch(
            "keys", request.keys, lambda key: ops.Delete(decode.key_(key)), context
        )
        return pb.BatchDeleteResponse(
            results=[
                pb.DeleteResult(error=to_status(answer))
                if isinstance(answer, CacheServiceError)
                else pb.DeleteResult(response=encode.delete(answer))  # type: ignore[arg-type]
                for answer in answers
            ],
            ring_epoch=self._node.ring_epoch,
        )

    Exchange: Any = None
    """Streams are served by `Streams`, with less between the socket and what is done."""

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: Context
    ) -> pb.ReleaseLeaseResponse:
        return encode.release(await self._execute(decode.release(request), context), self._node.ring_epoch)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]
        self._admission.check_open()
        await self._watches.serve(request, context.write)

    async def InvalidateTag(
        self, request: pb.InvalidateTagRequest, context: Context
    ) -> pb.InvalidateTagResponse:
        done = await self._invalidate(Kind.TAG, decode.tag(request.tag), context)
        return pb.InvalidateTagResponse(
            removed=done.removed, unreachable=done.unreachable, ring_epoch=self._node.ring_epoch
        )

    async def InvalidatePrefix(
        self, request: pb.InvalidatePrefixRequest, context: Context
    ) -> pb.InvalidatePrefixResponse:
        done = await self._invalidate(Kind.PREFIX, decode.prefix(request.prefix), context)
        return pb.InvalidatePrefixResponse(
            removed=done.removed, unreachable=done.unreachable, ring_epoch=self._node.ring_epoch
        )

    async def Scan(self, request: pb.ScanRequest, context: Context) -> pb.ScanResponse:
        decode.page_of_scan(request)
        with self._admission:
            return await self._cluster_scan.page(request)

    async def _invalidate(self, kind: Kind, pattern: str, context: Context) -> Invalidated:
        with self._admission:
            return await self._node.invalidations.invalidate(
                kind, pattern, time_left_ms(context, self._default_timeout_ms)
            )

    async def _read(self, reads: Sequence[ops.Get], wait_ms: int, context: Context) -> list[Answer]:
        """The answers, in order. Callers who wait for what others load do not count as in flight."""
        timeout_ms = time_left_ms(context, self._default_timeout_ms)
        with self._admission:
            answers = await self._node.execute(reads, timeout_ms=timeout_ms)
        return await self._node.await_fills(
            reads, answers, wait_ms, time_left_ms(context, self._default_timeout_ms)
        )

    async def _execute(self, operation: Operation, context: Context) -> Any:
        """The operation's result; its class follows from the operation's."""
        with self._admission:
            [answer] = await self._node.execute(
                (operation,), timeout_ms=time_left_ms(context, self._default_timeout_ms)
            )
        if isinstance(answer, CacheServiceError):
            raise answer
        return answer

    async def _execute_batch(
        self, field: str, items: Sequence[Any], to_operation: Callable[[Any], Operation], context: Context
    ) -> list[Answer]:
        """The answers, in order; an element that is out of bounds has its error, and the others go on."""
        decode.batch_size(field, items)
        batch = decode.Decoded(items, to_operation, field)
        with self._admission:
            answers = await self._node.execute(
                batch.operations, timeout_ms=time_left_ms(context, self._default_timeout_ms)
            )
        return batch.with_refusals(answers)
