"""The state machine by itself: each event, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.errors import ClusterIdMismatch, NodeIdMismatch
from cacheservice.membership import Member, Membership, MembershipConfig, State
from cacheservice.membership.messages import (
    Ack,
    Changed,
    Leave,
    Message,
    Output,
    PeerFailed,
    Ping,
    PingRequest,
    Received,
    SeedsResolved,
    Send,
    Sync,
    Timer,
)

CONFIG = MembershipConfig(cluster_id="test")
START = 1_000_000

MEMBERS = st.builds(
    Member,
    node_id=st.just("x"),
    address=st.sampled_from(["h:1", "h:2"]),
    state=st.sampled_from(State),
    zone=st.sampled_from(["", "z"]),
    epoch=st.integers(0, 2),
    incarnation=st.integers(0, 2),
)


def later(one: Member, other: Member) -> Member:
    return one if one.supersedes(other) else other


@given(MEMBERS, MEMBERS, MEMBERS)
def test_taking_the_later_news_is_commutative_associative_and_idempotent(
    a: Member, b: Member, c: Member
) -> None:
    assert later(a, b) == later(b, a)
    assert later(later(a, b), c) == later(a, later(b, c))
    assert later(a, a) == a


def test_what_outranks_what() -> None:
    alive = Member("x", "h:1", epoch=1, incarnation=1)
    suspect, dead, left = (alive.with_state(state) for state in (State.SUSPECT, State.DEAD, State.LEFT))
    refuted = replace(alive, incarnation=2)
    restarted = replace(alive, epoch=2, incarnation=0, address="h:2")
    ranking = [alive, suspect, dead, left, refuted, restarted]
    for lower, higher in pairwise(ranking):
        assert higher.supersedes(lower)
        assert not lower.supersedes(higher)


class Harness:
    """A core named "me" that hears what the test tells it."""

    def __init__(self, *peers: str, seed: int = 1) -> None:
        self.now = START
        self.core = Membership(Member("me", "me:1", epoch=5), CONFIG, Random(seed), self.now)
        for peer in peers:
            self.hear(peer)

    def hear(self, node_id: str, body: object = None, *rumours: Member, **sender: object) -> list[Output]:
        described = replace(Member(node_id, f"{node_id}:1", epoch=1), **sender)  # type: ignore[arg-type]
        message = Message(body, rumours)  # type: ignore[arg-type]
        return self.core.handle(Received("test", described, "me", message), self.now)

    def tick(self) -> list[Output]:
        """Goes to the next timer."""
        self.now = max(self.now, self.core.next_timer())
        return self.core.handle(Timer(), self.now)

    def tick_until(self, ms: int) -> list[Output]:
        """Everything of the next `ms` milliseconds."""
        end = self.now + ms
        outputs: list[Output] = []
        while self.core.next_timer() <= end:
            outputs += self.tick()
        self.now = end
        return outputs

    def state(self, node_id: str) -> State:
        return {member.node_id: member.state for member in self.core.members}[node_id]


def sent(outputs: list[Output], kind: type) -> list[Send]:
    return [
        output for output in outputs if isinstance(output, Send) and isinstance(output.message.body, kind)
    ]


def test_seeds_are_asked_until_one_answers() -> None:
    harness = Harness()
    outputs = harness.core.handle(SeedsResolved(("s1:1", "s2:1")), harness.now)
    assert {send.address for send in sent(outputs, Sync)} == {"s1:1", "s2:1"}
    asked_again = sent(harness.tick_until(5_000), Sync)
    assert len(asked_again) >= 2 * 5_000 // (2 * CONFIG.join_interval_ms)
    assert not harness.core.has_joined
    harness.hear("s1", Sync((Member("s2", "s2:1", epoch=1),), reply_wanted=False))
    assert harness.core.has_joined
    assert [member.node_id for member in harness.core.members] == ["me", "s1", "s2"]
    assert len(sent(harness.tick_until(5_000), Sync)) <= 1


def test_a_ping_is_answered() -> None:
    [ack] = sent(Harness("a").hear("a", Ping(7)), Ack)
    assert (ack.address, ack.to_node, ack.message.body) == ("a:1", "a", Ack(7))


def test_everybody_is_probed_in_turn() -> None:
    harness = Harness("a", "b", "c")
    probed: list[str] = []
    while len(probed) < 6:
        for ping in sent(harness.tick(), Ping):
            probed.append(ping.to_node)
            assert isinstance(ping.message.body, Ping)
            harness.hear(ping.to_node, Ack(ping.message.body.sequence))
    assert sorted(probed[:3]) == sorted(probed[3:]) == ["a", "b", "c"]


def test_a_silent_member_is_probed_by_others_then_suspected_then_dead() -> None:
    harness = Harness("a", "b", "c")
    outputs = harness.core.handle(PeerFailed("a"), harness.now)
    assert [ping.to_node for ping in sent(outputs, Ping)] == ["a"]
    asked = sent(harness.tick_until(CONFIG.probe_timeout_ms), PingRequest)
    assert {request.to_node for request in asked} == {"b", "c"}
    assert all(isinstance(r.message.body, PingRequest) and r.message.body.node_id == "a" for r in asked)
    harness.tick_until(CONFIG.probe_interval_ms - CONFIG.probe_timeout_ms)
    assert harness.state("a") is State.SUSPECT
    suspicion_ms = CONFIG.suspicion_multiplier * CONFIG.probe_interval_ms
    answer_for_others(harness, suspicion_ms - 1)
    assert harness.state("a") is State.SUSPECT
    answer_for_others(harness, 1)
    assert harness.state("a") is State.DEAD
    assert harness.state("b") is harness.state("c") is State.ALIVE


def answer_for_others(harness: Harness, ms: int) -> None:
    """Lets time pass while everybody but a answers probes."""
    end = harness.now + ms
    while harness.core.next_timer() <= end:
        for ping in sent(harness.tick(), Ping):
            assert isinstance(ping.message.body, Ping)
            if ping.to_node != "a":
                harness.hear(ping.to_node, Ack(ping.message.body.sequence))
    harness.now = end


def test_an_indirect_answer_clears_the_probe() -> None:
    harness = Harness("a", "b")
    [ping] = sent(harness.core.handle(PeerFailed("a"), harness.now), Ping)
    harness.tick_until(CONFIG.probe_timeout_ms)
    assert isinstance(ping.message.body, Ping)
    harness.hear("b", Ack(ping.message.body.sequence))
    harness.tick_until(CONFIG.probe_interval_ms - CONFIG.probe_timeout_ms - 1)
    assert harness.state("a") is State.ALIVE


def test_a_helper_probes_and_passes_the_answer_on() -> None:
    harness = Harness("a", "b")
    [ping] = sent(harness.hear("a", PingRequest(9, "b", "b:1")), Ping)
    assert ping.address == "b:1"
    assert isinstance(ping.message.body, Ping)
    [ack] = sent(harness.hear("b", Ack(ping.message.body.sequence)), Ack)
    assert (ack.to_node, ack.message.body) == ("a", Ack(9))


def test_suspicion_of_oneself_is_refuted() -> None:
    harness = Harness("a")
    suspected = harness.core.local.with_state(State.SUSPECT)
    outputs = harness.hear("a", Ping(1), suspected)
    assert harness.core.local.state is State.ALIVE
    assert harness.core.local.incarnation == 1
    [ack] = sent(outputs, Ack)
    assert harness.core.local in ack.message.rumours


def test_a_suspect_that_refutes_is_alive_again() -> None:
    harness = Harness("a", "b")
    suspect = Member("a", "a:1", State.SUSPECT, epoch=1)
    harness.hear("b", None, suspect)
    assert harness.state("a") is State.SUSPECT
    harness.hear("b", None, replace(suspect, state=State.ALIVE, incarnation=1))
    assert harness.state("a") is State.ALIVE
    suspicion_ms = CONFIG.suspicion_multiplier * CONFIG.probe_interval_ms
    end = harness.now + 2 * suspicion_ms
    while harness.now < end:
        for ping in sent(harness.tick(), Ping):
            assert isinstance(ping.message.body, Ping)
            harness.hear(ping.to_node, Ack(ping.message.body.sequence), incarnation=1)
    assert harness.state("a") is State.ALIVE


def test_who_is_wrongly_dead_is_told_so() -> None:
    harness = Harness("a", "b")
    harness.hear("b", None, Member("a", "a:1", State.DEAD, epoch=1))
    [ack] = sent(harness.hear("a", Ping(1)), Ack)
    assert Member("a", "a:1", State.DEAD, epoch=1) in ack.message.rumours
    harness.hear("a", None, incarnation=1)
    assert harness.state("a") is State.ALIVE


def test_a_restart_under_the_same_name_takes_the_new_address_at_once() -> None:
    harness = Harness("a")
    outputs = harness.hear("a", None, epoch=2, address="elsewhere:1")
    [change] = [output for output in outputs if isinstance(output, Changed)]
    assert (change.member.address, change.before) == ("elsewhere:1", State.ALIVE)


def test_a_restart_with_a_clock_behind_outdoes_its_former_life() -> None:
    harness = Harness("a")
    former = replace(harness.core.local, epoch=9, incarnation=4, state=State.DEAD, address="former:1")
    harness.hear("a", None, former)
    assert harness.core.local.epoch == 10
    assert harness.core.local.address == "me:1"


def test_leaving_is_told_to_everybody_and_is_no_death() -> None:
    harness = Harness("a", "b")
    outputs = harness.core.handle(Leave(final=False), harness.now)
    told = [output for output in outputs if isinstance(output, Send)]
    assert {send.to_node for send in told} == {"a", "b"}
    assert harness.state("me") is State.LEAVING
    assert harness.core.local.is_in_ring
    harness.core.handle(Leave(final=True), harness.now)
    assert harness.state("me") is State.LEFT
    harness.hear("a", None, harness.core.local.with_state(State.DEAD))
    assert harness.state("me") is State.LEFT


def test_another_cluster_is_refused_and_changes_nothing() -> None:
    harness = Harness()
    stranger = Received("other", Member("s", "s:1"), "me", Message())
    with pytest.raises(ClusterIdMismatch):
        harness.core.handle(stranger, harness.now)
    with pytest.raises(NodeIdMismatch):
        harness.core.handle(Received("test", Member("s", "s:1"), "you", Message()), harness.now)
    assert [member.node_id for member in harness.core.members] == ["me"]


def test_the_gone_are_forgotten_in_the_end_and_never_taken_in_anew() -> None:
    harness = Harness("a", "b")
    harness.hear("b", None, Member("a", "a:1", State.LEFT, epoch=1))
    harness.now += CONFIG.dead_retention_ms + 1
    harness.hear("b")
    harness.tick_until(2 * CONFIG.sync_interval_ms)
    assert "a" not in {member.node_id for member in harness.core.members}
    harness.hear("b", None, Member("a", "a:1", State.LEFT, epoch=1))
    assert "a" not in {member.node_id for member in harness.core.members}


def test_the_view_is_bounded() -> None:
    config = MembershipConfig(cluster_id="test", max_members=3)
    core = Membership(Member("me", "me:1"), config, Random(1), 0)
    for number in range(5):
        core.handle(Received("test", Member(f"n{number}", f"n{number}:1"), "me", Message()), 0)
    assert len(core.members) == 3


def test_each_rumour_is_told_a_bounded_number_of_times() -> None:
    harness = Harness("a", "b")
    outputs = harness.tick_until(60_000)
    me = [send for send in outputs if isinstance(send, Send) and harness.core.local in send.message.rumours]
    assert 1 <= len(me) <= CONFIG.retransmit_multiplier
