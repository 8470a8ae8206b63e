"""Members and messages come out of the codec as they went in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.errors import InvalidArgument
from cacheservice.membership import Member, Phase, State
from cacheservice.membership.messages import Message, Ping, Rumour, Sync
from cacheservice.server import gossip_codec
from cacheservice.v1 import cluster_pb2, peer_pb2

NAMES = st.text(max_size=20)
COUNTERS = st.integers(0, 2**62)
MEMBERS = st.builds(
    Member,
    node_id=st.text(min_size=1, max_size=20),
    address=st.sampled_from(["h:1", "[::1]:7700"]),
    state=st.sampled_from(State),
    phase=st.sampled_from(Phase),
    zone=NAMES,
    weight=st.integers(1, 100),
    version=NAMES,
    epoch=COUNTERS,
    incarnation=COUNTERS,
    absences=COUNTERS,
    host=NAMES,
)


@given(MEMBERS)
def test_members(member: Member) -> None:
    wire = gossip_codec.member_to_proto(member).SerializeToString()
    assert gossip_codec.member_from_proto(cluster_pb2.Member.FromString(wire)) == member


@given(st.lists(MEMBERS, max_size=3), st.lists(MEMBERS, max_size=3), st.integers(0, 2**64 - 1))
def test_messages(known: list[Member], told: list[Member], digest: int) -> None:
    rumours = tuple(Rumour(member, frozenset({"n1", "n2"})) for member in told)
    for body in (Sync(tuple(known), reply_wanted=True), Ping(7), None):
        message = Message(body, rumours, digest)
        wire = gossip_codec.message_to_proto(message).SerializeToString()
        assert gossip_codec.message_from_proto(peer_pb2.GossipMessage.FromString(wire)) == message


def test_a_host_that_is_too_long_is_refused() -> None:
    member = gossip_codec.member_to_proto(Member("n1", "h:1", host="h" * 301))
    with pytest.raises(InvalidArgument, match="member"):
        gossip_codec.member_from_proto(member)
