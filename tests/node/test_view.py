"""What the members' states and phases mean for who owns what, and who held it before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.membership import Member, Phase, State
from cacheservice.node.view import View, ViewBuilder
from cacheservice.ring import Ring, RingMember

IN_RING = {Phase.WARMING, Phase.SERVING}
ESTABLISHED = {Phase.SERVING, Phase.LEAVING}


def member(node_id: str, phase: Phase = Phase.SERVING, state: State = State.ALIVE) -> Member:
    return Member(node_id, f"{node_id}:7700", state, phase, epoch=1)


def ids(ring: Ring) -> set[str]:
    return {each.node_id for each in ring.members}


@pytest.fixture
def builder() -> ViewBuilder:
    return ViewBuilder(16)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("phase", Phase)
def test_what_a_member_is_in_each_state_and_phase(builder: ViewBuilder, state: State, phase: Phase) -> None:
    view = builder.view_of([member("n1"), member("n2", phase, state)])
    is_there = state in (State.ALIVE, State.SUSPECT)
    owns, owned = is_there and phase in IN_RING, is_there and phase in ESTABLISHED
    before = view.ring if view.before is None else view.before
    assert ("n2" in ids(view.ring), "n2" in ids(before)) == (owns, owned)
    assert (view.before is None) is (owns == owned)
    assert view.stays.keys() == view.absences.keys() == ({"n1", "n2"} if owns or owned else {"n1"})
    assert view.suspects == ({"n2"} if owns and state is State.SUSPECT else set())
    assert view.dead == ({"n2"} if state is State.DEAD else set())
    assert view.others("n1") == (["n2"] if owns or owned else [])


def test_zones_weights_and_hosts_are_those_of_the_members(builder: ViewBuilder) -> None:
    heavy = replace(member("n1"), zone="z", weight=3, host="h")
    assert builder.view_of([heavy]).ring.members == (RingMember("n1", "z", 3, "h"),)


def test_an_unchanged_ring_is_not_computed_again(builder: ViewBuilder) -> None:
    first = builder.view_of([member("n1"), member("n2"), member("n3", Phase.WARMING)])
    again = builder.view_of(
        [
            replace(member("n1"), incarnation=7),
            member("n2", state=State.SUSPECT),
            member("n3", Phase.WARMING),
            member("n4", Phase.JOINING),
        ]
    )
    assert again.ring is first.ring is builder.ring
    assert again.before is first.before
    assert again.places_as(first)


def test_who_comes_or_goes_moves_keys(builder: ViewBuilder) -> None:
    alone = builder.view_of([member("n1")])
    both = builder.view_of([member("n1"), member("n2", Phase.WARMING)])
    assert not both.places_as(alone)
    assert builder.view_of([member("n1"), member("n2")]).places_as(both)
    leaving = builder.view_of([member("n1"), member("n2", Phase.LEAVING)])
    assert not leaving.places_as(both)
    left = builder.view_of([member("n1"), member("n2", state=State.LEFT)])
    assert left.ring.epoch == leaving.ring.epoch
    assert not left.places_as(leaving)


@pytest.mark.parametrize("changed", [{"epoch": 2}, {"absences": 1}])
def test_who_may_have_missed_something_has_another_stay(
    builder: ViewBuilder, changed: dict[str, int]
) -> None:
    first = builder.view_of([member("n1"), member("n2")])
    second = builder.view_of([member("n1"), replace(member("n2"), **changed)])  # type: ignore[arg-type]
    assert second.stays["n1"] == first.stays["n1"]
    assert second.stays["n2"] not in first.stays.values()
    assert not second.places_as(first)
    assert second.ring is first.ring
    assert second.absences == {"n1": 0, "n2": changed.get("absences", 0)}


@pytest.mark.parametrize("gone", [State.DEAD, State.LEFT, None])
def test_who_was_gone_has_another_stay(builder: ViewBuilder, gone: State | None) -> None:
    first = builder.view_of([member("n1"), member("n2")])
    builder.view_of([member("n1"), *([member("n2", state=gone)] if gone else [])])
    second = builder.view_of([member("n1"), member("n2")])
    assert second.ring.epoch == first.ring.epoch
    assert second.stays["n2"] not in first.stays.values()


NAMES = ("n1", "n2", "n3")
SIGHTS = st.builds(
    Member,
    st.just(""),
    st.just(""),
    state=st.sampled_from(State),
    phase=st.sampled_from(Phase),
    epoch=st.integers(1, 2),
    absences=st.integers(0, 1),
)


@given(st.lists(st.lists(st.one_of(st.none(), SIGHTS), min_size=3, max_size=3), max_size=12))
def test_stays_beside_a_model(steps: list[list[Member | None]]) -> None:
    """A stay ends when the node is not seen with keys, or has started anew, or was away by its own account;
    no number comes twice."""
    builder = ViewBuilder(1)
    known: dict[str, tuple[tuple[int, int], int]] = {}
    used: set[tuple[str, int]] = set()
    for step in steps:
        seen = [replace(sight, node_id=name) for name, sight in zip(NAMES, step, strict=True) if sight]
        view = builder.view_of(seen)
        now: dict[str, tuple[tuple[int, int], int]] = {}
        for each in seen:
            if not each.is_reachable or each.phase is Phase.JOINING:
                continue
            sign, stay = (each.epoch, each.absences), view.stays[each.node_id]
            if each.node_id in known and known[each.node_id][0] == sign:
                assert stay == known[each.node_id][1]
            else:
                assert (each.node_id, stay) not in used
                used.add((each.node_id, stay))
            now[each.node_id] = sign, stay
        assert view.stays.keys() == now.keys()
        known = now


def test_who_owned_a_key_before_holds_it_after_those_who_own_it_now() -> None:
    now = Ring([RingMember(name) for name in ("n1", "n2", "n4", "n5")])
    before = Ring([RingMember(name) for name in ("n1", "n2", "n3", "n6")])
    view = View(now, before=before)
    seen = set()
    for key in map(str, range(200)):
        owners = now.owners(key, 2)
        holders = view.holders(key, 2)
        assert holders[:2] == owners
        assert set(holders) == {*owners, *before.owners(key, 2)}
        assert len(holders) == len(set(holders))
        for node_id in ("n1", "elsewhere"):
            others = [holder for holder in holders if holder != node_id]
            assert view.other_holders([key, key], 2, node_id) == [others, others]
        assert View(now).holders(key, 2) == owners
        seen.add(len(holders))
    assert seen == {2, 3, 4}
