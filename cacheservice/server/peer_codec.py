"""Operations, their results and replicas between nodes: the sending and the receiving side of each."""

from __future__ import annotations

from collections.abc import Iterable

from cacheservice.errors import InvalidArgument
from cacheservice.membership import Member, State
from cacheservice.membership import messages as gossip
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
from cacheservice.v1 import cache_pb2, cluster_pb2, peer_pb2
from cacheservice.wire import from_status

_MAX_NAME = 300
_MAX_COUNTER = 2**62
_STATES = frozenset(state.value for state in State)


def operation_to_proto(operation: Operation) -> peer_pb2.Operation:
    match operation:
        case Get(key, known_version):
            get = cache_pb2.GetRequest(key=key, known_version=known_version or None)
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


def member_to_proto(member: Member) -> cluster_pb2.Member:
    return cluster_pb2.Member(
        node_id=member.node_id,
        address=member.address,
        state=member.state.value,  # type: ignore[arg-type]
        zone=member.zone,
        weight=member.weight,
        version=member.version,
        epoch=member.epoch,
        incarnation=member.incarnation,
    )


def member_from_proto(member: cluster_pb2.Member) -> Member:
    """InvalidArgument when it lacks what every member has, or counts beyond what one could reach."""
    if not _is_sound(member):
        raise InvalidArgument.of("member", "a node id, an address, a state and counters", repr(str(member)))
    return Member(
        member.node_id,
        member.address,
        State(member.state),
        member.zone,
        max(1, min(member.weight, 100)),
        member.version,
        member.epoch,
        member.incarnation,
    )


def _is_sound(member: cluster_pb2.Member) -> bool:
    return (
        member.state in _STATES
        and 0 < len(member.node_id) <= _MAX_NAME
        and 0 < len(member.address) <= _MAX_NAME
        and len(member.zone) <= _MAX_NAME
        and len(member.version) <= _MAX_NAME
        and max(member.epoch, member.incarnation) <= _MAX_COUNTER
    )


def message_to_proto(message: gossip.Message) -> peer_pb2.GossipMessage:
    proto = peer_pb2.GossipMessage(
        rumours=[peer_pb2.Rumour(member=member_to_proto(member)) for member in message.rumours]
    )
    match message.body:
        case gossip.Ping(sequence):
            proto.ping.sequence = sequence
        case gossip.Ack(sequence):
            proto.ack.sequence = sequence
        case gossip.PingRequest(sequence, node_id, address):
            proto.ping_request.sequence = sequence
            proto.ping_request.node_id = node_id
            proto.ping_request.address = address
        case gossip.Sync(members, reply_wanted):
            proto.sync.members.extend(map(member_to_proto, members))
            proto.sync.reply_wanted = reply_wanted
        case None:
            pass
    return proto


def message_from_proto(proto: peer_pb2.GossipMessage) -> gossip.Message:
    rumours = _members(rumour.member for rumour in proto.rumours)
    body: gossip.Body
    match proto.WhichOneof("message"):
        case "ping":
            body = gossip.Ping(proto.ping.sequence)
        case "ack":
            body = gossip.Ack(proto.ack.sequence)
        case "ping_request":
            asked = proto.ping_request
            body = gossip.PingRequest(asked.sequence, asked.node_id, asked.address)
        case "sync":
            body = gossip.Sync(_members(proto.sync.members), proto.sync.reply_wanted)
        case _:
            body = None
    return gossip.Message(body, rumours)


def _members(members: Iterable[cluster_pb2.Member]) -> tuple[Member, ...]:
    """Those that this version understands: a state that a later one adds must not spoil the others."""
    return tuple(member_from_proto(member) for member in members if _is_sound(member))
