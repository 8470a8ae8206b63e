from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cacheservice.errors import EntryTooLarge, Overloaded
from cacheservice.store import POLICIES, Entry, Store, cost_of_one, pack, unpack
from cacheservice.store import store as store_module
from cacheservice.store.cost import cost_in_bytes
from cacheservice.store.entry import MAX_TIME, dead_at, version_of
from cacheservice.store.expiry import HORIZON_MS, TICK_MS
from cacheservice.store.segment import HASH_BITS, MAX_ENTRIES, Segment
from cacheservice.store.store import EXPIRED_AT_A_TIME, MAX_EVICTIONS, Found, Removed
from tests.store.naive import Key

ALL_KEYS = [Key(f"{kind}{number}") for kind in ("a:", "b:", "ключ", "🔑") for number in range(8)]
KEYS = st.sampled_from(ALL_KEYS)
PREFIXES = st.sampled_from(["", "a:", "a:1", "ключ", "none"])
TAGS = st.sampled_from(["red", "green", "ä"])
LIFETIMES = st.one_of(st.just(0), st.integers(1, 10_000), st.integers(1, 3 * HORIZON_MS))
SIZES = st.one_of(st.integers(0, 60), st.integers(0, 3_000))
SMALL_SEGMENT = 4
PLAIN = pack(Entry(b"", 1, 0))


def upkeep(store: Store, now: int) -> int:
    """Runs it dry; tells how many slices that took."""
    slices = 0
    while store.upkeep(now):
        slices += 1
    return slices


def places(store: Store) -> Iterator[tuple[int, Segment]]:
    """Each segment, with the first position that it is responsible for."""
    position = 0
    while position < 1 << HASH_BITS:
        segment = store._segments[position >> store._shift]
        yield position, segment
        position += 1 << HASH_BITS - segment.depth


def span_of(segment: Segment) -> int:
    """How many positions the segment is responsible for."""
    return 1 << HASH_BITS - segment.depth


def check_books(store: Store) -> None:
    """Everything that is counted is what it would be if it were counted now."""
    assert len(store._segments) == 1 << HASH_BITS - store._shift
    total = entries = 0
    for first, segment in places(store):
        span = 1 << HASH_BITS - segment.depth
        indexes = range(first >> store._shift, first + span >> store._shift)
        assert all(store._segments[index] is segment for index in indexes)
        held = dict(segment.policy.items())
        assert all(first <= hash(key) % (1 << HASH_BITS) < first + span for key in held)
        assert segment.count == len(segment.policy) == len(held)
        assert segment.bytes == sum(store._cost(key, packed) for key, packed in held.items())
        near = {key for key, packed in held.items() if dead_at(packed) < segment.expiry.horizon}
        noted = [key for bucket in segment.expiry._buckets.values() for key in bucket]
        assert len(noted) == len(near)
        assert set(noted) == near
        for tag in segment.tags._keys:
            assert sorted(segment.tags.keys(tag)) == sorted(
                key for key, packed in held.items() if tag in unpack(packed).tags
            )
        assert {tag for packed in held.values() for tag in unpack(packed).tags} == set(segment.tags._keys)
        total += segment.bytes
        entries += segment.count
    assert store.bytes == total
    assert len(store) == entries == len(list(store))


class StoreAgainstDict(RuleBasedStateMachine):
    """The store beside a dict that knows which entries it may, and may not, still hold.

    Segments are split as soon as they hold a handful of entries.
    """

    policy: str

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store_module, "MAX_ENTRIES", SMALL_SEGMENT)
        self.now = 10_000
        self.version = 0
        self.written: dict[Key, bytes] = {}
        self.scan: Iterator[tuple[int, list[Found]]] | None = None

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(max_bytes=st.integers(500, 8_000))
    def make(self, max_bytes: int) -> None:
        self.store = Store(max_bytes, self.policy, now=self.now)

    @rule(key=KEYS, size=SIZES, ttl=LIFETIMES, stale=st.integers(0, 2_000), tags=st.sets(TAGS))
    def write(self, key: Key, size: int, ttl: int, stale: int, tags: set[str]) -> None:
        self._set(key, size, ttl, stale, tuple(tags))

    @rule(random=st.randoms(use_true_random=False))
    def write_all(self, random: Random) -> None:
        for key in random.sample(ALL_KEYS, len(ALL_KEYS)):
            ttl = random.choice([0, random.randrange(1, 10_000), random.randrange(1, 3 * HORIZON_MS)])
            tags = random.sample(["red", "green"], random.randrange(3))
            self._set(key, random.randrange(30), ttl, tags=tuple(tags))

    @rule(key=KEYS)
    def get(self, key: Key) -> None:
        self._get([key], many=False)

    @rule(keys=st.lists(KEYS, max_size=12))
    def get_many(self, keys: list[Key]) -> None:
        self._get(keys, many=True)

    @rule(key=KEYS)
    def delete(self, key: Key) -> None:
        held = self.held()
        assert self.store.delete(key) is (key in held)
        held.pop(key, None)
        assert self.held() == held

    @rule(key=KEYS)
    def drop(self, key: Key) -> None:
        held, deletes = self.held(), self.store.stats.deletes
        assert self.store.drop(key) is (key in held)
        held.pop(key, None)
        assert self.held() == held
        assert self.store.stats.deletes == deletes

    @rule(ms=st.one_of(st.integers(0, 3_000), st.integers(0, HORIZON_MS)))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule()
    def wait_for_the_next_death(self) -> None:
        ends = [dead_at(packed) for packed in self.written.values()]
        self.now = min((end for end in ends if self.now < end < MAX_TIME), default=self.now)

    @rule()
    def upkeep(self) -> None:
        held, removed = self.held(), self.store.stats.expired_unseen
        while self.store.upkeep(self.now):
            pass
        kept = self.held()
        assert self.store.stats.expired_unseen - removed == len(held) - len(kept)
        assert all(dead_at(packed) <= self.now for key, packed in held.items() if key not in kept)
        assert [key for key, packed in kept.items() if dead_at(packed) + TICK_MS <= self.now] == []

    @rule(tag=TAGS, age=st.integers(0, 5))
    def invalidate_tag(self, tag: str, age: int) -> None:
        version = max(0, self.version - age)
        tagged = {key for key in self._up_to(version) if tag in unpack(self.held()[key]).tags}
        self._invalidate(self.store.invalidate_tag(tag, version), tagged)

    @rule(prefix=PREFIXES, age=st.integers(0, 5))
    def invalidate_prefix(self, prefix: str, age: int) -> None:
        version = max(0, self.version - age)
        found = {key for key in self._up_to(version) if key.startswith(prefix)}
        self._invalidate(self.store.invalidate_prefix(prefix, version), found)

    @rule(prefix=PREFIXES, page=st.integers(1, 5))
    def scan_by_pages(self, prefix: str, page: int) -> None:
        expected = sorted(
            (key.position, key, packed)
            for key, packed in self.held().items()
            if key.startswith(prefix) and dead_at(packed) > self.now
        )
        assert [found for _, step in self.store.scan(prefix, self.now) for found in step] == expected
        found: list[Found] = []
        start = 0
        for _ in range(len(expected) // page + 1):
            everything = (each for _, step in self.store.scan(prefix, self.now, start) for each in step)
            found += islice(everything, page)
            start = found[-1][0] + 1 if found else 0
        assert found == expected

    @rule(start=st.one_of(st.just(0), KEYS.map(lambda key: key.position)))
    def walk_on_from_each_step(self, start: int) -> None:
        places_there = [place for place in places(self.store) if place[0] + span_of(place[1]) > start]
        for first, segment in places_there:
            end, keys = next(self.store.walk(max(start, first)))
            assert end == first + span_of(segment)
            assert keys == [key for key, _ in segment.policy.hottest()]
        steps = list(self.store.walk(start))
        assert [end for end, _ in steps] == [first + span_of(segment) for first, segment in places_there]
        if start == 0:
            assert sorted(key for _, keys in steps for key in keys) == sorted(self.held())

    @precondition(lambda self: self.scan is None)
    @rule(prefix=PREFIXES)
    def begin_a_scan(self, prefix: str) -> None:
        self.scan = self.store.scan(prefix, self.now)
        self.scanned: list[Key] = []
        self.all_the_time = {
            key
            for key, packed in self.held().items()
            if key.startswith(prefix) and dead_at(packed) > self.now + 10 * HORIZON_MS
        }

    @precondition(lambda self: self.scan is not None)
    @rule()
    def go_on_with_the_scan(self) -> None:
        assert self.scan is not None
        step = next(self.scan, None)
        if step is not None:
            self.scanned += [Key(key) for _, key, _ in step[1]]
            return
        self.scan = None
        assert len(self.scanned) == len(set(self.scanned))
        assert self.all_the_time <= set(self.scanned)

    @invariant()
    def the_books_are_exact(self) -> None:
        check_books(self.store)
        assert self.store.bytes <= self.store.max_bytes

    @invariant()
    def holds_nothing_but_what_was_written_last(self) -> None:
        held = self.held()
        assert held.items() <= self.written.items()
        self.written = held
        if self.scan is not None:
            self.all_the_time &= held.keys()

    @invariant()
    def a_look_finds_the_living_and_nothing_else(self) -> None:
        held = self.held()
        for key in ALL_KEYS:
            packed = held.get(key)
            living = packed if packed is not None and dead_at(packed) > self.now else None
            assert self.store.peek(key, self.now) == living

    def held(self) -> dict[Key, bytes]:
        return {
            Key(key): packed for _, segment in places(self.store) for key, packed in segment.policy.items()
        }

    def _set(self, key: Key, size: int, ttl: int = 0, stale: int = 0, tags: tuple[str, ...] = ()) -> None:
        self.version += 1
        expires = self.now + ttl if ttl else 0
        packed = pack(Entry(bytes(size), self.version, self.now, expires, stale, 0, tags))
        held, evictions = self.held(), self.store.stats.evictions
        has_room = self.store.has_room(key, size)
        try:
            self.store.set(key, packed)
        except EntryTooLarge:
            assert self.store._cost(key, packed) > self.store.max_bytes
            assert self.held() == held
            return
        self.written[key] = packed
        now_held = self.held()
        assert now_held.pop(key) == packed
        held.pop(key, None)
        assert now_held.items() <= held.items()
        evicted = self.store.stats.evictions - evictions
        assert len(held) - len(now_held) <= evicted <= len(held) - len(now_held) + 1
        assert not (has_room and evicted)

    def _get(self, keys: list[Key], *, many: bool) -> None:
        hits, misses = self.store.stats.hits, self.store.stats.misses
        expired = self.store.stats.expired_on_access
        held = self.held()
        expected = [self.store.peek(key, self.now) for key in keys]
        found = (
            self.store.get_many(list[str](keys), self.now)
            if many
            else [self.store.get(key, self.now) for key in keys]
        )
        assert found == expected
        dead = {key for key in keys if key in held and dead_at(held[key]) <= self.now}
        assert self.held() == {key: packed for key, packed in held.items() if key not in dead}
        assert self.store.stats.expired_on_access - expired == len(dead)
        assert self.store.stats.misses - misses == found.count(None)
        assert self.store.stats.hits - hits == len(keys) - found.count(None)

    def _up_to(self, version: int) -> set[Key]:
        return {key for key, packed in self.held().items() if unpack(packed).version <= version}

    def _invalidate(self, steps: Iterator[list[Removed]], keys: set[Key]) -> None:
        held, invalidated = self.held(), self.store.stats.invalidated
        assert sorted(each for step in steps for each in step) == sorted(
            (key, version_of(held[key])) for key in keys
        )
        assert self.held() == {key: packed for key, packed in held.items() if key not in keys}
        assert self.store.stats.invalidated - invalidated == len(keys)


def machine_of(name: str) -> type[StoreAgainstDict]:
    class Machine(StoreAgainstDict):
        policy = name

    return Machine


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_store_beside_a_dict(policy: str) -> None:
    run_state_machine_as_test(machine_of(policy), settings=settings(max_examples=25, stateful_step_count=30))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_store_beside_a_dict_on_a_long_run(policy: str) -> None:
    random = Random(policy)
    machine = machine_of(policy)()
    machine.make(max_bytes=5_000)
    for _ in range(1_500):
        take_a_step(machine, random)
        machine.the_books_are_exact()
        machine.holds_nothing_but_what_was_written_last()
        machine.a_look_finds_the_living_and_nothing_else()
    machine.teardown()
    stats = machine.store.stats
    events = (stats.hits, stats.evictions, stats.expired_on_access, stats.expired_unseen, stats.invalidated)
    assert min(events) > 5
    assert len(list(places(machine.store))) > 4


def take_a_step(machine: StoreAgainstDict, random: Random) -> None:
    key, tag = random.choice(ALL_KEYS), random.choice(["red", "green", "ä"])
    prefix = random.choice(["", "a:", "ключ"])
    ttl = random.choice([0, random.randrange(1, 10_000), random.randrange(1, 3 * HORIZON_MS)])
    steps: list[tuple[int, Callable[[], object]]] = [
        (30, lambda: machine.write(key, random.randrange(100), ttl, random.randrange(2_000), {tag})),
        (10, lambda: machine.get(key)),
        (5, lambda: machine.get_many(random.choices(ALL_KEYS, k=10))),
        (3, lambda: machine.delete(key)),
        (2, lambda: machine.drop(key)),
        (2, lambda: machine.walk_on_from_each_step(0)),
        (3, machine.wait_for_the_next_death),
        (1, lambda: machine.wait(random.choice([1_000, HORIZON_MS // 2]))),
        (3, machine.upkeep),
        (1, lambda: machine.invalidate_tag(tag, random.randrange(3))),
        (1, lambda: machine.invalidate_prefix(f"{prefix}{random.randrange(8)}", random.randrange(3))),
        (2, lambda: machine.scan_by_pages(prefix, random.randrange(1, 6))),
        (10, lambda: machine.go_on_with_the_scan() if machine.scan else machine.begin_a_scan(prefix)),
    ]
    weights, choices = zip(*steps, strict=True)
    random.choices(choices, weights)[0]()


@pytest.fixture
def most_in_a_segment(monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes segments small."""
    monkeypatch.setattr(store_module, "MAX_ENTRIES", 64)
    return 64


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_does_not_fit_is_refused_and_evicts_nothing(policy: str) -> None:
    store = Store(2_000, policy, now=0)
    store.set("small", pack(Entry(b"x", 1, 0)))
    with pytest.raises(EntryTooLarge, match="does not fit") as caught:
        store.set("large", pack(Entry(bytes(2_000), 2, 0)))
    assert caught.value.metadata["field"] == "value"
    assert store.peek("small", 0) is not None
    assert store.stats.evictions == store.stats.expirations == 0
    assert store.stats.sets == 1


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_fills_the_store_alone_is_taken(policy: str) -> None:
    largest = pack(Entry(bytes(1_000), 1, 0))
    store = Store(cost_in_bytes(policy)("a", largest), policy, now=0)
    for key in "bab":
        store.set(key, largest)
        assert list(store) == [key]
    assert store.bytes == store.max_bytes


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_there_is_room_until_something_would_have_to_go(policy: str) -> None:
    store = Store(100_000, policy, now=0)
    packed = pack(Entry(bytes(500), 1, 0))
    for number in count():
        if not store.has_room(f"key{number}", 500):
            break
        store.set(f"key{number}", packed)
        assert store.stats.evictions == 0
    assert store.bytes > 0.97 * store.max_bytes
    for number in range(20):
        store.set(f"more{number}", packed)
    assert store.stats.evictions > 0


def test_there_is_less_room_while_the_process_is_too_large() -> None:
    store = Store(100_000, now=0)
    assert store.has_room("key", 50_000)
    store.limit = 50_000
    assert not store.has_room("key", 50_000)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.usefixtures("most_in_a_segment")
def test_a_walk_gives_what_is_there_all_the_time_once(policy: str) -> None:
    """Segments are split, and entries come and go, while it is under way."""
    random = Random(policy)
    store = Store(1 << 20, policy, now=0)
    keys = [f"key{number}" for number in range(3_000)]
    for key in keys[:1_000]:
        store.set(key, PLAIN)
    found: list[str] = []
    stay = set(keys[:500])
    for _, some in store.walk():
        found += some
        for key in random.sample(keys[500:], 100):
            if random.random() < 0.3:
                store.delete(key)
            else:
                store.set(key, PLAIN)
    assert len(found) == len(set(found))
    assert stay <= set(found)


def weight(_key: str, packed: bytes) -> int:
    return len(unpack(packed).value)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_larger_value_for_the_entry_whose_turn_it_is_does_not_exceed_the_bound(policy: str) -> None:
    store = Store(1_000, policy, now=0, cost=weight)
    for key, size in (("a", 400), ("b", 400), ("a", 700)):
        store.set(key, pack(Entry(bytes(size), 1, 0)))
    assert store.peek("a", 0) is not None
    assert store.bytes <= store.max_bytes
    check_books(store)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_new_value_of_the_same_size_evicts_nothing(policy: str) -> None:
    store = Store(3, policy, now=0, cost=cost_of_one)
    for key in "abcabcabc":
        store.set(key, PLAIN)
    assert sorted(store) == ["a", "b", "c"]
    assert store.stats.evictions == 0


def test_writes_and_deletions_of_many_are_those_of_each_in_order() -> None:
    store = Store(1_000, now=0, cost=weight)
    sizes = [("a", 10), ("b", 1_001), ("c", 10), ("a", 20)]
    refused = store.set_many([(key, pack(Entry(bytes(size), 1, 0))) for key, size in sizes])
    assert [type(each) for each in refused] == [type(None), EntryTooLarge, type(None), type(None)]
    assert store.bytes == 30
    assert store.delete_many(["a", "b", "c", "a"]) == [True, False, True, False]
    assert (store.stats.sets, store.stats.deletes) == (3, 2)


def test_when_the_limit_is_lowered_the_upkeep_evicts_down_to_it() -> None:
    store = Store(3_000, now=0, cost=cost_of_one)
    for number in range(3_000):
        store.set(Key(str(number)), PLAIN)
    store.limit = 500
    assert upkeep(store, 0) == 2_500 // MAX_EVICTIONS
    assert len(store) == 500
    store.set(Key("new"), PLAIN)
    assert len(store) == 500
    check_books(store)


@pytest.mark.usefixtures("most_in_a_segment")
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_compacting_changes_nothing(policy: str) -> None:
    store = Store(100_000, policy, now=0)
    for number in range(1_000):
        store.set(f"{number}", pack(Entry(bytes(number), 1, 0, 500 * (number % 9), tags=("red",))))
    held = {key: store.peek(key, 0) for key in store}
    assert sum(1 for _ in store.compact()) == len(list(places(store)))
    assert {key: store.peek(key, 0) for key in store} == held
    check_books(store)
    upkeep(store, 6_000)
    assert sum(map(len, store.invalidate_tag("red", 1))) == len(held) - store.stats.expired_unseen > 0
    assert store.bytes == len(store) == 0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_more_entries_than_allowed(policy: str) -> None:
    store = Store(100, policy, now=0, cost=cost_of_one)
    random = Random(4)
    for _ in range(2_000):
        store.set(f"key{random.randrange(300)}", PLAIN)
        assert store.bytes == len(store) <= 100
    assert len(store) == 100
    assert store.stats.evictions > 100


def test_stale_entries_are_kept_until_their_window_closes() -> None:
    store = Store(1 << 20, now=0)
    store.set("a", pack(Entry(b"v", 1, 0, expires=1_000, stale_ms=5_000)))
    upkeep(store, 5_999)
    assert store.get("a", 5_999) is not None
    assert store.get("a", 6_000) is None
    assert store.stats.expired_on_access == 1


@pytest.mark.parametrize(("first", "second"), [(60_000, 1_000), (600_000, 1_000), (0, 1_000)])
def test_a_shorter_time_to_live_takes_effect(first: int, second: int) -> None:
    store = Store(1 << 20, now=0)
    store.set("a", pack(Entry(b"", 1, 0, expires=first)))
    store.set("a", pack(Entry(b"", 2, 0, expires=second)))
    upkeep(store, second + TICK_MS)
    assert len(store) == 0
    assert store.stats.expired_unseen == 1


@pytest.mark.parametrize(("first", "second"), [(1_000, 60_000), (1_000, 600_000), (1_000, 0)])
def test_a_longer_time_to_live_takes_effect(first: int, second: int) -> None:
    store = Store(1 << 20, now=0)
    store.set("a", pack(Entry(b"", 1, 0, expires=first)))
    store.set("a", pack(Entry(b"", 2, 0, expires=second)))
    upkeep(store, 59_999)
    assert store.get("a", 59_999) is not None


def test_many_that_expire_at_once_are_removed_in_slices() -> None:
    store = Store(1 << 30, now=0)
    for number in range(20_000):
        store.set(f"short{number}", pack(Entry(b"", 1, 0, expires=500)))
        store.set(f"long{number}", PLAIN)
    assert upkeep(store, TICK_MS - 1) == 0
    assert store.get("short7", TICK_MS - 1) is None
    left = len(store)
    slices = 0
    while store.upkeep(TICK_MS):
        slices += 1
        assert 0 < left - len(store) <= EXPIRED_AT_A_TIME
        left = len(store)
    assert all(key.startswith("long") for key in store)
    assert len(store) == 20_000
    assert store.stats.expired_unseen == 19_999
    least = 20_000 // EXPIRED_AT_A_TIME
    assert least <= slices <= least + len(store._segments)
    check_books(store)


@pytest.mark.usefixtures("most_in_a_segment")
def test_every_entry_goes_soon_after_its_death_however_far_off_that_was() -> None:
    random = Random(11)
    store = Store(1 << 30, now=0)
    dies: dict[str, int] = {}
    for now in range(0, 600_000, 1_000):
        for _ in range(5):
            key = f"key{random.randrange(4_000)}"
            dies[key] = now + random.choice([random.randrange(1, 600_000), random.randrange(1, 20_000)])
            store.set(key, pack(Entry(b"", 1, now, dies[key])))
        upkeep(store, now)
        held = set(store)
        assert {key for key, end in dies.items() if end > now} <= held
        assert [key for key in held if dies[key] <= now - 5_000] == []
        dies = {key: dies[key] for key in held}
    assert len(store._segments) > 8
    assert store.stats.expired_unseen > 1_000
    check_books(store)


def test_what_was_neglected_for_long_is_made_up_for_in_one_go() -> None:
    store = Store(1 << 30, now=0)
    for number in range(3_000):
        store.set(str(number), pack(Entry(b"", 1, 0, expires=1 + number * 1_000)))
    upkeep(store, 3_000_000)
    assert len(store) == 0


def test_there_is_nothing_to_do_in_an_idle_store_until_the_horizon_comes_near() -> None:
    store = Store(1 << 20, now=0)
    store.set("a", PLAIN)
    busy = []
    for now in range(0, 600_000, 1_000):
        while store.upkeep(now):
            busy.append(now)
    assert sorted(set(busy)) == list(range(24_000, 600_000, 24_000))


def test_upkeep_looks_at_so_many_segments_at_a_time_and_then_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "LOOKED_AT_AT_A_TIME", 3)
    store = Store(1 << 30, now=0)
    for number in range(20_000):
        store.set(str(number), PLAIN)
    segments = len(store._segments)
    upkeep(store, 0)
    assert [store.upkeep(0) for _ in range(2 * (segments // 3 + 1))] == 2 * (
        [True] * (segments // 3) + [False]
    )


def test_a_huge_entry_evicts_some_at_once_and_the_upkeep_the_rest() -> None:
    store = Store(10 << 20, now=0)
    number = 0
    while not store.stats.evictions:
        store.set(Key(str(number)), PLAIN)
        number += 1
    before = store.stats.evictions
    store.set(Key("huge"), pack(Entry(bytes(4 << 20), 1, 0)))
    assert store.stats.evictions - before == MAX_EVICTIONS
    overdraft = store.bytes - store.max_bytes
    assert overdraft > 3 << 20
    slices = 0
    while store.bytes > store.max_bytes:
        evictions = store.stats.evictions
        assert store.upkeep(0)
        assert store.stats.evictions - evictions <= MAX_EVICTIONS
        slices += 1
    assert slices > 2
    assert not store.upkeep(0)
    assert store.peek(Key("huge"), 0) is not None
    assert store.bytes > store.max_bytes - 200
    check_books(store)


def test_small_writes_after_a_huge_one_share_what_it_left_to_evict() -> None:
    store = Store(10 << 20, now=0)
    for number in range(60_000):
        store.set(Key(str(number)), PLAIN)
    for number in range(2):
        store.set(Key(f"huge{number}"), pack(Entry(bytes(600_000), 1, 0)))
    before, overdraft = store.stats.evictions, store.bytes - store.max_bytes
    assert store.set_many([(Key(f"small{number}"), PLAIN) for number in range(100)]) == [None] * 100
    assert 200 < store.stats.evictions - before < 1_000
    assert store.bytes - store.max_bytes < overdraft


@pytest.mark.usefixtures("most_in_a_segment")
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_however_many_huge_entries_come_the_overdraft_is_bounded(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(store_module, "MAX_EVICTIONS", 20)
    monkeypatch.setattr(store_module, "MAX_OVERDRAFT", 100_000)
    store = Store(400_000, policy, now=0)
    random = Random(8)
    most = refused = 0
    for number in range(3_000):
        key, evictions = Key(f"key{random.randrange(4_000)}"), store.stats.evictions
        size = random.randrange(200_000) if number % 100 > 95 else random.randrange(100)
        packed = pack(Entry(bytes(size), 1, 0))
        try:
            store.set(key, packed)
        except Overloaded:
            refused += 1
            assert store.peek(key, 0) != packed
        assert store.stats.evictions - evictions <= 20
        most = max(most, store.bytes - store.max_bytes)
        if number % 500 == 499:
            check_books(store)
            upkeep(store, 0)
            assert store.bytes <= store.max_bytes
    assert 0 < most <= 50_000 + 200_000, "an eighth of the bound, and the largest entry"
    assert refused > 0


def test_no_segment_outgrows_its_bound_and_each_is_some_use() -> None:
    store = Store(1 << 30, now=0)
    for number in range(50_000):
        store.set(str(number), PLAIN)
    counts = [segment.count for _, segment in places(store)]
    assert max(counts) <= MAX_ENTRIES
    assert min(counts) > MAX_ENTRIES // 4
    check_books(store)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_keys_whose_hashes_begin_alike_are_found_all_the_same(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(store_module, "MAX_ENTRIES", SMALL_SEGMENT)
    store = Store(1 << 20, policy, now=0)
    ends = [Key("first", 0), Key("last", (1 << HASH_BITS) - 2)]
    crowd = [Key(f"crowd{number}", 0xABC << 52 | number << 48) for number in range(16)]
    for key in ends + crowd:
        store.set(key, pack(Entry(key.encode(), 1, 0, expires=1_000, tags=("all",))))
        check_books(store)
    found = store.get_many(list[str](ends + crowd), 0)
    assert [unpack(packed).value.decode() for packed in found if packed] == ends + crowd
    assert [key for _, step in store.scan("", 0) for _, key, _ in step] == [ends[0], *crowd, ends[1]]
    depths = [segment.depth for _, segment in places(store)]
    assert (min(depths), max(depths)) == (1, 14)
    assert sum(map(len, store.invalidate_tag("all", 1))) == 18
    check_books(store)


@pytest.mark.usefixtures("most_in_a_segment")
@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("page", [1, 7, None])
def test_a_scan_finds_once_what_is_there_all_the_time(policy: str, page: int | None) -> None:
    """While it goes on, entries are added, renewed, evicted and deleted, and segments split."""
    random = Random(21)
    store = Store(1_300, policy, now=0, cost=cost_of_one)
    for number in range(1_000):
        store.set(Key(f"p:{number}"), PLAIN)
    there = set(store)
    segments = len(list(places(store)))
    found: list[str] = []
    for keys in scanned(store, "p:", page):
        found += keys
        for _ in range(len(keys)):
            store.set(Key(f"{random.choice('pq')}:new{random.randrange(10_000)}"), PLAIN)
            store.get(Key(f"p:{random.randrange(500, 1_000)}"), 0)
        store.delete(Key(f"p:{random.randrange(500)}"))
        store.set(Key(f"p:{random.randrange(900, 1_000)}"), PLAIN)
        there &= set(store)
    assert len(list(places(store))) > segments
    assert store.stats.evictions > 0
    assert len(there) > 100
    assert len(found) == len(set(found))
    assert there <= set(found)


def scanned(store: Store, prefix: str, page: int | None) -> Iterator[list[str]]:
    """The keys in pages of a scan of its own each, or by the steps of one scan."""
    if page is None:
        for _, found in store.scan(prefix, 0):
            yield [key for _, key, _ in found]
        return
    start = 0
    while True:
        everything = (each for _, step in store.scan(prefix, 0, start) for each in step)
        found = list(islice(everything, page))
        if not found:
            return
        yield [key for _, key, _ in found]
        start = found[-1][0] + 1


@pytest.mark.usefixtures("most_in_a_segment")
@pytest.mark.parametrize("by", ["tag", "prefix"])
def test_an_invalidation_finds_what_was_there_when_it_began_although_segments_split(by: str) -> None:
    store = Store(1 << 30, now=0)
    for number in range(500):
        store.set(Key(f"p:{number}"), pack(Entry(b"", 1, 0, tags=("red",))))
    segments = len(list(places(store)))
    removed = 0
    others = count()
    for step in store.invalidate_tag("red", 1) if by == "tag" else store.invalidate_prefix("p:", 1):
        removed += len(step)
        for number in islice(others, 200):
            store.set(Key(f"q:{number}"), PLAIN)
    assert len(list(places(store))) > segments
    assert removed == store.stats.invalidated == 500
    assert all(key.startswith("q:") for key in store)
    check_books(store)


def test_a_step_of_an_invalidation_or_a_scan_looks_at_one_segment(most_in_a_segment: int) -> None:
    store = Store(1 << 30, now=0)
    for number in range(1_000):
        store.set(Key(f"p:{number}"), pack(Entry(b"", 1, 0, tags=("red",))))
    assert max(len(found) for _, found in store.scan("p:", 0)) <= most_in_a_segment
    ends = [end for end, _ in store.scan("p:", 0)]
    assert ends == sorted(set(ends))
    assert ends[-1] == 1 << HASH_BITS
    assert max(map(len, store.invalidate_tag("red", 1))) <= most_in_a_segment
    assert list(store.scan("p:", 0, 1 << HASH_BITS)) == []
