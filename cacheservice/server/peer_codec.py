"""Operations, their results and replicas between nodes: the sending and the receiving side of each."""

from __future__ import annotations

from cacheservice.node.fences import Fence, Kind
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
    Operation,
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
        case Get(key, known_version, nearest):
            get = cache_pb2.GetRequest(key=key, known_version=known_version or None)
            if nearest:
                get.read_preference = cache_pb2.READ_PREFERENCE_NEAREST
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


def answer_from_proto(result: peer_pb2.OperationResult) -> Answer:
    match result.WhichOneof("result"):
        case "get":
            get = result.get
            return GetResult(
                GetOutcome(get.outcome),
                get.value,
                get.version,
                round(get.ttl_seconds * 1_000),
                round(get.age_seconds * 1_000),
                get.served_by,
                get.hops,
                get.from_replica,
            )
        case "set":
            stored = result.set.outcome == cache_pb2.SET_OUTCOME_STORED
            return SetResult(stored, result.set.version, result.set.replicas)
        case "delete":
            return DeleteResult(DeleteOutcome(result.delete.outcome), result.delete.version)
        case "touch":
            touched = result.touch.outcome == cache_pb2.TOUCH_OUTCOME_TOUCHED
            return TouchResult(touched, result.touch.version)
        case "increment":
            return IncrementResult(result.increment.value, result.increment.version)
        case _:
            return from_status(result.error)


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
        stale_ms=entry.stale_ms if entry.is_fresh(now) else max(0, entry.expires + entry.stale_ms - now),
        load_ms=entry.load_ms,
        age_ms=max(0, now - entry.created),
        tags=entry.tags,
    )


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
