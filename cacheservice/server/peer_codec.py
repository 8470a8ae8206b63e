"""Operations, their results and fences between nodes: the sending and the receiving side of each."""

from __future__ import annotations

from cacheservice.node.fences import Fence, Kind
from cacheservice.node.leases import Failure, Lease
from cacheservice.node.operations import (
    Answer,
    Delete,
    DeleteOutcome,
    DeleteResult,
    Get,
    GetOutcome,
    GetResult,
    Increment,
    IncrementResult,
    NotStored,
    Operation,
    Release,
    ReleaseResult,
    Set,
    SetResult,
    Touch,
    TouchResult,
)
from cacheservice.v1 import cache_pb2, peer_pb2
from cacheservice.wire import from_status


def operation_to_proto(operation: Operation) -> peer_pb2.Operation:
    match operation:
        case Get(key, known_version, nearest, lease):
            get = cache_pb2.GetRequest(key=key, known_version=known_version or None)
            if nearest:
                get.read_preference = cache_pb2.READ_PREFERENCE_NEAREST
            if lease:
                get.lease.SetInParent()
            return peer_pb2.Operation(get=get)
        case Set():
            request = cache_pb2.SetRequest(
                key=operation.key,
                value=operation.value,
                ttl_seconds=operation.ttl_ms / 1_000,
                stale_seconds=operation.stale_ms / 1_000,
                load_seconds=operation.load_ms / 1_000,
                tags=operation.tags,
                min_replicas=operation.min_replicas,
                lease_token=operation.lease_token,
                stale_if_error_seconds=operation.stale_if_error_ms / 1_000,
                absent=operation.absent,
            )
            if operation.if_absent:
                request.if_absent = True
            elif operation.if_present:
                request.if_present = True
            elif operation.if_version:
                request.if_version = operation.if_version
            return peer_pb2.Operation(set=request)
        case Delete(key, if_version):
            return peer_pb2.Operation(delete=cache_pb2.DeleteRequest(key=key, if_version=if_version or None))
        case Touch(key, ttl_ms):
            return peer_pb2.Operation(touch=cache_pb2.TouchRequest(key=key, ttl_seconds=ttl_ms / 1_000))
        case Increment(key, delta, initial, ttl_ms):
            return peer_pb2.Operation(
                increment=cache_pb2.IncrementRequest(
                    key=key, delta=delta, initial=initial, ttl_seconds=ttl_ms / 1_000
                )
            )
        case Release(key, lease_token, error):
            return peer_pb2.Operation(
                release=cache_pb2.ReleaseLeaseRequest(key=key, lease_token=lease_token, error=error)
            )


def answer_from_proto(result: peer_pb2.OperationResult) -> Answer:
    match result.WhichOneof("result"):
        case "get":
            return _get_from_proto(result.get)
        case "set":
            stored = result.set.outcome == cache_pb2.SET_OUTCOME_STORED
            reason = NotStored(result.set.reason) if result.set.reason else None
            return SetResult(stored, result.set.version, result.set.replicas, reason)
        case "delete":
            return DeleteResult(DeleteOutcome(result.delete.outcome), result.delete.version)
        case "touch":
            touched = result.touch.outcome == cache_pb2.TOUCH_OUTCOME_TOUCHED
            return TouchResult(touched, result.touch.version)
        case "increment":
            return IncrementResult(result.increment.value, result.increment.version)
        case "release":
            released = result.release.outcome == cache_pb2.RELEASE_LEASE_OUTCOME_RELEASED
            has_fallback = result.release.HasField("fallback")
            return ReleaseResult(released, _get_from_proto(result.release.fallback) if has_fallback else None)
        case _:
            return from_status(result.error)


def _get_from_proto(get: cache_pb2.GetResponse) -> GetResult:
    failure = get.load_failure
    return GetResult(
        GetOutcome(get.outcome),
        get.value,
        get.version,
        round(get.ttl_seconds * 1_000),
        round(get.age_seconds * 1_000),
        get.served_by,
        get.hops,
        get.from_replica,
        Lease(get.lease_token, get.lease_ms) if get.lease_token else None,
        Failure(failure.error, failure.retry_after_ms) if get.HasField("load_failure") else None,
        get.hot_ms,
    )


def fence_to_proto(fence: Fence) -> peer_pb2.Fence:
    if fence.kind is Kind.TAG:
        return peer_pb2.Fence(tag=fence.pattern, version=fence.version)
    return peer_pb2.Fence(prefix=fence.pattern, version=fence.version)


def fence_from_proto(fence: peer_pb2.Fence) -> Fence:
    if fence.HasField("tag"):
        return Fence(Kind.TAG, fence.tag, fence.version)
    return Fence(Kind.PREFIX, fence.prefix, fence.version)
