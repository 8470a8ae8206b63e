from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from statistics import pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from cacheservice import ring as ring_module
from cacheservice.ring import Ring, RingMember, hash_tag

KEYS = [f"user:{number}" for number in range(100_000)]


def members(count: int) -> list[RingMember]:
    return [RingMember(f"cacheservice-{number}") for number in range(count)]


@pytest.mark.parametrize("count", [3, 10, 100])
def test_shares_are_even(count: int) -> None:
    shares = Ring(members(count)).shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert pstdev(shares.values()) < 0.07 / count


@pytest.mark.parametrize("count", [3, 10, 100])
def test_a_joining_node_takes_its_part_and_nothing_moves_between_the_others(count: int) -> None:
    before, after = Ring(members(count)), Ring(members(count + 1))
    new = f"cacheservice-{count}"
    moved = 0
    for key in KEYS:
        [old_owner], [new_owner] = before.owners(key, 1), after.owners(key, 1)
        if old_owner != new_owner:
            assert new_owner == new
            moved += 1
    assert 0.75 * len(KEYS) / (count + 1) < moved < 1.25 * len(KEYS) / (count + 1)


def test_the_successor_of_a_node_that_leaves_already_holds_its_keys() -> None:
    whole = Ring(members(5))
    for gone in whole.members:
        rest = Ring(member for member in whole.members if member != gone)
        for key in KEYS[:2_000]:
            owner, replica = whole.owners(key, 2)
            assert rest.owners(key, 1) == ((replica,) if owner == gone.node_id else (owner,))


def test_owners_follow_the_published_rule() -> None:
    ring = Ring([RingMember("a"), RingMember("b")], virtual_nodes=2)
    points = sorted((xxh3_64_intdigest(f"{node}#{j}".encode()), node) for node in "ab" for j in range(2))
    for key in KEYS[:200]:
        place = xxh3_64_intdigest(key.encode())
        owner = next((node for token, node in points if token > place), points[0][1])
        assert ring.owners(key, 1) == (owner,)


def test_places_never_change() -> None:
    """Clients in other languages, and nodes of other versions, compute the same."""
    ring = Ring([RingMember("n1"), RingMember("n2", "z1"), RingMember("n3", "z2", 2)])
    assert f"{ring.epoch:016x}" == "61eb9fe1206ae7f9"
    assert [ring.owners(key, 2) for key in ("a", "user:1", "{t}:x", "ключ")] == [
        ("n2", "n3"),
        ("n3", "n1"),
        ("n3", "n1"),
        ("n1", "n3"),
    ]


def test_places_on_hosts_never_change() -> None:
    ring = Ring(
        [RingMember(f"{host}-w{worker}", f"z{host}", host=host) for host in "abc" for worker in range(2)]
    )
    assert f"{ring.epoch:016x}" == "9b40af673a44bf7c"
    assert [ring.owners(key, 2) for key in ("a", "user:1", "{t}:x", "ключ")] == [
        ("a-w1", "c-w0"),
        ("c-w0", "b-w1"),
        ("c-w0", "b-w1"),
        ("c-w1", "a-w1"),
    ]


RING_MEMBERS = st.lists(
    st.builds(
        RingMember,
        st.text("abcdef", min_size=1, max_size=3),
        st.sampled_from(["", "z1", "z2", "z3"]),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda member: member.node_id,
)


@st.composite
def members_on_hosts(draw: st.DrawFn) -> list[RingMember]:
    """Members of which those on one host are in one zone."""
    zone_of = {host: draw(st.sampled_from(["", "z1", "z2", "z3"])) for host in ("h1", "h2", "h3", "h4")}
    placed = [replace(member, host=draw(st.sampled_from(["", *zone_of]))) for member in draw(RING_MEMBERS)]
    return [replace(member, zone=zone_of.get(member.host, member.zone)) for member in placed]


def hosts_of(ring_members: Iterable[RingMember]) -> dict[str, str]:
    return {member.node_id: member.host or f"of {member.node_id} alone" for member in ring_members}


@given(
    RING_MEMBERS,
    st.integers(1, 5),
    st.text(min_size=1, max_size=5),
)
def test_owners_are_distinct_and_prefer_unseen_zones(
    ring_members: list[RingMember], count: int, key: str
) -> None:
    ring = Ring(ring_members, virtual_nodes=8)
    owners = ring.owners(key, count)
    assert len(owners) == len(set(owners)) == min(count, len(ring_members))
    zone_of = {member.node_id: member.zone for member in ring_members}
    distinct_zones = len({zone for zone in zone_of.values() if zone}) + list(zone_of.values()).count("")
    zones = [zone_of[owner] for owner in owners]
    used = len({zone for zone in zones if zone}) + zones.count("")
    assert used == min(count, distinct_zones)
    assert owners[:1] == ring.owners(key, 1)
    assert Ring(reversed(ring_members), virtual_nodes=8).owners(key, count) == owners


@given(members_on_hosts(), st.integers(1, 5), st.text(min_size=1, max_size=5))
def test_owners_are_on_distinct_hosts_and_still_prefer_unseen_zones(
    ring_members: list[RingMember], count: int, key: str
) -> None:
    ring = Ring(ring_members, virtual_nodes=8)
    owners = ring.owners(key, count)
    host_of = hosts_of(ring_members)
    assert ring.host_count == len(set(host_of.values()))
    assert len({host_of[owner] for owner in owners}) == len(owners) == min(count, ring.host_count)
    zone_of = {member.node_id: member.zone or host_of[member.node_id] for member in ring_members}
    assert len({zone_of[owner] for owner in owners}) == min(count, len(set(zone_of.values())))
    without_hosts = Ring((replace(member, host="") for member in ring_members), virtual_nodes=8)
    assert owners[:1] == without_hosts.owners(key, 1)
    assert ring.owners(key, count + 2)[: len(owners)] == owners


@given(
    members_on_hosts(),
    st.integers(1, 5),
    st.text(min_size=1, max_size=5),
    st.sets(st.sampled_from(["a", "b", "c", "d"])),
)
def test_owners_without_some_are_those_of_the_ring_without_them(
    ring_members: list[RingMember], count: int, key: str, gone: set[str]
) -> None:
    rest = Ring((member for member in ring_members if member.node_id not in gone), virtual_nodes=8)
    ring = Ring(ring_members, virtual_nodes=8)
    assert ring.owners_without(gone, key, count) == rest.owners(key, count)


def test_a_ring_on_one_host_keeps_one_copy() -> None:
    ring = Ring(RingMember(f"n1-w{worker}", host="n1") for worker in range(64))
    assert ring.host_count == 1
    assert {len(ring.owners(key, 3)) for key in KEYS[:1_000]} == {1}
    assert len({ring.owners(key, 3) for key in KEYS[:10_000]}) == 64


def test_epoch_depends_on_everything_that_places_depend_on() -> None:
    rings = [
        Ring([]),
        Ring([RingMember("a")]),
        Ring([RingMember("b")]),
        Ring([RingMember("a", "z")]),
        Ring([RingMember("az")]),
        Ring([RingMember("a", host="z")]),
        Ring([RingMember("a", weight=2)]),
        Ring([RingMember("a")], virtual_nodes=128),
        Ring([RingMember("a"), RingMember("b")]),
    ]
    assert len({ring.epoch for ring in rings}) == len(rings)
    assert rings[0].epoch == 0
    assert Ring([RingMember("b"), RingMember("a")]).epoch == rings[-1].epoch


def test_weight_is_a_share() -> None:
    shares = Ring([RingMember("a"), RingMember("b", weight=3)], virtual_nodes=1024).shares()
    assert shares["b"] / shares["a"] == pytest.approx(3, rel=0.2)


@given(st.lists(st.text(min_size=1, max_size=5), max_size=20))
def test_a_node_owns_keys_when_it_is_the_first_owner_of_each(keys: list[str]) -> None:
    ring = Ring(map(RingMember, "abc"))
    for node_id in "abcd":
        owned = [key for key in keys if ring.owners(key, 2)[0] == node_id]
        assert ring.owns(node_id, owned)
        assert ring.owns(node_id, keys) == (owned == keys)


@given(st.lists(st.text(min_size=1, max_size=5), max_size=20))
def test_a_node_holds_keys_when_it_is_one_of_the_owners_of_each(keys: list[str]) -> None:
    ring = Ring(map(RingMember, "abc"))
    for node_id in "abcd":
        held = [key for key in keys if node_id in ring.owners(key, 2)]
        assert ring.holds(node_id, held, 2)
        assert ring.holds(node_id, keys, 2) == (held == keys)


@pytest.mark.parametrize("most", [2, 3, 5])
def test_more_groups_of_owners_than_are_numbered(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A cluster of many hundred nodes has so many."""
    keys = KEYS[:5_000]
    numbered = Ring(members(4))
    expected = [numbered.owners(key, 2) for key in keys]
    monkeypatch.setattr(ring_module, "_MAX_GROUPS", most)
    ring = Ring(members(4))
    for _ in range(2):
        assert [ring.owners(key, 2) for key in keys] == expected


def test_an_empty_ring_owns_nothing() -> None:
    assert Ring([]).owners("a", 2) == ()
    assert not Ring([]).holds("a", ["k"], 2)
    assert not Ring([]).owns("a", ["k"])
    assert Ring([]).shares() == {}


def test_node_ids_are_distinct() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Ring([RingMember("a", "z1"), RingMember("a", "z2")])


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("plain", "plain"),
        ("{user:1}:cart", "user:1"),
        ("a{b}c{d}", "b"),
        ("a{}b", "a{}b"),
        ("a{b", "a{b"),
        ("a}b{c}", "c"),
        ("{{x}}", "{x"),
    ],
)
def test_hash_tag(key: str, tag: str) -> None:
    assert hash_tag(key) == tag
