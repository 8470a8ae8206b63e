"""What watchers are told of a shard's changes, and of what they were too slow for."""

from __future__ import annotations

from contextlib import ExitStack
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.clock import ManualClock
from cacheservice.errors import EntryTooLarge, Overloaded
from cacheservice.node import events as events_module
from cacheservice.node.events import Backlog, Changed, Events, Lost, News
from cacheservice.node.fences import Fence, Kind
from cacheservice.node.namespaces import Namespaces
from cacheservice.node.operations import Change, Delete, Get, Increment, Operation, Set, Touch
from cacheservice.node.shard import Shard
from cacheservice.store import Entry, Store


class Fixture:
    def __init__(self) -> None:
        self.clock = ManualClock()
        store = Store(1 << 16, now=self.clock.now_ms())
        self.shard = Shard("n1", store, self.clock, Namespaces(), Random(1))
        self.events = Events("n1", self.shard, self.clock, lambda: 7)
        self.woken = 0

    def backlog(self) -> Backlog:
        return Backlog(self._wake)

    def do(self, operation: Operation) -> int:
        result = self.shard.apply(operation)[0]
        return int(getattr(result, "version", 0))

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
def at() -> Fixture:
    return Fixture()


def told(backlog: Backlog) -> list[tuple[Changed | Lost | None, int]]:
    found = []
    while (taken := backlog.take()) is not None:
        found.append((taken[0].what, taken[1]))
    return found


def key(name: str, version: int) -> Changed:
    return Changed(None, name, version)


def test_each_write_and_removal_is_an_event(at: Fixture) -> None:
    backlog = at.backlog()
    with at.events.watched([], backlog):
        versions = [
            at.do(Set("a", b"1")),
            at.do(Touch("a", 5_000)),
            at.do(Increment("a", 1)),
            at.do(Delete("a")),
            at.do(Delete("a")),
        ]
        [batch], _, _ = at.shard.set_many([("a", b"v", 0, 0)], with_changes=False)
        _, [removal] = at.shard.delete_many(["a"])
        at.do(Get("a"))
    expected = [key("a", version) for version in (*versions, batch, removal.version)]
    assert told(backlog) == list(zip(expected, range(1, 8), strict=True))
    assert at.woken == 7


def test_copies_are_events_if_they_change_something(at: Fixture) -> None:
    version = at.do(Set("a", b"1"))
    entry = Entry(b"2", version + 1, at.clock.now_ms())
    backlog = at.backlog()
    with at.events.watched([], backlog):
        at.shard.merge(Change("a", version - 1, None))
        at.shard.merge(Change("a", version + 1, entry))
        at.shard.merge(Change("a", version + 1, entry))
        at.shard.merge(Change("a", version + 2, None))
        at.shard.merge(Change("a", version + 1, entry))
    assert told(backlog) == [(key("a", version + 1), 1), (key("a", version + 2), 2)]


def test_a_copy_that_removes_an_older_entry_by_the_way_is_an_event(at: Fixture) -> None:
    backlog = at.backlog()
    for name in ("large", "fenced"):
        at.do(Set(name, b"1"))
    version = at.do(Set("last", b"1"))
    at.shard.fence(Fence(Kind.TAG, "t", version + 5))
    with at.events.watched([], backlog):
        assert at.shard.merge(Change("large", version + 1, Entry(bytes(1 << 17), version + 1, 1))) == 0
        assert at.shard.merge(Change("fenced", version + 2, Entry(b"2", version + 2, 1, tags=("t",)))) == 0
    assert told(backlog) == [(key("large", version + 1), 1), (key("fenced", version + 2), 2)]


def test_what_fails_changes_nothing_and_is_no_event(at: Fixture) -> None:
    version = at.do(Set("a", b"x"))
    backlog = at.backlog()
    with at.events.watched([], backlog):
        with pytest.raises(EntryTooLarge):
            at.do(Set("a", bytes(1 << 17)))
        at.do(Set("a", b"y", if_version=version + 1))
        at.do(Delete("a", if_version=version + 1))
        at.do(Touch("b", 1))
        at.shard.drop("a", version)
    assert told(backlog) == []


def test_a_watcher_is_told_of_its_prefixes_alone(at: Fixture) -> None:
    everything, users, two = at.backlog(), at.backlog(), at.backlog()
    with (
        at.events.watched([], everything),
        at.events.watched(["user:"], users),
        at.events.watched(["conf:", "user:1"], two),
    ):
        for name in ("user:1", "user:2", "conf:1", "other"):
            at.do(Set(name, b"v"))
        at.events.fenced(Fence(Kind.TAG, "t", 1))
        for pattern in ("", "use", "user:25", "elsewhere"):
            at.events.fenced(Fence(Kind.PREFIX, pattern, 1))

    def names(backlog: Backlog) -> list[str]:
        return [what.name for what, _ in told(backlog) if isinstance(what, Changed)]

    assert names(everything) == [
        "user:1",
        "user:2",
        "conf:1",
        "other",
        "t",
        "",
        "use",
        "user:25",
        "elsewhere",
    ]
    assert names(users) == ["user:1", "user:2", "t", "", "use", "user:25"]
    assert names(two) == ["user:1", "conf:1", "t", "", "use"]


def test_the_shard_tells_nobody_when_nobody_watches(at: Fixture) -> None:
    one, other = at.backlog(), at.backlog()
    with at.events.watched(["a"], one):
        with at.events.watched(["a"], other):
            at.do(Set("a", b"v"))
        at.do(Set("a", b"v"))
    assert at.shard.on_change is None
    at.events.fenced(Fence(Kind.TAG, "t", 1))
    assert [len(told(backlog)) for backlog in (one, other)] == [2, 1]


def test_watchers_are_bounded(at: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_WATCHERS", 2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(at.events.watched([], at.backlog()))
        with pytest.raises(Overloaded), at.events.watched([], at.backlog()):
            pass
    with at.events.watched([], at.backlog()):
        pass


def test_news_have_the_moment_and_the_ring(at: Fixture) -> None:
    backlog = at.backlog()
    with at.events.watched([], backlog):
        version = at.do(Set("a", b"v"))
        at.clock.advance(10)
        backlog.add(at.events.alive())
    now = at.clock.now_ms()
    assert backlog.take() == (News("n1", now - 10, 7, key("a", version)), 1)
    assert backlog.take() == (News("n1", now, 7, None), 1)


WHAT = st.one_of(st.none(), st.just(key("k", 1)), st.builds(Lost, st.integers(0, 3)))
STEPS = st.lists(st.one_of(st.none(), st.tuples(st.sampled_from(["n1", "n2"]), WHAT)), max_size=60)


@given(STEPS, st.integers(1, 5))
def test_nothing_is_lost_in_silence(steps: list[tuple[str, Changed | Lost | None] | None], size: int) -> None:
    """Of each node the events told and those told to be lost are all there were, and numbered so; news of a
    node come in order, and a gap before whatever follows it."""
    backlog = Backlog(lambda: None, size)
    added: dict[str, list[News]] = {"n1": [], "n2": []}
    seen: dict[str, list[tuple[News, int]]] = {"n1": [], "n2": []}

    def take() -> bool:
        taken = backlog.take()
        if taken is not None:
            seen[taken[0].node_id].append(taken)
        return taken is not None

    for moment, step in enumerate(steps):
        if step is None:
            take()
        else:
            node_id, what = step
            news = News(node_id, moment, 1, what)
            added[node_id].append(news)
            backlog.add(news)
    waiting = 0
    while take():
        waiting += 1
    assert waiting <= size + 2
    for node_id, news_of_node in added.items():
        total = 0
        for news, sequence in seen[node_id]:
            total += _count(news.what)
            assert sequence == total
        assert total == sum(_count(news.what) for news in news_of_node)
        moments = [news.at_ms for news, _ in seen[node_id]]
        assert moments == sorted(moments)
        gaps_added = any(isinstance(news.what, Lost) for news in news_of_node)
        assert not gaps_added or any(isinstance(news.what, Lost) for news, _ in seen[node_id])


def _count(what: Changed | Lost | None) -> int:
    return what.events if isinstance(what, Lost) else int(what is not None)
