from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from cacheservice.membership import Member, Phase, State
from cacheservice.membership.view import View

LOCAL = Member("me", "me:1")
NAMES = st.sampled_from([f"n{number}" for number in range(8)])
MEMBERS = st.builds(
    Member,
    node_id=NAMES,
    address=st.sampled_from(["h:1", "h:2"]),
    state=st.sampled_from(State),
    phase=st.sampled_from(Phase),
    epoch=st.integers(0, 2),
)


def view_of(members: list[Member], max_gone: int = 100) -> View:
    view = View(LOCAL, 100, max_gone)
    for member in members:
        view.put(member)
    return view


@given(st.lists(MEMBERS, max_size=30))
def test_what_is_kept_ready_agrees_with_the_members(members: list[Member]) -> None:
    view = view_of(members)
    latest = {LOCAL.node_id: LOCAL} | {member.node_id: member for member in members}
    assert view.members == tuple(latest[name] for name in sorted(latest))
    peers = {name for name, member in latest.items() if member.is_reachable and name != "me"}
    assert {peer.node_id for peer in view.peers()} == peers
    assert view.peer_count == len(peers)
    assert {member.node_id for member in view.dead()} == {
        name for name, member in latest.items() if member.state is State.DEAD
    }
    assert view.digest == view_of(sorted(latest.values(), key=lambda member: member.node_id)).digest


@given(st.lists(MEMBERS, max_size=10), MEMBERS)
def test_views_that_differ_in_a_reachable_member_have_different_digests(
    members: list[Member], other: Member
) -> None:
    one, changed = view_of(members), view_of([*members, other])
    reachable = [{m for m in view.members if m.is_reachable} for view in (one, changed)]
    assert (one.digest == changed.digest) == (reachable[0] == reachable[1])


@given(st.lists(NAMES, unique=True, min_size=1), st.integers(0, 9), st.integers(0, 99))
def test_a_sample_has_different_suitable_peers(names: list[str], count: int, seed: int) -> None:
    view = view_of([Member(name, f"{name}:1") for name in names])
    found = view.sample(Random(seed), count, lambda member: member.node_id != "n1")
    assert len({member.node_id for member in found}) == len(found)
    assert len(found) == min(count, len(set(names) - {"n1"}))
    assert all(member.node_id != "n1" for member in found)


def test_every_member_is_the_successor_of_exactly_one() -> None:
    everybody = [Member(f"n{number}", f"h:{number}") for number in range(20)]
    successors = set()
    for local in everybody:
        view = View(local, 100, 100)
        for member in everybody:
            view.put(member)
        successor = view.successor()
        assert successor is not None
        assert successor != local
        successors.add(successor)
    assert successors == set(everybody)


def test_a_suspect_is_passed_over_as_successor() -> None:
    view = view_of([Member("n1", "h:1"), Member("n2", "h:2")])
    first = view.successor()
    assert first is not None
    view.put(first.with_state(State.SUSPECT))
    second = view.successor()
    assert second is not None
    assert {first.node_id, second.node_id} == {"n1", "n2"}
    view.put(second.with_state(State.DEAD))
    assert view.successor() is None


def test_the_gone_are_bounded_and_the_oldest_forgotten_first() -> None:
    dead = [Member(f"n{number}", "h:1", State.DEAD) for number in range(10)]
    view = view_of(dead, max_gone=3)
    assert [member.node_id for member in view.dead()] == ["n7", "n8", "n9"]
    assert not view.can_take(dead[0])
