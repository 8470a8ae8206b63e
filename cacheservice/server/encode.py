"""Answers into responses, for clients and for peers."""

from __future__ import annotations

from collections.abc import Sequence

from cacheservice.errors import AnswerTooLarge, CacheServiceError
from cacheservice.node.leases import Failure
from cacheservice.node.operations import (
    Answer,
    DeleteResult,
    GetResult,
    IncrementResult,
    ReleaseResult,
    SetResult,
    TouchResult,
)
from cacheservice.node.sweeps import Page
from cacheservice.server.page_token import to_token
from cacheservice.store import Entry
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1 import peer_pb2
from cacheservice.wire import to_status

_FRAMING_BYTES = 256
"""What an answer may take beside its value, or the error in its place."""


def get(result: GetResult, ring_epoch: int = 0) -> pb.GetResponse:
    response = pb.GetResponse(
        outcome=result.outcome.value,  # type: ignore[arg-type]
        value=result.value,
        version=result.version,
        age_seconds=result.age_ms / 1_000,
        served_by=result.served_by,
        ring_epoch=ring_epoch,
    )
    # To name a field takes time even where it stays empty.
    if result.ttl_ms:
        response.ttl_seconds = result.ttl_ms / 1_000
    if result.hops:
        response.hops = result.hops
    if result.from_replica:
        response.from_replica = True
    if result.hot_ms:
        response.hot_ms = result.hot_ms
    if result.lease is not None:
        response.lease_token = result.lease.token
        response.lease_ms = result.lease.lease_ms
    if result.load_failure is not None:
        response.load_failure.CopyFrom(load_failure(result.load_failure))
    return response


def load_failure(failure: Failure) -> pb.LoadFailure:
    return pb.LoadFailure(error=failure.error, retry_after_ms=failure.retry_after_ms)


def release(result: ReleaseResult, ring_epoch: int = 0) -> pb.ReleaseLeaseResponse:
    return pb.ReleaseLeaseResponse(
        outcome=pb.RELEASE_LEASE_OUTCOME_RELEASED if result.released else pb.RELEASE_LEASE_OUTCOME_UNKNOWN,
        fallback=get(result.fallback) if result.fallback else None,
        ring_epoch=ring_epoch,
    )


def set_(result: SetResult, ring_epoch: int = 0) -> pb.SetResponse:
    return pb.SetResponse(
        outcome=pb.SET_OUTCOME_STORED if result.stored else pb.SET_OUTCOME_NOT_STORED,
        version=result.version,
        replicas=result.replicas,
        reason=result.reason.value if result.reason else None,  # type: ignore[arg-type]
        ring_epoch=ring_epoch,
    )


def delete(result: DeleteResult, ring_epoch: int = 0) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        outcome=result.outcome.value,  # type: ignore[arg-type]
        version=result.version,
        ring_epoch=ring_epoch,
    )


def touch(result: TouchResult, ring_epoch: int = 0) -> pb.TouchResponse:
    return pb.TouchResponse(
        outcome=pb.TOUCH_OUTCOME_TOUCHED if result.touched else pb.TOUCH_OUTCOME_NOT_FOUND,
        version=result.version,
        ring_epoch=ring_epoch,
    )


def increment(result: IncrementResult, ring_epoch: int = 0) -> pb.IncrementResponse:
    return pb.IncrementResponse(value=result.value, version=result.version, ring_epoch=ring_epoch)


def operation_result(answer: Answer) -> peer_pb2.OperationResult:
    match answer:
        case GetResult():
            return peer_pb2.OperationResult(get=get(answer))
        case SetResult():
            return peer_pb2.OperationResult(set=set_(answer))
        case DeleteResult():
            return peer_pb2.OperationResult(delete=delete(answer))
        case TouchResult():
            return peer_pb2.OperationResult(touch=touch(answer))
        case IncrementResult():
            return peer_pb2.OperationResult(increment=increment(answer))
        case ReleaseResult():
            return peer_pb2.OperationResult(release=release(answer))
        case CacheServiceError():
            return peer_pb2.OperationResult(error=to_status(answer))


def page(page: Page, ring_epoch: int, *, with_values: bool) -> pb.ScanResponse:
    return pb.ScanResponse(
        entries=[_entry_info(key, entry, page.now, with_values) for key, entry in page.entries],
        next_page_token=to_token(page.next_position),
        ring_epoch=ring_epoch,
    )


def _entry_info(key: str, entry: Entry, now: int, with_value: bool) -> pb.EntryInfo:
    return pb.EntryInfo(
        key=key,
        value_bytes=len(entry.value),
        version=entry.version,
        ttl_seconds=max(0, entry.expires - now) / 1_000 if entry.expires else 0,
        age_seconds=max(0, now - entry.created) / 1_000,
        stale_seconds=entry.stale_ms / 1_000,
        load_seconds=entry.load_ms / 1_000,
        tags=entry.tags,
        value=entry.value if with_value else None,
        stale_if_error_seconds=entry.stale_if_error_ms / 1_000,
        absent=entry.absent,
    )


def within(answers: Sequence[Answer], max_bytes: int) -> list[Answer]:
    """The answers, of which values beyond `max_bytes` in all are replaced by an error; never the first.

    10,000 keys may hold more than a message, or this process, can carry.
    """
    left = max_bytes - _FRAMING_BYTES * len(answers)
    kept: list[Answer] = []
    spent = False
    for answer in answers:
        size = len(answer.value) if isinstance(answer, GetResult) else 0
        if size > left and spent:
            kept.append(AnswerTooLarge("the values exceed one message; ask for this key again"))
        else:
            left -= size
            spent = spent or size > 0
            kept.append(answer)
    return kept
