"""What every eviction policy must do, beside choosing well."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.store import POLICIES
from cacheservice.store.policy import EvictionPolicy

KEYS = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.binary(min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["get", "peek", "pop"]), KEYS, st.just(b"")),
        st.tuples(st.just("evict"), st.just(""), st.just(b"")),
    ),
    max_size=80,
)
HALVES = st.frozensets(KEYS)

for_every_policy = pytest.mark.parametrize("name", sorted(POLICIES))


@for_every_policy
@given(STEPS)
def test_holds_what_was_added_until_it_is_removed(name: str, steps: list[tuple[str, str, bytes]]) -> None:
    policy = POLICIES[name]()
    model: dict[str, bytes] = {}
    for step, key, packed in steps:
        match step:
            case "set" if key in model:
                policy.replace(key, packed)
                model[key] = packed
            case "set":
                policy.add(key, packed)
                model[key] = packed
            case "get":
                assert policy.get(key) == model.get(key)
            case "peek":
                assert policy.peek(key) == model.get(key)
            case "pop":
                assert policy.pop(key) == model.pop(key, None)
            case _:
                if model:
                    victim, given_up = next(policy.victims())
                    assert model.pop(victim) == given_up
        assert len(policy) == len(model)
        assert sorted(policy.items()) == sorted(model.items())
        assert sorted(policy.hottest()) == sorted(model.items())


@for_every_policy
def test_nothing_has_no_victims(name: str) -> None:
    policy = POLICIES[name]()
    assert list(policy.victims()) == []
    policy.add("a", b"-")
    policy.pop("a")
    assert list(policy.victims()) == []


@for_every_policy
def test_victims_are_the_same_asked_for_at_once_or_one_by_one(name: str) -> None:
    at_once, one_by_one = filled(name, Random(4), 200), filled(name, Random(4), 200)
    victims = list(islice(at_once.victims(), 150))
    assert victims == [next(one_by_one.victims()) for _ in range(150)]
    for key, _ in victims[::3]:
        at_once.add(key, b"again")
        one_by_one.add(key, b"again")
    assert list(at_once.victims()) == [next(one_by_one.victims()) for _ in range(len(one_by_one))]


@for_every_policy
def test_gives_up_everything_in_the_end(name: str) -> None:
    policy = filled(name, Random(1), 300)
    held = dict(policy.items())
    given_up = list(policy.victims())
    assert len(given_up) == len(held)
    assert dict(given_up) == held
    assert list(policy.items()) == []


@for_every_policy
def test_looking_changes_nothing(name: str) -> None:
    looked_at, left_alone = filled(name, Random(2), 200), filled(name, Random(2), 200)
    for key, packed in [*looked_at.items(), *looked_at.hottest()]:
        assert looked_at.peek(key) == packed
        assert looked_at.peek("unknown") is None
    assert emptied(looked_at) == emptied(left_alone)


@pytest.mark.parametrize("name", ["lru", "fifo", "lfu"])
@pytest.mark.parametrize("seed", range(5))
def test_the_hottest_are_those_given_up_last(name: str, seed: int) -> None:
    policy = filled(name, Random(seed), 500)
    hottest = list(policy.hottest())
    assert hottest == list(reversed(emptied(policy)))


@for_every_policy
@pytest.mark.parametrize("seed", range(5))
def test_the_hottest_half_is_mostly_given_up_in_the_second_half(name: str, seed: int) -> None:
    policy = filled(name, Random(seed), 500)
    hottest = {key for key, _ in list(policy.hottest())[: len(policy) // 2]}
    given_up_first = {key for key, _ in emptied(policy)[: len(hottest)]}
    assert len(hottest & given_up_first) <= len(hottest) // 3


@for_every_policy
def test_compacting_changes_nothing(name: str) -> None:
    compacted, left_alone = filled(name, Random(3), 200), filled(name, Random(3), 200)
    compacted.compact()
    assert sorted(compacted.items()) == sorted(left_alone.items())
    assert emptied(compacted) == emptied(left_alone)


@for_every_policy
@given(STEPS, HALVES, STEPS)
def test_a_split_loses_and_doubles_nothing_and_both_halves_go_on(
    name: str,
    before: list[tuple[str, str, bytes]],
    half: Collection[str],
    after: list[tuple[str, str, bytes]],
) -> None:
    policy = POLICIES[name]()
    take(policy, before)
    held = dict(policy.items())
    other = policy.split(lambda key: key in half)
    assert type(other) is type(policy)
    assert dict(other.items()) == {key: packed for key, packed in held.items() if key in half}
    assert dict(policy.items()) == {key: packed for key, packed in held.items() if key not in half}
    for part in (policy, other):
        take(part, after)
        model = dict(part.items())
        assert len(part) == len(model)
        assert sorted(emptied(part)) == sorted(model.items())


@pytest.mark.parametrize("name", ["lru", "fifo", "lfu"])
@pytest.mark.parametrize("seed", range(5))
def test_each_half_gives_up_in_the_order_of_the_whole(name: str, seed: int) -> None:
    whole, lower = filled(name, Random(seed), 500), filled(name, Random(seed), 500)
    half = set(Random(seed + 100).sample(sorted(key for key, _ in whole.items()), len(whole) // 2))
    upper = lower.split(half.__contains__)
    order = emptied(whole)
    assert emptied(upper) == [item for item in order if item[0] in half]
    assert emptied(lower) == [item for item in order if item[0] not in half]


def take(policy: EvictionPolicy, steps: list[tuple[str, str, bytes]]) -> None:
    for step, key, packed in steps:
        match step:
            case "set" if policy.peek(key) is not None:
                policy.replace(key, packed)
            case "set":
                policy.add(key, packed)
            case "get":
                policy.get(key)
            case "peek":
                policy.peek(key)
            case "pop":
                policy.pop(key)
            case _:
                if len(policy):
                    next(policy.victims())


def filled(name: str, random: Random, entries: int) -> EvictionPolicy:
    """A policy with a past: more came than it holds, some were used, renewed, removed."""
    policy = POLICIES[name]()
    for number in range(3 * entries):
        key = f"key{random.randrange(2 * entries)}"
        if policy.get(key) is None:
            if len(policy) >= entries:
                next(policy.victims())
            policy.add(key, b"%d" % number)
        elif random.random() < 0.2:
            policy.replace(key, b"%d" % number)
        elif random.random() < 0.1:
            policy.pop(key)
    return policy


def emptied(policy: EvictionPolicy) -> list[tuple[str, bytes]]:
    return list(policy.victims())
