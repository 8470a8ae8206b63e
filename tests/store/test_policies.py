from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from random import Random
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cacheservice.store import POLICIES
from cacheservice.store.adaptive import LARGEST_SHARE, LEAST_SHARE, Adaptive
from cacheservice.store.fifo import FIFO
from cacheservice.store.lfu import LFU
from cacheservice.store.lru import LRU
from cacheservice.store.policy import EvictionPolicy
from cacheservice.store.s3fifo import MAX_TURNS, S3FIFO
from tests.store.naive import NAIVE, NaivePolicy, NaiveS3FIFO, keys_that_do_not_collide, make_room

Policy = TypeVar("Policy", bound=EvictionPolicy)

KEYS = keys_that_do_not_collide(16)
PACKED = st.binary(min_size=1, max_size=2)


def with_room(policy: EvictionPolicy) -> EvictionPolicy:
    if isinstance(policy, S3FIFO):
        make_room(policy._ghosts)
    if isinstance(policy, Adaptive):
        make_room(policy._main_ghosts)
    return policy


class PolicyAgainstNaive(RuleBasedStateMachine):
    """The policy beside its naive model: every victim is the same."""

    name: str

    def __init__(self) -> None:
        super().__init__()
        self.policy = with_room(POLICIES[self.name]())
        self.model = NAIVE[self.name]()

    @rule(key=st.sampled_from(KEYS), packed=PACKED)
    def write(self, key: str, packed: bytes) -> None:
        for policy in (self.policy, self.model):
            if policy.peek(key) is None:
                policy.add(key, packed)
            else:
                policy.replace(key, packed)

    @rule(packed=PACKED)
    def fill(self, packed: bytes) -> None:
        for key in KEYS:
            self.write(key, packed)

    @rule(key=st.sampled_from(KEYS), times=st.integers(1, 5))
    def get(self, key: str, times: int) -> None:
        for _ in range(times):
            assert self.policy.get(key) == self.model.get(key)

    @rule(key=st.sampled_from(KEYS))
    def pop(self, key: str) -> None:
        assert self.policy.pop(key) == self.model.pop(key)

    @precondition(lambda self: len(self.model) > 0)
    @rule(share=st.floats(0, 1))
    def evict(self, share: float) -> None:
        for _ in range(max(1, int(share * len(self.model)))):
            assert next(self.policy.victims()) == self.model.evict()

    @rule(half=st.frozensets(st.sampled_from(KEYS)), keep_other=st.booleans())
    def split(self, half: frozenset[str], keep_other: bool) -> None:
        parts = (self.policy, self.policy.split(half.__contains__))
        models = (self.model, self.model.split(half.__contains__))
        self.policy, self.model = parts[keep_other], models[keep_other]
        for _ in range(len(models[not keep_other])):
            assert next(parts[not keep_other].victims()) == models[not keep_other].evict()
        assert len(parts[not keep_other]) == 0

    @rule()
    def compact(self) -> None:
        self.policy.compact()

    @invariant()
    def holds_the_same(self) -> None:
        assert dict(self.policy.items()) == self.model.entries
        assert len(self.policy) == len(self.model)
        if isinstance(self.policy, S3FIFO) and isinstance(self.model, NaiveS3FIFO):
            assert self.policy._share == self.model.share
            assert LEAST_SHARE <= self.policy._share <= LARGEST_SHARE

    def teardown(self) -> None:
        for _ in range(len(self.model)):
            assert next(self.policy.victims()) == self.model.evict()
        assert len(self.policy) == 0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_victim_is_that_of_the_naive_model(policy: str) -> None:
    class Machine(PolicyAgainstNaive):
        name = policy

    run_state_machine_as_test(Machine, settings=settings(max_examples=60, stateful_step_count=30))


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("entries", [20, 150])
def test_every_victim_is_that_of_the_naive_model_on_a_long_run(name: str, entries: int) -> None:
    random = Random(entries)
    keys = keys_that_do_not_collide(5 * entries)
    weights = [1 / (rank + 1) for rank in range(len(keys))]
    policy: EvictionPolicy = with_room(POLICIES[name]())
    model: NaivePolicy = NAIVE[name]()
    for step, key in enumerate(random.choices(keys, weights, k=60 * entries)):
        if random.random() < 0.01:
            assert policy.pop(key) == model.pop(key)
        held = policy.get(key)
        assert held == model.get(key)
        if held is None:
            if len(model) >= entries:
                assert next(policy.victims()) == model.evict()
            policy.add(key, b"-")
            model.add(key, b"-")
        elif random.random() < 0.2:
            policy.replace(key, b"%d" % step)
            model.replace(key, b"%d" % step)
        if step % (20 * entries) == 10 * entries:
            half = set(random.sample(sorted(model.entries), entries // 2))
            policy.split(half.__contains__)
            model.split(half.__contains__)


def test_lru_gives_up_the_least_recently_used() -> None:
    assert order(LRU, "abc", used="ab") == ["c", "a", "b"]


def test_to_lru_a_new_value_is_a_use() -> None:
    assert order(LRU, "abca") == ["b", "c", "a"]


def test_lfu_gives_up_the_least_often_used() -> None:
    assert order(LFU, "abc", used="aabc") == ["b", "c", "a"]


def test_of_equals_lfu_gives_up_the_one_longest_unused() -> None:
    assert order(LFU, "abc", used="cba") == ["c", "b", "a"]


def test_lfu_halves_the_counts_after_three_uses_an_entry() -> None:
    policy = filled(LFU, "abcd")
    for key in "aaabccdd":
        policy.get(key)
    # a was used four times, b twice, c and d three times: twelve in all.
    assert [key for key, _ in islice(policy.victims(), 1)] == ["b"]
    policy = filled(LFU, "abcd")
    for key in "aaabccddb":
        policy.get(key)
    # Now a counts two, the others one, and come in the order of their counts before.
    assert [key for key, _ in islice(policy.victims(), 1)] == ["c"]
    for key in "bb":
        policy.get(key)
    assert [key for key, _ in policy.victims()] == ["d", "a", "b"]


def test_lfu_counts_no_use_beyond_the_fourth() -> None:
    assert order(LFU, "abcdef", used="aaa" + "bbbbbb" + "aa") == ["c", "d", "e", "f", "b", "a"]


def test_fifo_gives_up_the_oldest_whatever_its_use() -> None:
    assert order(FIFO, "abca", used="aab") == ["a", "b", "c"]


@pytest.mark.parametrize("make", [S3FIFO, Adaptive])
def test_s3fifo_gives_up_first_what_was_not_used_again_soon(make: Callable[[], S3FIFO]) -> None:
    policy = filled(make, "abcdefghij")
    for key in "aabbc":
        policy.get(key)
    # a and b were used enough to go on to the main queue, c was not.
    assert [key for key, _ in islice(policy.victims(), 8)] == ["c", "d", "e", "f", "g", "h", "i", "j"]
    assert sorted(policy.items()) == [("a", b"-"), ("b", b"-")]


@pytest.mark.parametrize("make", [S3FIFO, Adaptive])
def test_what_s3fifo_gave_up_and_sees_again_soon_enters_the_main_queue(make: Callable[[], S3FIFO]) -> None:
    policy = filled(make, "abcx")
    for key in "abcabc":
        policy.get(key)
    assert next(policy.victims())[0] == "x"
    policy.add("x", b"again")
    for key in "0123456789":
        policy.add(key, b"-")
    assert [key for key, _ in islice(policy.victims(), 6)] == list("012345")
    assert policy.peek("x") == b"again"


def test_a_key_removed_by_its_user_is_not_remembered() -> None:
    policy = filled(S3FIFO, "abcx")
    for key in "abcabc":
        policy.get(key)
    assert next(policy.victims())[0] == "x"
    policy.add("x", b"-")
    assert policy.pop("x") == b"-"
    policy.add("x", b"-")
    assert next(policy.victims())[0] == "x"


def test_the_small_queue_becomes_as_long_as_the_load_wants_it() -> None:
    """First each key is used for a while and then never again, then some are used always amid a scan."""
    random = Random(5)
    moving = [f"key{number // 4 - int(random.expovariate(1 / 30))}" for number in range(30_000)]
    policy = Adaptive()
    hits = {"adaptive": hits_of(policy, moving, 100)}
    hits |= {name: hits_of(POLICIES[name](), moving, 100) for name in ("lru", "s3fifo")}
    assert hits["adaptive"] > hits["lru"] > hits["s3fifo"] + len(moving) / 10
    assert policy._share > 0.5
    steady = [f"used{random.randrange(80)}" if number % 2 else f"scan{number}" for number in range(30_000)]
    hits_of(policy, steady, 100)
    assert policy._share < 0.2


def test_lfu_forgets_what_was_used_much_and_then_no_more() -> None:
    old, new = ([f"{name}{number}" for number in range(1_000)] for name in ("old", "new"))
    random = Random(3)
    policy = LFU()
    hits_of(policy, random.choices(old, k=20_000), 1_000)
    assert {key for key, _ in policy.items()} == set(old)
    hits_of(policy, random.choices(new, k=15_000), 1_000)
    assert sum(key.startswith("old") for key, _ in policy.items()) == 0


@pytest.mark.parametrize("name", ["s3fifo", "adaptive"])
def test_the_memory_of_what_was_given_up_is_bounded(name: str) -> None:
    policy = POLICIES[name]()
    hits_of(policy, [str(number % 7_000) for number in range(10_000)], 100)
    assert isinstance(policy, S3FIFO)
    assert len(policy._ghosts) <= 100
    assert len(policy._ghosts._table) <= 256
    assert len(policy._uses) <= 100


def filled(make: Callable[[], Policy], keys: Iterable[str]) -> Policy:
    policy = make()
    for key in keys:
        policy.add(key, b"-")
    return policy


def order(make: Callable[[], EvictionPolicy], sets: str, used: str = "") -> list[str]:
    policy = make()
    for key in sets:
        if policy.peek(key) is None:
            policy.add(key, b"-")
        else:
            policy.replace(key, b"-")
    for key in used:
        policy.get(key)
    return [key for key, _ in policy.victims()]


def hits_of(policy: EvictionPolicy, requests: list[str], entries: int) -> int:
    hits = 0
    for key in requests:
        if policy.get(key) is not None:
            hits += 1
            continue
        if len(policy) >= entries:
            next(policy.victims())
        policy.add(key, b"-")
    return hits


@pytest.mark.parametrize("make", [S3FIFO, Adaptive])
def test_where_all_are_in_use_an_eviction_turns_over_some_and_not_all(make: Callable[[], S3FIFO]) -> None:
    policy = make()
    keys = [str(number) for number in range(2_000)]
    for key in keys:
        policy.add(key, b"-")
    for key in keys * 2:
        policy.get(key)
    for left in range(1_999, 1_900, -1):
        in_use = len(policy._uses)
        victim, _ = next(policy.victims())
        assert in_use - len(policy._uses) <= MAX_TURNS + 1
        assert policy.peek(victim) is None
        assert len(policy) == left
