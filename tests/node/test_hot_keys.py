"""Which keys are hot, by what is served in virtual time."""

from __future__ import annotations

from random import Random

import pytest

from cacheservice.clock import ManualClock
from cacheservice.errors import InvalidArgument
from cacheservice.node.columns import Reads
from cacheservice.node.hot_keys import (
    CAPACITY,
    FADES_IN_MS,
    HOT_MS,
    LEAST_RATE,
    LEAST_SHARE,
    ONE_IN,
    STAYS_AT,
    HotKeys,
)
from cacheservice.node.namespaces import NamespacePolicy, Namespaces
from cacheservice.node.operations import Delete, Get, GetOutcome, GetResult, Operation, Set, Touch
from cacheservice.node.shard import Shard
from cacheservice.store import Store

STEP_MS = 20
LONG = 4 * FADES_IN_MS
OTHERS = [f"other{number}" for number in range(10_000)]


class Served:
    """A node's operations at steady rates."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 1_000_000
        self.random = Random(seed)
        self.hot = HotKeys(self.now, Random(seed + 1), lambda key: not key.startswith("never"))

    def serve(self, rates: dict[str, float], others: float = 0, ms: int = LONG) -> None:
        """Serves each key so often a second, and others, each of them rarely."""
        for _ in range(ms // STEP_MS):
            self.now += STEP_MS
            keys = [key for key, rate in rates.items() for _ in range(self.times(rate))]
            keys += self.random.choices(OTHERS, k=self.times(others))
            self.random.shuffle(keys)
            self.hot.count(self.hot.sample(keys), self.now)

    def times(self, rate: float) -> int:
        """How often in this step: as often as the rate says, on average."""
        return int(rate * STEP_MS / 1_000 + self.random.random())

    def is_hot(self, key: str) -> bool:
        return key in self.hot.among([key], self.now)

    def rate(self, key: str) -> float:
        return dict(self.hot.top(CAPACITY, self.now)).get(key, 0.0)


@pytest.fixture
def node() -> Served:
    return Served()


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_estimated_and_the_hottest_come_first(seed: int) -> None:
    node = Served(seed)
    node.serve({"hottest": 20_000, "hot": 10_000}, others=20_000)
    (first, at_most), (second, less), (_, little) = node.hot.top(3, node.now)
    assert (first, second) == ("hottest", "hot")
    assert at_most == pytest.approx(20_000, rel=0.2)
    assert less == pytest.approx(10_000, rel=0.2)
    assert little < 1_000
    assert node.hot.among(["hot", "cold", "hottest", "hot"], node.now) == {"hot", "hottest"}


def test_a_key_is_hot_soon_and_no_longer_when_others_are_served_instead(node: Served) -> None:
    node.serve({}, others=20_000)
    assert node.hot.keys == frozenset()
    node.serve({"a": 20_000}, others=20_000, ms=1_000)
    assert node.is_hot("a")
    node.serve({}, others=40_000)
    assert not node.is_hot("a")
    assert node.rate("a") < 1_000


def test_rates_are_those_of_about_the_last_ten_seconds(node: Served) -> None:
    node.serve({"a": 20_000})
    node.now += 10_000
    assert node.rate("a") == pytest.approx(20_000 * 0.135, rel=0.3)
    node.now += 100 * FADES_IN_MS
    assert node.hot.top(10, node.now) == []
    node.serve({"b": 5_000})
    assert node.rate("b") == pytest.approx(5_000, rel=0.25)


def test_nothing_is_hot_where_nothing_has_been_served_for_a_while(node: Served) -> None:
    node.serve({"a": 20_000})
    node.now += HOT_MS - STEP_MS
    assert node.is_hot("a")
    node.now += HOT_MS
    assert not node.is_hot("a")
    assert node.hot.keys == frozenset()


@pytest.mark.parametrize(
    ("rate", "others"),
    [(LEAST_RATE * 0.5, 0), (20_000 * LEAST_SHARE * 0.5, 20_000)],
    ids=["below the rate", "below the share"],
)
def test_what_is_served_seldom_is_not_hot(node: Served, rate: float, others: float) -> None:
    node.serve({"a": rate}, others=others)
    assert node.hot.keys == frozenset()


def test_a_hot_key_stays_so_with_half_as_much(node: Served) -> None:
    enough, half = LEAST_RATE * 1.6, LEAST_RATE * (STAYS_AT + 0.3)
    node.serve({"a": enough, "b": half})
    assert node.hot.keys == {"a"}
    node.serve({"a": half, "b": half})
    assert node.hot.keys == {"a"}
    node.serve({"a": LEAST_RATE * STAYS_AT * 0.5, "b": half})
    assert node.hot.keys == frozenset()


def test_the_hot_keys_are_few(node: Served) -> None:
    node.serve({f"k{number}": 10_000 for number in range(50)}, ms=2_000)
    assert len(node.hot.keys) <= 1 / (LEAST_SHARE * STAYS_AT)


def test_what_may_not_be_hot_is_counted_and_not_hot(node: Served) -> None:
    node.serve({"never": 20_000, "a": 20_000})
    assert node.hot.keys == {"a"}
    assert {key for key, _ in node.hot.top(2, node.now)} == {"never", "a"}


@pytest.mark.parametrize("size", [1, 3, ONE_IN, 10 * ONE_IN])
def test_what_callers_do_in_turns_is_sampled_evenly(size: int) -> None:
    """Also where the turn is as long as the distance between samples is on average."""
    hot, turns = HotKeys(0, Random(1), bool), 200_000 // size
    served = [str(number % ONE_IN) for number in range(size * turns)]
    counts = dict.fromkeys(served, 0)
    for turn in range(turns):
        for key in hot.sample(served[turn * size : (turn + 1) * size]):
            counts[key] += 1
    total = sum(counts.values())
    assert total == pytest.approx(len(served) / ONE_IN, rel=0.1)
    assert max(counts.values()) < 5 * total / len(counts)


def test_single_ones_are_sampled_as_often() -> None:
    hot = HotKeys(0, Random(1), bool)
    assert sum(hot.is_sampled() for _ in range(200_000)) == pytest.approx(200_000 / ONE_IN, rel=0.1)


class HotShard:
    """A shard that serves much of one key."""

    def __init__(self, namespaces: Namespaces | None = None) -> None:
        clock = ManualClock()
        store = Store(1 << 20, now=clock.now_ms())
        self.clock = clock
        self.shard = Shard("n1", store, clock, namespaces or Namespaces(), Random(1))

    def heat(self, key: str) -> None:
        for _ in range(10):
            self.clock.advance(100)
            self.shard.get_many([key] * 2_000)


@pytest.fixture
def at() -> HotShard:
    return HotShard()


def hot_of(reads: Reads) -> tuple[tuple[int, ...], int]:
    return reads.hot, reads.hot_ms


def test_answers_tell_which_keys_are_hot(at: HotShard) -> None:
    at.shard.set_many([(key, b"v", 0, 0) for key in ("a", "b")], with_changes=False)
    assert hot_of(at.shard.get_many(["a", "b"])) == ((), 0)
    at.heat("a")
    for values_only in (True, False):
        reads = at.shard.get_many(["b", "a", "c", "a"], values_only=values_only)
        assert hot_of(reads) == ((1, 3), HOT_MS)
    assert at.shard.get(Get("a")) == GetResult(
        GetOutcome.HIT, b"v", reads.versions[1] if reads.versions else 0, 0, 1_000, "n1", hot_ms=HOT_MS
    )
    assert at.shard.get(Get("b")).hot_ms == 0


def test_a_key_that_is_not_there_is_not_told_to_be_hot(at: HotShard) -> None:
    at.heat("a")
    assert at.shard.hot.keys == {"a"}
    assert hot_of(at.shard.get_many(["a", "a"])) == ((), 0)
    assert at.shard.get(Get("a")).hot_ms == 0


def test_a_key_whose_other_owners_are_told_later_is_not_told_to_be_hot() -> None:
    at = HotShard(Namespaces(by_name={"later": NamespacePolicy(is_async=True)}))
    at.shard.set_many([("later:a", b"v", 0, 0)], with_changes=False)
    at.heat("later:a")
    assert hot_of(at.shard.get_many(["later:a"])) == ((), 0)
    assert at.shard.hot.top(1, at.clock.now_ms())[0][0] == "later:a"


@pytest.mark.parametrize("operation", [Get("a"), Set("a", b"v"), Delete("a"), Touch("a")])
def test_operations_of_all_kinds_count(at: HotShard, operation: Operation) -> None:
    for _ in range(20_000):
        at.shard.apply(operation)
    [(key, rate)] = at.shard.hot.top(10, at.clock.now_ms())
    assert key == "a"
    assert rate == pytest.approx(20_000 * 1_000 / FADES_IN_MS, rel=0.3)


def test_batches_of_all_kinds_count(at: HotShard) -> None:
    at.shard.set_many([("set", b"v", 0, 0)] * 20_000, with_changes=False)
    at.shard.get_many(["get"] * 20_000)
    at.shard.delete_many(["delete"] * 20_000)
    rates = dict(at.shard.hot.top(10, at.clock.now_ms()))
    assert rates == {key: pytest.approx(4_000, rel=0.3) for key in ("set", "get", "delete")}


def test_positions_of_hot_keys_allow_for_rows_that_were_refused(at: HotShard) -> None:
    at.shard.set_many([("a", b"v", 0, 0)], with_changes=False)
    at.heat("a")
    reads = at.shard.get_many(["b", "a"])
    refused = {0: InvalidArgument("no"), 2: InvalidArgument("no")}
    assert hot_of(reads.with_refused(dict(refused))) == ((3,), HOT_MS)


def test_answers_one_by_one_and_columns_tell_the_same() -> None:
    answers = [GetResult(GetOutcome.HIT), GetResult(GetOutcome.HIT, hot_ms=700)]
    assert hot_of(Reads.of(answers)) == ((1,), 700)
    assert hot_of(Reads.of(answers[:1])) == ((), 0)
