"""Operations, their results and replicas between nodes: the sending and the receiving side of each."""

from __future__ import annotations

from cacheservice.node.fences import Fence, Kind
from cacheservice.node.leases import Failure, Lease
from cacheservice.node.operations import (
    Answer,
    Change,
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
from cacheservice.store import Entry
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
    )


def change_to_proto(change: Change, now: int) -> peer_pb2.ReplicaEntry:
    entry = change.entry
    if entry is None:
        return peer_pb2.ReplicaEntry(key=change.key, version=change.version, removed=True)
    return peer_pb2.ReplicaEntry(
        key=change.key,
        version=change.version,
        value=entry.value,
        ttl_ms=max(0, entry.expires - now) if entry.expires else 0,
        stale=bool(entry.expires) and entry.expires <= now,
        stale_ms=_left(entry, entry.stale_ms, now),
        stale_if_error_ms=_left(entry, entry.stale_if_error_ms, now),
        absent=entry.absent,
        load_ms=entry.load_ms,
        age_ms=max(0, now - entry.created),
        tags=entry.tags,
    )


def _left(entry: Entry, past_expiry_ms: int, now: int) -> int:
    """What is left of a window that begins when the entry expires."""
    return past_expiry_ms if entry.is_fresh(now) else max(0, entry.expires + past_expiry_ms - now)


def change_from_proto(replica: peer_pb2.ReplicaEntry, now: int) -> Change:
    if replica.removed:
        return Change(replica.key, replica.version, None)
    entry = Entry(
        replica.value,
        replica.version,
        created=now - replica.age_ms,
        expires=now + replica.ttl_ms if replica.ttl_ms or replica.stale else 0,
        stale_ms=replica.stale_ms,
        load_ms=replica.load_ms,
        tags=tuple(replica.tags),
        stale_if_error_ms=replica.stale_if_error_ms,
        absent=replica.absent,
    )
    return Change(replica.key, replica.version, entry)


def fence_to_proto(fence: Fence) -> peer_pb2.Fence:
    if fence.kind is Kind.TAG:
        return peer_pb2.Fence(tag=fence.pattern, version=fence.version)
    return peer_pb2.Fence(prefix=fence.pattern, version=fence.version)


def fence_from_proto(fence: peer_pb2.Fence) -> Fence:
    if fence.HasField("tag"):
        return Fence(Kind.TAG, fence.tag, fence.version)
    return Fence(Kind.PREFIX, fence.prefix, fence.version)
