"""Members and what they say to each other: the sending and the receiving side of each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from cacheservice.address import split_address
from cacheservice.errors import InvalidArgument
from cacheservice.membership import Member, Phase, State
from cacheservice.membership import messages as gossip
from cacheservice.v1 import cluster_pb2, peer_pb2

_MAX_NAME = 300
_MAX_COUNTER = 2**62
_MAX_ACCUSERS = 16

_STATES = {
    cluster_pb2.MEMBER_STATE_ALIVE: State.ALIVE,
    cluster_pb2.MEMBER_STATE_JOINING: State.ALIVE,
    cluster_pb2.MEMBER_STATE_WARMING: State.ALIVE,
    cluster_pb2.MEMBER_STATE_LEAVING: State.ALIVE,
    cluster_pb2.MEMBER_STATE_SUSPECT: State.SUSPECT,
    cluster_pb2.MEMBER_STATE_LEFT: State.LEFT,
    cluster_pb2.MEMBER_STATE_DEAD: State.DEAD,
}
_PHASES = {
    cluster_pb2.MEMBER_PHASE_UNSPECIFIED: Phase.SERVING,
    cluster_pb2.MEMBER_PHASE_JOINING: Phase.JOINING,
    cluster_pb2.MEMBER_PHASE_WARMING: Phase.WARMING,
    cluster_pb2.MEMBER_PHASE_SERVING: Phase.SERVING,
    cluster_pb2.MEMBER_PHASE_LEAVING: Phase.LEAVING,
}


def member_to_proto(member: Member, reason: str = "") -> cluster_pb2.Member:
    return cluster_pb2.Member(
        node_id=member.node_id,
        address=member.address,
        state=cluster_pb2.MemberState.Value(f"MEMBER_STATE_{member.label.upper()}"),
        zone=member.zone,
        host=member.host,
        weight=member.weight,
        version=member.version,
        epoch=member.epoch,
        incarnation=member.incarnation,
        absences=member.absences,
        phase=member.phase.value,  # type: ignore[arg-type]
        reason=reason,
    )


def member_from_proto(member: cluster_pb2.Member) -> Member:
    """InvalidArgument when it lacks what every member has, or counts beyond what one could reach."""
    if not _is_sound(member):
        raise InvalidArgument.of(
            "member", "a node id, an address, a state, a phase and counters", repr(str(member))
        )
    return Member(
        member.node_id,
        member.address,
        _STATES[member.state],
        _PHASES[member.phase],
        member.zone,
        max(1, min(member.weight, 100)),
        member.version,
        member.epoch,
        member.incarnation,
        member.absences,
        member.host,
    )


def message_to_proto(message: gossip.Message) -> peer_pb2.GossipMessage:
    proto = peer_pb2.GossipMessage(rumours=map(_rumour_to_proto, message.rumours), digest=message.digest)
    match message.body:
        case gossip.Ping(sequence):
            proto.ping.sequence = sequence
        case gossip.Ack(sequence):
            proto.ack.sequence = sequence
        case gossip.Nack(sequence):
            proto.nack.sequence = sequence
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
    rumours = tuple(_rumours(proto.rumours))
    body: gossip.Body
    match proto.WhichOneof("message"):
        case "ping":
            body = gossip.Ping(proto.ping.sequence)
        case "ack":
            body = gossip.Ack(proto.ack.sequence)
        case "nack":
            body = gossip.Nack(proto.nack.sequence)
        case "ping_request":
            asked = proto.ping_request
            if not _is_address(asked.address) or len(asked.node_id) > _MAX_NAME:
                raise InvalidArgument.of("ping_request", "a node id and HOST:PORT", repr(str(asked)))
            body = gossip.PingRequest(asked.sequence, asked.node_id, asked.address)
        case "sync":
            members = tuple(map(member_from_proto, filter(_is_sound, proto.sync.members)))
            body = gossip.Sync(members, proto.sync.reply_wanted)
        case _:
            body = None
    return gossip.Message(body, rumours, proto.digest)


def _rumour_to_proto(rumour: gossip.Rumour) -> peer_pb2.Rumour:
    return peer_pb2.Rumour(member=member_to_proto(rumour.member), accusers=sorted(rumour.accusers))


def _rumours(rumours: Iterable[peer_pb2.Rumour]) -> Iterable[gossip.Rumour]:
    """Those that this version understands: a state that a later one adds must not spoil the others."""
    for rumour in rumours:
        if _is_sound(rumour.member):
            accusers = [name for name in rumour.accusers[:_MAX_ACCUSERS] if len(name) <= _MAX_NAME]
            yield gossip.Rumour(member_from_proto(rumour.member), frozenset(accusers))


@lru_cache(maxsize=10_000)
def _is_address(address: str) -> bool:
    try:
        split_address(address)
    except ValueError:
        return False
    return len(address) <= _MAX_NAME


def _is_sound(member: cluster_pb2.Member) -> bool:
    return (
        member.state in _STATES
        and member.phase in _PHASES
        and 0 < len(member.node_id) <= _MAX_NAME
        and _is_address(member.address)
        and len(member.zone) <= _MAX_NAME
        and len(member.host) <= _MAX_NAME
        and len(member.version) <= _MAX_NAME
        and max(member.epoch, member.incarnation, member.absences) <= _MAX_COUNTER
    )
