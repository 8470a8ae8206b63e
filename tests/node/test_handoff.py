"""One node that hands over, in virtual time, to others that only take what they are given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import wraps
from random import Random

import pytest

from cacheservice.membership import Member, Phase, State
from cacheservice.node.courier import BYTES_AT_A_TIME, ENTRY_BYTES, KEYS_AT_A_TIME, Courier
from cacheservice.node.handoff import HOTTEST, Handoff
from cacheservice.node.namespaces import Namespaces
from cacheservice.node.operations import Change, Delete, Get, Set
from cacheservice.node.settling import Settling
from cacheservice.node.shard import Shard
from cacheservice.node.transport import PeerUnreachable
from cacheservice.node.view import View, ViewBuilder
from cacheservice.store import Store, unpack
from tests.node.no_transport import NoTransport
from tests.simulation.virtual_time import run
from tests.simulation.world import LoopClock

FAST = 1 << 40
KEYS = [f"k{number}" for number in range(1_000)]


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def running(*arguments: object, **named: object) -> None:
        async def work() -> None:
            await test(*arguments, **named)

        run(work())

    return running


class Clock(LoopClock):
    """Virtual time, which can be set forward."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    def advance(self, ms: int) -> None:
        self.ahead_ms += ms


class Others(NoTransport):
    """The other nodes' shards, and what was asked of them."""

    def __init__(self, clock: Clock) -> None:
        self.shards: dict[str, Shard] = {}
        self.down: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        """Node and key of each version that was asked for."""
        self.given: list[tuple[str, list[str], bool]] = []
        """Node, keys and if_room of each call of hand_over."""
        self.words: list[tuple[str, int, int]] = []
        """Node, ring and absences of each word that everything has been handed over."""
        self.on_asked: Callable[[], None] = lambda: None
        self.on_given: Callable[[], None] = lambda: None
        self.on_word: Callable[[], None] = lambda: None
        self._clock = clock

    def __getitem__(self, node_id: str) -> Shard:
        if node_id not in self.shards:
            self.shards[node_id] = new_shard(node_id, self._clock)
        return self.shards[node_id]

    async def held(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[int]:
        await self._travel(node_id)
        self.asked += [(node_id, key) for key in keys]
        self.on_asked()
        return [self[node_id].version(key) for key in keys]

    async def hand_over(
        self, node_id: str, changes: Sequence[Change], *, if_room: bool, timeout_ms: int
    ) -> list[int]:
        await self._travel(node_id)
        assert len(changes) <= KEYS_AT_A_TIME
        self.given.append((node_id, [change.key for change in changes], if_room))
        versions = [self[node_id].take_in(change, if_room=if_room) for change in changes]
        self.on_given()
        return versions

    async def fetch(
        self, node_id: str, keys: Sequence[str], versions: Sequence[int], *, timeout_ms: int
    ) -> list[Change]:
        await self._travel(node_id)
        changes = [self[node_id].change(key) for key in keys]
        return [change for change in changes if change is not None]

    async def handed_over(self, node_id: str, ring_epoch: int, absences: int, *, timeout_ms: int) -> None:
        await self._travel(node_id)
        self.words.append((node_id, ring_epoch, absences))
        self.on_word()

    async def _travel(self, node_id: str) -> None:
        await asyncio.sleep(0.001)
        if node_id in self.down:
            raise PeerUnreachable(node_id, "down", maybe_done=False)

    def given_keys(self, node_id: str | None = None, *, if_room: bool | None = None) -> list[str]:
        return [
            key
            for name, keys, was_if_room in self.given
            for key in keys
            if node_id in (None, name) and if_room in (None, was_if_room)
        ]


def new_shard(node_id: str, clock: Clock, max_bytes: int = 1 << 30) -> Shard:
    store = Store(max_bytes, now=clock.now_ms())
    return Shard(node_id, store, clock, Namespaces(), Random(1))


class Giver:
    """n1, which holds entries, and hands them over."""

    def __init__(self, count: int = 1, bytes_per_second: int = FAST, holding: Iterable[str] = ()) -> None:
        self.clock = Clock()
        self.others = Others(self.clock)
        self.shard = new_shard("n1", self.clock)
        self._builder = ViewBuilder(16)
        self.view = self._seen(["n1"])
        self._count = count
        self.settling = Settling("n1", count, self.view)
        courier = Courier(self.shard, self.others, self.clock, bytes_per_second)
        self.handoff = Handoff("n1", count, self.shard, self.others, self.settling, courier)
        self.fill(holding)
        self.handoff.view_changed(self.view)
        self._running = asyncio.create_task(self.handoff.run())

    def see(
        self,
        serving: Iterable[str],
        warming: Iterable[str] = (),
        leaving: Iterable[str] = (),
        *,
        again: Collection[str] = (),
        suspects: Collection[str] = (),
    ) -> View:
        """Changes the view; those who came `again` have been away."""
        self.view = self._seen(serving, warming, leaving, again, suspects)
        self.settling.view_changed(self.view)
        self.handoff.view_changed(self.view)
        return self.view

    def settle(self) -> None:
        """All others have handed over what they held for this node."""
        for other in self.view.others("n1"):
            self.settling.handed_over(other, self.view.ring.epoch, self.view.absences.get("n1", 0))
        self.handoff.has_settled()

    async def complete(self, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            await self.handoff.completed()

    def fill(self, keys: Iterable[str] = KEYS, value: bytes = b"v") -> None:
        for key in keys:
            self.shard.apply(Set(key, value))

    def write(self, node_id: str, key: str, value: bytes) -> None:
        """Has another node hold a write that is later than all before."""
        self.clock.advance(1)
        _, change = self.others[node_id].apply(Set(key, value))
        assert change is not None

    def copy(self, node_id: str, keys: Iterable[str]) -> None:
        for key in keys:
            change = self.shard.change(key)
            assert change is not None
            self.others[node_id].merge(change)

    def owned(self, node_id: str, keys: Iterable[str] = KEYS) -> list[str]:
        return [key for key in keys if node_id in self.view.ring.owners(key, self._count)]

    def _seen(
        self,
        serving: Iterable[str],
        warming: Iterable[str] = (),
        leaving: Iterable[str] = (),
        again: Collection[str] = (),
        suspects: Collection[str] = (),
    ) -> View:
        phases = dict.fromkeys(serving, Phase.SERVING)
        phases |= dict.fromkeys(warming, Phase.WARMING) | dict.fromkeys(leaving, Phase.LEAVING)
        states = dict.fromkeys(suspects, State.SUSPECT)
        return self._builder.view_of(
            [
                Member(name, name, states.get(name, State.ALIVE), phase, absences=int(name in again))
                for name, phase in phases.items()
            ]
        )


def keys_of(shard: Shard) -> list[str]:
    return sorted(shard.store)


def value_of(shard: Shard, key: str) -> bytes | None:
    packed = shard.store.peek(key, 0)
    return unpack(packed).value if packed else None


@in_virtual_time
async def test_a_new_owner_is_given_what_it_owns_and_then_asked_whether_it_has_it() -> None:
    giver = Giver()
    giver.fill()
    view = giver.see(["n1"], warming=["n2"])
    new = giver.owned("n2")
    await giver.complete()
    assert keys_of(giver.others["n2"]) == sorted(new)
    assert sorted(giver.others.given_keys()) == sorted(new)
    assert sorted(giver.others.asked) == sorted(("n2", key) for key in new)
    assert giver.handoff.handed_off == len(new)
    assert giver.others.words == [("n2", view.ring.epoch, 0)]
    assert giver.handoff.left_behind() == 0


@in_virtual_time
async def test_who_may_have_it_already_is_given_what_it_lacks_alone() -> None:
    giver = Giver(holding=KEYS)
    giver.see(["n1"], warming=["n2"])
    new = giver.owned("n2")
    giver.copy("n2", new[::2])
    await giver.complete()
    assert sorted(giver.others.given_keys()) == sorted(new[1::2])
    assert giver.handoff.handed_off == len(new[1::2])
    assert sorted(giver.others.asked) == sorted(("n2", key) for key in new)


@in_virtual_time
async def test_the_later_write_wins_on_both_sides() -> None:
    giver = Giver()
    giver.fill(value=b"first")
    giver.see(["n1"], warming=["n2"])
    older_here, older_there = giver.owned("n2")[:2]
    giver.copy("n2", [older_here, older_there])
    giver.write("n2", older_here, b"later")
    giver.clock.advance(1)
    giver.shard.apply(Set(older_there, b"later"))
    await giver.complete()
    for shard in (giver.shard, giver.others["n2"]):
        assert [value_of(shard, key) for key in (older_here, older_there)] == [b"later", b"later"]


@in_virtual_time
async def test_new_owners_are_told_what_was_removed() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1"], warming=["n2"])
    held, not_held = giver.owned("n2")[:2]
    giver.copy("n2", [held])
    giver.clock.advance(1)
    for key in (held, not_held):
        giver.shard.apply(Delete(key))
    await giver.complete()
    assert keys_of(giver.others["n2"]) == sorted(set(giver.owned("n2")) - {held, not_held})
    assert giver.others["n2"].removed() == [held, not_held]


@in_virtual_time
async def test_the_hottest_go_first() -> None:
    giver = Giver()
    giver.fill(value=bytes(BYTES_AT_A_TIME // 10))
    used = KEYS[:: HOTTEST + 1]
    for key in used:
        giver.shard.apply(Get(key))
    giver.see(["n1"], warming=["n2"])
    await giver.complete()
    worth = [*reversed(used), *reversed([key for key in KEYS if key not in used])]
    new = set(giver.owned("n2"))
    hottest = [key for key in worth[: len(KEYS) // HOTTEST] if key in new]
    others = [key for key in worth[len(KEYS) // HOTTEST :] if key in new]
    assert giver.others.given_keys() == hottest + others
    assert giver.others.given_keys(if_room=False) == hottest
    assert 1 < max(len(keys) for _, keys, _ in giver.others.given) <= 10


@in_virtual_time
async def test_only_the_hottest_drive_others_out_of_a_full_store() -> None:
    giver = Giver()
    giver.fill(value=bytes(1_000))
    giver.see(["n1"], warming=["n2"])
    new = giver.owned("n2")
    full = giver.others.shards["n2"] = new_shard("n2", giver.clock, 100_000)
    for number in range(200):
        full.apply(Set(f"other{number}", bytes(1_000)))
    evicted = full.store.parts[""].stats.evictions
    await giver.complete()
    taken = [key for key in new if key in set(full.store)]
    hottest = giver.others.given_keys(if_room=False)
    assert 0 < len(hottest) < len(new) // 2
    assert taken == sorted(set(hottest) & set(full.store), key=new.index)
    assert len(taken) >= min(len(hottest), 50)
    assert 0 < full.store.parts[""].stats.evictions - evicted <= len(hottest) + 20
    assert giver.others.given_keys(if_room=True)
    assert giver.handoff.handed_off == len(hottest)


@pytest.fixture
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheservice.store.store.MAX_ENTRIES", 32)


@pytest.mark.usefixtures("_small_segments")
@in_virtual_time
async def test_with_a_peer_that_gives_no_answer_it_goes_on_where_it_was() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1"], warming=["n2"])
    new = giver.owned("n2")
    others = giver.others
    while len(others.asked) < len(new) * 0.6:
        await asyncio.sleep(0.0001)
    others.down.add("n2")
    behind = giver.handoff.left_behind()
    assert 0 < behind < len(KEYS)
    await asyncio.sleep(5)
    assert (others.words, giver.handoff.is_complete) == ([], False)
    assert giver.handoff.left_behind() == pytest.approx(behind, abs=64)
    others.down.clear()
    await giver.complete(1)
    assert keys_of(others["n2"]) == sorted(new)
    assert {key for _, key in others.asked} == set(new)
    assert len(others.asked) <= len(new) + 64
    assert len(others.given_keys()) == len(new)


@in_virtual_time
async def test_who_gave_no_answer_at_first_gets_everything_in_the_end() -> None:
    giver = Giver()
    giver.fill()
    giver.others.down.add("n2")
    giver.see(["n1"], warming=["n2", "n3"])
    await asyncio.sleep(5)
    assert keys_of(giver.others["n3"]) == sorted(giver.owned("n3"))
    assert keys_of(giver.others["n2"]) == []
    giver.others.down.clear()
    await giver.complete(1)
    assert keys_of(giver.others["n2"]) == sorted(giver.owned("n2"))


@in_virtual_time
async def test_a_word_that_was_not_heard_is_given_again() -> None:
    giver = Giver()
    view = giver.see(["n1"], warming=["n2", "n3"])
    giver.others.down.add("n3")
    await asyncio.sleep(5)
    assert giver.others.words == [("n2", view.ring.epoch, 0)]
    giver.others.down.clear()
    await giver.complete(1)
    assert giver.others.words == [("n2", view.ring.epoch, 0), ("n3", view.ring.epoch, 0)]


@pytest.mark.usefixtures("_small_segments")
@pytest.mark.parametrize("at", [1, 10, 25])
@in_virtual_time
async def test_when_the_view_changes_meanwhile_all_end_with_what_they_own(at: int) -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1"], warming=["n2"])

    def another_comes() -> None:
        if len(giver.others.given) == at:
            giver.see(["n1"], warming=["n2", "n3"])

    giver.others.on_given = another_comes
    await giver.complete()
    final = giver.view.ring.epoch
    assert giver.others.words == [("n2", final, 0), ("n3", final, 0)]
    for name in ("n2", "n3"):
        assert set(giver.owned(name)) <= set(keys_of(giver.others[name]))
        given = giver.others.given_keys(name)
        assert len(given) == len(set(given)), "what was there already was given again"


@in_virtual_time
async def test_a_word_that_is_overtaken_by_another_view_does_not_count_for_that() -> None:
    giver = Giver()
    giver.see(["n1"], warming=["n2", "n3"])

    def another_comes() -> None:
        if len(giver.others.words) == 1:
            giver.see(["n1"], warming=["n2", "n3", "n4"])

    giver.others.on_word = another_comes
    await giver.complete()
    final = giver.view.ring.epoch
    assert giver.others.words[1:] == [(name, final, 0) for name in ("n2", "n3", "n4")]


@in_virtual_time
async def test_who_comes_to_own_keys_again_takes_what_was_written_meanwhile() -> None:
    giver = Giver(count=2)
    giver.see(["n1", "n2"])
    giver.fill()
    giver.copy("n2", KEYS)
    await giver.complete()
    giver.see(["n2", "n3"], leaving=["n1"])
    await giver.complete()
    giver.write("n2", KEYS[0], b"later")
    giver.see(["n1", "n2"])
    await giver.complete()
    assert value_of(giver.shard, KEYS[0]) == b"later"


@in_virtual_time
async def test_who_is_back_gets_what_it_missed_though_the_ring_is_the_same() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1", "n2"])
    await giver.complete()
    missed = giver.owned("n2")[0]
    giver.clock.advance(1)
    giver.shard.apply(Set(missed, b"later"))
    giver.others.given.clear()
    view = giver.see(["n1", "n2"], again=["n2"])
    assert not giver.handoff.is_complete
    await giver.complete()
    assert giver.others.given_keys() == [missed]
    assert giver.others.words[-1] == ("n2", view.ring.epoch, 1)


@in_virtual_time
async def test_the_first_owner_of_before_begins_and_the_others_only_make_sure() -> None:
    giver = Giver(count=2)
    giver.see(["n1", "n2"])
    giver.fill()
    await giver.complete()
    giver.others.asked.clear()
    giver.others.given.clear()
    before = giver.view.ring
    giver.see(["n1", "n2"], warming=["n3"])
    await giver.complete()
    new = giver.owned("n3")
    first = [key for key in new if before.owners(key, 1) == ("n1",)]
    given = giver.others.given_keys()
    assert sorted(given[: len(first)]) == sorted(first)
    assert sorted(given) == sorted(new)
    assert sorted(giver.others.asked) == sorted(("n3", key) for key in new)
    assert keys_of(giver.others["n3"]) == sorted(new)


@in_virtual_time
async def test_when_an_owner_was_not_told_of_something_everything_is_compared_anew() -> None:
    giver = Giver(count=2)
    giver.see(["n1", "n2"])
    await giver.complete()
    giver.fill()
    giver.copy("n2", KEYS[1:])
    giver.see(["n1", "n2"])
    await asyncio.sleep(5)
    assert not giver.others["n2"].knows(KEYS[0])
    giver.handoff.start_over()
    await asyncio.sleep(5)
    assert keys_of(giver.others["n2"]) == sorted(KEYS)
    assert giver.others.given_keys() == KEYS[:1]


@in_virtual_time
async def test_it_lets_go_once_nobody_is_coming() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1"], warming=["n2"])
    giver.settle()
    await giver.complete()
    await asyncio.sleep(5)
    assert len(giver.shard.store) == len(KEYS)
    giver.see(["n1", "n2"])
    await asyncio.sleep(5)
    assert keys_of(giver.shard) == sorted(giver.owned("n1"))
    assert giver.handoff.let_go == len(giver.owned("n2"))
    assert giver.shard.removed() == []


@in_virtual_time
async def test_it_lets_go_once_it_has_settled_of_what_the_owners_have_by_then() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1", "n2"])
    await giver.complete()
    await asyncio.sleep(5)
    assert len(giver.shard.store) == len(KEYS)
    new = giver.owned("n2")
    giver.others["n2"].store.delete(new[0])
    giver.write("n2", new[1], b"later")
    giver.settle()
    await asyncio.sleep(5)
    assert value_of(giver.others["n2"], new[1]) == b"later"
    assert keys_of(giver.shard) == sorted(giver.owned("n1"))
    assert keys_of(giver.others["n2"]) == sorted(new)


@pytest.mark.parametrize("trouble", [{"leaving": ["n3"]}, {"suspects": ["n2"]}])
@in_virtual_time
async def test_it_does_not_let_go_while_somebody_leaves_or_is_suspected(
    trouble: dict[str, list[str]],
) -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1", "n2"], **trouble)
    giver.settle()
    await giver.complete()
    await asyncio.sleep(5)
    assert len(giver.shard.store) == len(KEYS)
    giver.see(["n1", "n2"])
    await asyncio.sleep(5)
    assert keys_of(giver.shard) == sorted(giver.owned("n1"))


@in_virtual_time
async def test_it_does_not_let_go_when_somebody_comes_meanwhile() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1", "n2"])
    await giver.complete()
    asked = len(giver.others.asked)

    def another_comes() -> None:
        if len(giver.others.asked) > asked:
            giver.others.on_asked = lambda: None
            giver.see(["n1", "n2"], warming=["n3"])

    giver.others.on_asked = another_comes
    giver.settle()
    await asyncio.sleep(5)
    assert giver.view.before is not None
    assert len(giver.shard.store) == len(KEYS)


@in_virtual_time
async def test_a_node_that_has_left_keeps_what_it_has() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n2", "n3"])
    giver.settle()
    await giver.complete()
    await asyncio.sleep(5)
    assert len(giver.shard.store) == len(KEYS)


@in_virtual_time
async def test_it_does_not_let_go_of_what_an_owner_gives_no_answer_about() -> None:
    giver = Giver()
    giver.fill()
    giver.see(["n1", "n2"])
    await giver.complete()
    giver.others.down.add("n2")
    giver.settle()
    await asyncio.sleep(5)
    assert len(giver.shard.store) == len(KEYS)
    giver.others.down.clear()
    await asyncio.sleep(5)
    assert keys_of(giver.shard) == sorted(giver.owned("n1"))


@in_virtual_time
async def test_it_lets_go_of_strays_that_come_later() -> None:
    giver = Giver()
    giver.see(["n1", "n2"])
    giver.settle()
    await asyncio.sleep(5)
    [stray, *_] = giver.owned("n2")
    giver.fill([stray])
    await asyncio.sleep(5)
    assert keys_of(giver.shard) == [stray]
    giver.handoff.stray_came()
    await asyncio.sleep(5)
    assert (keys_of(giver.shard), keys_of(giver.others["n2"])) == ([], [stray])


@in_virtual_time
async def test_a_node_that_leaves_hands_over_everything_and_keeps_it() -> None:
    giver = Giver()
    giver.see(["n1", "n2"])
    giver.fill()
    giver.settle()
    giver.see(["n2"], leaving=["n1"])
    await giver.complete()
    await asyncio.sleep(5)
    assert keys_of(giver.others["n2"]) == keys_of(giver.shard) == sorted(KEYS)


@pytest.mark.usefixtures("_small_segments")
@in_virtual_time
async def test_what_is_left_behind_is_counted() -> None:
    giver = Giver(bytes_per_second=20_000)
    giver.fill()
    giver.see(["n2"], leaving=["n1"])
    left = [giver.handoff.left_behind()]
    while not giver.handoff.is_complete:
        await asyncio.sleep(0.1)
        left.append(giver.handoff.left_behind())
    assert (left[0], left[-1]) == (len(KEYS), 0)
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 10


@pytest.mark.usefixtures("_small_segments")
@in_virtual_time
async def test_what_is_left_behind_is_counted_once_though_the_view_changed_twice() -> None:
    giver = Giver(bytes_per_second=20_000)
    giver.fill()
    for names in (["n2"], ["n2", "n3"], ["n2", "n3", "n4"]):
        giver.see(names, leaving=["n1"])
        assert giver.handoff.left_behind() == len(KEYS)
        while giver.handoff.left_behind() > 0.8 * len(KEYS) - 100 * len(names):
            assert giver.handoff.left_behind() <= len(KEYS)
            await asyncio.sleep(0.1)


@in_virtual_time
async def test_it_keeps_to_its_rate() -> None:
    giver = Giver(bytes_per_second=100_000)
    giver.fill(value=bytes(5_000))
    giver.see(["n2"], leaving=["n1"])
    started = asyncio.get_running_loop().time()
    await giver.complete(600)
    took = asyncio.get_running_loop().time() - started
    given = sum(ENTRY_BYTES + len(key) + 5_000 for key in KEYS)
    assert given - 2 * BYTES_AT_A_TIME < took * 100_000 < 1.1 * given


@in_virtual_time
async def test_with_nothing_to_give_a_node_gives_its_word_at_once() -> None:
    giver = Giver()
    view = giver.see(["n1"], warming=["n2"])
    await giver.complete(0.1)
    assert (giver.others.asked, giver.others.words) == ([], [("n2", view.ring.epoch, 0)])
