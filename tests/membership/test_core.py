"""The state machine by itself: each event, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.errors import ClusterIdMismatch, NodeIdMismatch
from cacheservice.membership import Member, Membership, MembershipConfig, Phase, State
from cacheservice.membership.messages import (
    Ack,
    Changed,
    Leave,
    Message,
    Nack,
    NameTaken,
    Output,
    PeerDiffers,
    PeerFailed,
    Ping,
    PingRequest,
    Received,
    Refuted,
    Rumour,
    SeedsResolved,
    Send,
    SendFailed,
    Serve,
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
    phase=st.sampled_from(Phase),
    zone=st.sampled_from(["", "z"]),
    host=st.sampled_from(["", "h"]),
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

    def __init__(self, *peers: str, seed: int = 1, phase: Phase = Phase.SERVING, host: str = "") -> None:
        self.now = START
        self.silent: set[str] = set()
        """Who does not answer probes."""
        self.helps = True
        """Whether the others answer when asked to probe somebody."""
        self.agrees = True
        """Whether those who are heard have the same view."""
        self.core = Membership(
            Member("me", "me:1", phase=phase, epoch=5, host=host), CONFIG, Random(seed), self.now
        )
        for peer in peers:
            self.hear(peer)

    def hear(self, node_id: str, body: object = None, *rumours: Member, **sender: object) -> list[Output]:
        described = replace(Member(node_id, f"{node_id}:1", epoch=1), **sender)  # type: ignore[arg-type]
        told = tuple(map(Rumour, rumours))
        message = Message(body, told, self.core.digest if self.agrees else 0)  # type: ignore[arg-type]
        return self.core.handle(Received("test", described, "me", message), self.now)

    def tick(self) -> list[Output]:
        """Goes to the next timer."""
        self.now = max(self.now, self.core.next_timer())
        return self.core.handle(Timer(), self.now)

    def tick_until(self, ms: int) -> list[Output]:
        """Everything of the next `ms` milliseconds, with all but the silent answering probes."""
        end = self.now + ms
        outputs: list[Output] = []
        while self.core.next_timer() <= end:
            some = self.tick()
            outputs += some
            for output in some:
                if isinstance(output, Send) and output.to_node not in self.silent:
                    outputs += self.answer(output)
        self.now = end
        return outputs

    def answer(self, send: Send) -> list[Output]:
        known = self.core.get(send.to_node)
        match send.message.body:
            case Ping(sequence) if known is not None:
                return self.hear(send.to_node, Ack(sequence), incarnation=known.incarnation)
            case PingRequest(sequence, node_id, _) if self.helps:
                return self.hear(send.to_node, Nack(sequence) if node_id in self.silent else Ack(sequence))
        return []

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
    asked_again = sent(harness.tick_until(5 * CONFIG.join_interval_ms), Sync)
    assert len(asked_again) >= 2 * 2
    assert not harness.core.has_joined
    harness.hear("s1", Sync((Member("s2", "s2:1", epoch=1),), reply_wanted=False))
    assert harness.core.has_joined
    assert [member.node_id for member in harness.core.members] == ["me", "s1", "s2"]
    assert len(sent(harness.tick_until(5_000), Sync)) <= 1


def test_seeds_are_asked_until_one_answers_that_is_not_on_this_host() -> None:
    harness = Harness(host="h")
    harness.core.handle(SeedsResolved(("s1:1", "beside:1")), harness.now)
    harness.hear("beside", phase=Phase.JOINING, host="h")
    assert (harness.core.has_joined, harness.core.has_joined_others) == (True, False)
    harness.hear("beside", host="h", incarnation=1)
    assert harness.core.has_joined_others, "it owns keys, and so has waited for others long enough"
    asked_again = sent(harness.tick_until(5 * CONFIG.join_interval_ms), Sync)
    assert {send.address for send in asked_again} == {"s1:1"}
    assert len(asked_again) >= 2
    harness.hear("s1")
    assert len(sent(harness.tick_until(5_000), Sync)) <= 1


@pytest.mark.parametrize("host", ["", "h"])
def test_seeds_that_do_not_answer_are_asked_ever_more_rarely(host: str) -> None:
    harness = Harness(host=host)
    if host:
        harness.hear("beside", host=host)
    harness.core.handle(SeedsResolved(("s1:1",)), harness.now)
    first = [send for send in sent(harness.tick_until(60_000), Sync) if send.address == "s1:1"]
    assert 5 <= len(first) <= 20
    later = [send for send in sent(harness.tick_until(600_000), Sync) if send.address == "s1:1"]
    assert 600_000 // 2 <= len(later) * CONFIG.search_interval_ms <= 600_000 * 2
    # New addresses are a new hope.
    harness.core.handle(SeedsResolved(("s2:1",)), harness.now)
    assert len(sent(harness.tick_until(5 * CONFIG.join_interval_ms), Sync)) >= 2


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
    assert len(set(probed[::2])) == 1, "every second probe goes to the next on the circle"
    assert sorted(probed[1::2]) == ["a", "b", "c"]


def refutable_ms(members: int) -> int:
    """How long a suspect has whose silence is confirmed, and the round in which that is looked at."""
    return CONFIG.refutable_ms(members) + CONFIG.gossip_interval_ms


def begin_probe(harness: Harness, node_id: str) -> int:
    """Has the member probed; the sequence of the probe."""
    [ping] = sent(harness.core.handle(PeerFailed(node_id), harness.now), Ping)
    assert ping.to_node == node_id
    assert isinstance(ping.message.body, Ping)
    return ping.message.body.sequence


def test_a_silent_member_is_probed_by_others_then_suspected_then_dead() -> None:
    harness = Harness("a", "b", "c")
    harness.silent = {"a"}
    sequence = begin_probe(harness, "a")
    asked = sent(harness.tick_until(CONFIG.probe_timeout_ms), PingRequest)
    assert {request.to_node for request in asked} == {"b", "c"}
    assert all(request.message.body == PingRequest(sequence, "a", "a:1") for request in asked)
    assert harness.state("a") is State.SUSPECT, "all helpers have said that they get no answer either"
    harness.tick_until(CONFIG.refutable_ms(4) - 1)
    assert harness.state("a") is State.SUSPECT
    outputs = harness.tick_until(CONFIG.gossip_interval_ms)
    assert harness.state("a") is State.DEAD
    assert harness.state("b") is harness.state("c") is State.ALIVE
    [reason] = [output.reason for output in outputs if isinstance(output, Changed)]
    assert reason.startswith("silent to b, c, me, and did not refute that within ")


def test_without_the_word_of_a_helper_a_suspect_has_much_longer() -> None:
    harness = Harness("a", "b", "c")
    harness.silent = {"a"}
    harness.helps = False
    begin_probe(harness, "a")
    harness.tick_until(CONFIG.probe_interval_ms)
    assert harness.state("a") is State.SUSPECT
    harness.tick_until((CONFIG.doubtful_multiplier - 1) * CONFIG.refutable_ms(4))
    assert harness.state("a") is State.SUSPECT


def test_a_suspect_is_probed_again_and_again_and_told_of_it() -> None:
    harness = Harness(*"abcdefgh")
    harness.silent = {"a"}
    begin_probe(harness, "a")
    harness.tick_until(CONFIG.probe_interval_ms)
    suspect = Member("a", "a:1", State.SUSPECT, epoch=1)
    pings = [ping for ping in sent(harness.tick_until(3_500), Ping) if ping.to_node == "a"]
    assert len(pings) >= 2
    assert all(ping.message.rumours[0].member == suspect for ping in pings)


def test_a_node_that_nobody_answers_doubts_itself() -> None:
    harness = Harness("a", "b", "c")
    harness.silent = {"a", "b", "c"}
    assert harness.core.health == 0
    harness.tick_until(3 * CONFIG.probe_interval_ms)
    assert harness.core.health > 0


def test_one_that_was_accused_itself_does_not_condemn_on_its_own_word_alone() -> None:
    harness = Harness("a", "b", "c")
    harness.silent = {"a"}
    harness.helps = False
    longest = CONFIG.doubtful_multiplier * CONFIG.refutable_ms(4) + CONFIG.gossip_interval_ms
    begin_probe(harness, "a")
    harness.tick_until(longest - 1_000)
    harness.hear("b", None, harness.core.local.with_state(State.SUSPECT))
    harness.tick_until(2_000)
    assert harness.state("a") is State.SUSPECT
    harness.tick_until(longest)
    assert harness.state("a") is State.DEAD


def test_who_is_not_at_the_address_is_not_waited_for() -> None:
    harness = Harness("a", "b")
    begin_probe(harness, "a")
    [request] = sent(harness.core.handle(SendFailed("a"), harness.now), PingRequest)
    assert request.to_node == "b"


def test_the_word_of_others_shortens_a_suspicion() -> None:
    harness = Harness("a", "b", "c", "d", "e")
    harness.silent = {"a"}
    suspect = Member("a", "a:1", State.SUSPECT, epoch=1)
    [change] = [out for out in hear_rumour(harness, "b", suspect, "b") if isinstance(out, Changed)]
    assert change.reason == "silent to b"
    hear_rumour(harness, "c", suspect, "c", "d", "e")
    harness.tick_until(refutable_ms(6))
    assert harness.state("a") is State.DEAD


def test_nobody_dies_by_hearsay() -> None:
    harness = Harness("a", "b", "c", "d", "e")
    harness.silent = {"a"}
    harness.hear("b", None, Member("a", "a:1", State.DEAD, epoch=1))
    assert harness.state("a") is State.SUSPECT
    harness.tick_until(CONFIG.refutable_ms(6) - 1)
    assert harness.state("a") is State.SUSPECT
    harness.tick_until(CONFIG.gossip_interval_ms)
    assert harness.state("a") is State.DEAD


def hear_rumour(harness: Harness, teller: str, member: Member, *accusers: str) -> list[Output]:
    message = Message(None, (Rumour(member, frozenset(accusers)),), harness.core.digest)
    sender = Member(teller, f"{teller}:1", epoch=1)
    return harness.core.handle(Received("test", sender, "me", message), harness.now)


def test_time_that_this_process_did_not_run_counts_against_nobody() -> None:
    harness = Harness("a", "b", "c", "d")
    harness.silent = {"a"}
    hear_rumour(harness, "b", Member("a", "a:1", State.SUSPECT, epoch=1), "b", "c", "d")
    sequence = begin_probe(harness, "b")
    harness.now += 60_000
    outputs = harness.core.handle(Timer(), harness.now)
    assert harness.state("a") is State.SUSPECT
    assert not any(
        request.message.body == PingRequest(sequence, "b", "b:1")
        for request in outputs
        if isinstance(request, Send)
    )
    assert harness.core.health == 1
    harness.tick_until(4 * refutable_ms(5))
    assert harness.state("a") is State.DEAD


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
    assert Rumour(harness.core.local) in ack.message.rumours
    assert [out for out in outputs if isinstance(out, Refuted)] == [Refuted("suspect", "a")]
    assert harness.core.health == 1


def test_a_suspect_that_refutes_is_alive_again() -> None:
    harness = Harness("a", "b")
    suspect = Member("a", "a:1", State.SUSPECT, epoch=1)
    harness.hear("b", None, suspect)
    assert harness.state("a") is State.SUSPECT
    harness.hear("b", None, replace(suspect, state=State.ALIVE, incarnation=1))
    assert harness.state("a") is State.ALIVE
    harness.tick_until(10 * refutable_ms(3))
    assert harness.state("a") is State.ALIVE


def test_who_is_wrongly_dead_is_told_so() -> None:
    harness = Harness("a", "b")
    harness.silent = {"a"}
    harness.hear("b", None, Member("a", "a:1", State.DEAD, epoch=1))
    harness.tick_until(refutable_ms(3))
    [ack] = sent(harness.hear("a", Ping(1)), Ack)
    assert Rumour(Member("a", "a:1", State.DEAD, epoch=1)) in ack.message.rumours
    harness.hear("a", None, incarnation=1)
    assert harness.state("a") is State.ALIVE


def test_a_restart_under_the_same_name_takes_the_new_address_at_once() -> None:
    harness = Harness("a")
    outputs = harness.hear("a", None, epoch=2, address="elsewhere:1")
    [change] = [output for output in outputs if isinstance(output, Changed)]
    assert (change.member.address, change.reason) == ("elsewhere:1", "started anew")


def test_a_restart_with_a_clock_behind_outdoes_its_former_life() -> None:
    harness = Harness("a", phase=Phase.JOINING)
    former = replace(harness.core.local, epoch=9, incarnation=4, state=State.DEAD, address="former:1")
    harness.hear("a", None, former)
    assert harness.core.local.epoch == 10
    assert harness.core.local.address == "me:1"


def test_leaving_is_told_to_everybody_and_is_no_death() -> None:
    harness = Harness("a", "b")
    outputs = harness.core.handle(Leave(final=False), harness.now)
    told = [output for output in outputs if isinstance(output, Send)]
    assert {send.to_node for send in told} == {"a", "b"}
    assert harness.core.local.label == "leaving"
    assert harness.core.local.is_established
    assert not harness.core.local.is_in_ring
    assert not harness.core.is_heard
    for send in told:
        assert isinstance(send.message.body, Ping)
        harness.hear(send.to_node, Ack(send.message.body.sequence))
    assert harness.core.is_heard
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


def test_one_that_left_is_not_revived_by_old_news_whatever_comes_first() -> None:
    left = Member("a", "a:1", State.LEFT, epoch=1, incarnation=2)
    old = Member("a", "a:1", epoch=1)
    for news in ([left, old], [old, left]):
        harness = Harness("b")
        for item in news:
            harness.hear("b", None, item)
        assert harness.state("a") is State.LEFT


def test_of_members_that_were_gone_before_one_came_there_is_nothing_to_report() -> None:
    harness = Harness("b")
    gone = [Member("c", "c:1", State.LEFT), Member("d", "d:1", State.DEAD)]
    assert not any(isinstance(output, Changed) for output in harness.hear("b", None, *gone))
    assert harness.state("d") is State.DEAD


def test_time_goes_on_for_one_that_is_always_late() -> None:
    harness = Harness("a", "b", "c")
    harness.silent = {"a"}
    end = harness.now + 120_000
    while harness.now < end:
        harness.now = harness.core.next_timer() + CONFIG.lag_ms + 100
        for output in harness.core.handle(Timer(), harness.now):
            if isinstance(output, Send) and output.to_node not in harness.silent:
                harness.answer(output)
    assert harness.state("a") is State.DEAD
    assert harness.state("b") is State.ALIVE


def test_views_are_exchanged_even_when_there_is_always_news() -> None:
    harness = Harness("a", "b")
    harness.agrees = False
    syncs = 0
    for incarnation in range(60):
        outputs = harness.tick_until(900)
        outputs += harness.hear("a", None, incarnation=incarnation)
        syncs += len(sent(outputs, Sync))
    assert syncs >= 4


def test_views_are_exchanged_now_and_then_in_any_case() -> None:
    harness = Harness("a", "b")
    outputs = harness.tick_until(3 * CONFIG.sync_interval_ms)
    assert len(sent(outputs, Sync)) >= 2


def test_what_was_found_out_of_a_former_life_does_not_count_against_the_present_one() -> None:
    harness = Harness("a", "b", "c", "d")
    harness.silent = {"a"}
    begin_probe(harness, "a")
    harness.tick_until(CONFIG.probe_timeout_ms - 1)
    harness.hear("a", None, epoch=2, address="new:1")
    harness.tick_until(CONFIG.nack_timeout_ms)
    assert harness.state("a") is State.ALIVE


def test_one_that_was_only_joining_leaves_without_having_been_in_the_ring() -> None:
    harness = Harness("a", phase=Phase.JOINING)
    outputs = harness.core.handle(Leave(final=False), harness.now)
    assert harness.core.local.state is State.LEFT
    assert not any(
        rumour.member.is_in_ring
        for send in sent(outputs, Ping)
        for rumour in send.message.rumours
        if rumour.member.node_id == "me"
    )


def test_the_view_is_bounded() -> None:
    config = MembershipConfig(cluster_id="test", max_members=3)
    core = Membership(Member("me", "me:1"), config, Random(1), 0)
    for number in range(5):
        core.handle(Received("test", Member(f"n{number}", f"n{number}:1"), "me", Message()), 0)
    assert len(core.members) == 3


def test_each_rumour_is_told_a_bounded_number_of_times() -> None:
    harness = Harness("a", "b")
    outputs = harness.tick_until(60_000)
    me = [s for s in outputs if isinstance(s, Send) and Rumour(harness.core.local) in s.message.rumours]
    assert 1 <= len(me) <= CONFIG.retransmit_multiplier


def test_urgent_news_goes_first() -> None:
    harness = Harness("a")
    for number in range(2 * CONFIG.max_rumours):
        harness.hear(f"n{number}")
    outputs = harness.core.handle(Leave(final=True), harness.now)
    for send in outputs:
        if isinstance(send, Send):
            assert send.message.rumours[0].member == harness.core.local


def test_views_that_stay_different_are_exchanged() -> None:
    harness = Harness("a", "b")
    harness.tick_until(CONFIG.reconcile_interval_ms)
    harness.agrees = False
    [sync] = sent(harness.hear("a", Ack(99)), Sync)
    assert sync.to_node == "a"
    assert isinstance(sync.message.body, Sync)
    assert sync.message.body.reply_wanted
    assert not sent(harness.hear("b", Ack(99)), Sync), "not again at once"


def test_news_is_given_time_to_arrive_by_itself() -> None:
    harness = Harness("a", "b")
    harness.tick_until(2 * CONFIG.reconcile_interval_ms)
    harness.hear("c")
    harness.agrees = False
    assert not sent(harness.hear("a", Ack(99)), Sync)


def test_a_data_request_from_a_node_with_another_ring_has_views_exchanged_at_once() -> None:
    harness = Harness("a", "b")
    harness.tick_until(CONFIG.reconcile_interval_ms)
    harness.hear("c")
    [sync] = sent(harness.core.handle(PeerDiffers("b"), harness.now), Sync)
    assert sync.to_node == "b"
    assert not sent(harness.core.handle(PeerDiffers("b"), harness.now), Sync)


def test_a_member_has_no_place_in_the_ring_before_it_is_ready() -> None:
    harness = Harness("a", phase=Phase.JOINING)
    assert not harness.core.local.is_in_ring
    outputs = harness.core.handle(Serve(), harness.now)
    assert harness.core.local.is_in_ring
    [change] = [output for output in outputs if isinstance(output, Changed)]
    assert change.before is not None
    assert (change.before.label, change.member.label) == ("joining", "alive")


@pytest.mark.parametrize("state", State)
def test_of_two_processes_with_one_name_the_later_one_has_it(state: State) -> None:
    """Whatever others believe of the later one."""
    harness = Harness("a")
    other = replace(harness.core.local, epoch=9, address="other:1", state=state)
    assert NameTaken("other:1") in harness.hear("a", None, other)
    assert not harness.tick_until(60_000)
    joining = Harness("a", phase=Phase.JOINING)
    assert NameTaken("other:1") not in joining.hear("a", None, other)
    assert joining.core.local.epoch == 10


def test_the_dead_are_tried_for_ever() -> None:
    harness = Harness("a", "b")
    harness.silent = {"a"}
    harness.hear("b", None, Member("a", "a:1", State.DEAD, epoch=1))
    harness.tick_until(3 * 3_600_000)
    outputs = harness.tick_until(3 * CONFIG.search_interval_ms)
    assert "a:1" in {sync.address for sync in sent(outputs, Sync)}


def test_one_that_is_leaving_and_falls_silent_has_left() -> None:
    harness = Harness("a", "b", "c")
    harness.silent = {"a"}
    harness.hear("a", None, phase=Phase.LEAVING, incarnation=1)
    begin_probe(harness, "a")
    harness.tick_until(CONFIG.probe_timeout_ms)
    harness.tick_until(refutable_ms(4))
    assert harness.state("a") is State.LEFT


@given(st.lists(MEMBERS, max_size=6), st.randoms(use_true_random=False))
def test_news_in_any_order_leaves_the_same_latest_word(news: list[Member], random: Random) -> None:
    """Of a member's own words (alive, or left): what others believe of it depends on when they hear it."""
    own_words = [item for item in news if item.state in (State.ALIVE, State.LEFT)]
    views = set()
    for _ in range(3):
        random.shuffle(own_words)
        harness = Harness("b")
        for item in [*own_words, *own_words]:
            harness.hear("b", None, item)
        views.add(harness.core.get("x"))
    assert len(views) == 1
