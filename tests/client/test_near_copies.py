"""What a near cache keeps and serves, beside a naive cluster whose messages come late, or not at all."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cacheservice.client import NearCache
from cacheservice.client import near_cache as module
from cacheservice.client.near_cache import COPY_BYTES, Copies, Ticket
from cacheservice.client.near_sources import Sources
from cacheservice.client.near_watch import LIVE_SECONDS
from cacheservice.client.versioned import Versioned

KEYS = ("a", "b")
NODES = ("n1", "n2")
FOR_EVER = 1e12


class Time:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def live(max_bytes: int = 1 << 20) -> tuple[Copies, Time]:
    """Copies that are served until told otherwise."""
    time = Time()
    copies = Copies(max_bytes, time)
    copies.live_until, copies.ring_epoch = FOR_EVER, 1
    return copies, time


def found(version: int = 1, value: bytes = b"v", **fields: Any) -> Versioned:
    return Versioned(value, version, 0, 1, True)._replace(**fields)


def keep(copies: Copies, key: str, *reads: Versioned) -> None:
    for read in reads or (found(),):
        copies.offer(key, read, copies.begin())


def test_a_copy_lives_as_long_as_its_entry_from_when_it_was_asked_for() -> None:
    copies, time = live()
    ticket = copies.begin()
    time.now += 1.0
    copies.offer("k", found(ttl_ms=1_500), ticket)
    time.now += 0.4
    assert copies.get("k") == b"v"
    time.now += 0.1
    assert copies.get("k") is None
    assert len(copies) == 0


def test_what_is_no_fresh_value_of_this_ring_is_not_kept() -> None:
    copies, _ = live()
    keep(copies, "k", found(may_be_kept=False), found(ring_epoch=2))
    assert len(copies) == 0


def test_an_empty_value_is_kept() -> None:
    copies, _ = live()
    keep(copies, "k", found(value=b""))
    assert copies.get("k") == b""


def test_while_the_nodes_are_not_heard_nothing_is_served_or_kept() -> None:
    copies, time = live()
    keep(copies, "k")
    copies.live_until = time.now
    assert copies.get("k") is None
    assert copies.begin() is None
    keep(copies, "other")
    copies.live_until = FOR_EVER
    assert copies.get("k") == b"v"
    assert copies.get("other") is None


def test_the_higher_version_stays() -> None:
    copies, _ = live()
    keep(copies, "k", found(5, b"new"), found(4, b"old"))
    assert copies.get("k") == b"new"
    copies.changed("k", 5)
    assert copies.get("k") == b"new"
    copies.changed("k", 6)
    assert copies.get("k") is None


def test_a_read_that_was_under_way_while_its_key_changed_is_not_kept() -> None:
    copies, _ = live()
    ticket = copies.begin()
    copies.changed("k", 6)
    copies.offer("k", found(5), ticket)
    assert copies.get("k") is None
    copies.offer("k", found(6), ticket)
    assert copies.get("k") == b"v"


def test_a_read_that_too_many_changes_passed_by_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    copies, _ = live()
    tickets = [copies.begin()]
    copies.changed("k", 6)
    for number in range(9):
        tickets.append(copies.begin())
        copies.changed(f"other{number}", 1)
    copies.offer("k", found(5), tickets[1])
    assert copies.get("k") is None
    copies.changed("one more", 1)
    copies.offer("k", found(5), tickets[1])
    assert copies.get("k") is None
    assert len(copies._remembered) == 10


def test_own_writes_drop_what_was_read_before_they_were_answered() -> None:
    copies, _ = live()
    keep(copies, "k")
    with copies.writing(["k"]):
        assert copies.get("k") is None
        ticket = copies.begin()
        keep(copies, "k")
    assert copies.get("k") is None
    copies.offer("k", found(), ticket)
    assert copies.get("k") is None
    keep(copies, "k", found(2))
    assert copies.get("k") == b"v"


def test_own_invalidations_drop_everything() -> None:
    copies, _ = live()
    keep(copies, "k")
    ticket = copies.begin()
    with copies.sweeping():
        assert len(copies) == 0
        keep(copies, "k")
    copies.offer("other", found(), ticket)
    assert len(copies) == 0


def test_bytes_are_bounded_and_the_least_recently_used_go() -> None:
    each = COPY_BYTES + 1 + 100
    copies, _ = live(3 * each)
    for key in "abc":
        keep(copies, key, found(value=bytes(100)))
    assert copies.get("a") is not None
    keep(copies, "d", found(value=bytes(100)))
    keep(copies, "e", found(value=bytes(3 * each)))
    assert [key for key in "abcde" if copies.get(key) is not None] == ["a", "c", "d"]


def test_options_are_checked() -> None:
    NearCache(1, tuple("p" * 1_024 for _ in range(100)))
    with pytest.raises(ValueError, match="max_bytes must be at least 1, not 0"):
        NearCache(0)
    with pytest.raises(ValueError, match="prefixes must be at most 100, not 101"):
        NearCache(prefixes=("p",) * 101)
    for prefix in ("", "x" * 1_025):
        with pytest.raises(ValueError, match="1 to 1024 bytes"):
            NearCache(prefixes=(prefix,))
    one: Any = "user:"
    with pytest.raises(TypeError, match="not one"):
        NearCache(prefixes=one)


def test_a_read_that_was_under_way_when_everything_was_dropped_is_not_kept() -> None:
    copies, _ = live()
    ticket = copies.begin()
    copies.clear()
    copies.offer("k", found(), ticket)
    assert copies.get("k") is None


def test_copies_live_while_all_nodes_are_heard_and_agree() -> None:
    copies, _ = live()
    sources = Sources(copies)
    sources.expect(NODES, 7)
    sources.heard("n1", 1_010.0, 7)
    assert copies.live_until == 0.0
    sources.heard("n2", 1_005.0, 7)
    assert copies.live_until == 1_005.0
    keep(copies, "k", found(ring_epoch=7))
    sources.heard("n2", 1_011.0, 7)
    assert copies.live_until == 1_010.0
    sources.expect(NODES, 7)
    assert copies.get("k") == b"v"
    sources.heard("n1", 1_012.0, 8)
    assert (copies.live_until, len(copies)) == (0.0, 0)
    sources.expect(NODES, 8)
    assert copies.live_until == 0.0
    sources.heard("n2", 1_013.0, 8)
    assert copies.live_until == 1_012.0
    keep(copies, "k", found(ring_epoch=8))
    sources.lost("n2")
    assert (copies.live_until, len(copies)) == (0.0, 0)
    sources.expect(["n1"], 9)
    sources.heard("n1", 1_014.0, 9)
    assert copies.live_until == 1_014.0
    sources.lost("n3")
    assert copies.live_until == 0.0


@dataclass
class Node:
    """What one node has said that has not arrived, while its stream is open."""

    is_open: bool = False
    epoch: int = 1
    said: deque[tuple[float, int, tuple[str, int] | None]] = field(default_factory=deque)

    def say(self, now: float, change: tuple[str, int] | None = None) -> None:
        if self.is_open:
            self.said.append((now, self.epoch, change))


class NearCacheBesideACluster(RuleBasedStateMachine):
    """A value that was overwritten more than LIVE_SECONDS ago is never served, whatever the streams do, nor
    is one older than what this client has written itself."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.copies = Copies(1 << 20, self.time)
        self.sources = Sources(self.copies)
        self.nodes = {name: Node() for name in NODES}
        self.epoch = 1
        self.sources.expect(NODES, self.epoch)
        self.version = 1
        self.current = dict.fromkeys(KEYS, 1)
        self.written: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.own = dict.fromkeys(KEYS, 0)
        self.reads: list[tuple[str, Versioned, Ticket | None]] = []

        self.recover()

    @rule(seconds=st.sampled_from([0.01, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.time.now += seconds

    @rule(key=st.sampled_from(KEYS), here=st.booleans())
    def write(self, key: str, here: bool) -> None:
        with self.copies.writing([key] if here else []):
            self.version += 1
            self.current[key] = self.version
            self.written[key].append((self.time.now, self.version))
            for node in self.nodes.values():
                node.say(self.time.now, (key, self.version))
        if here:
            self.own[key] = self.version

    @rule(name=st.sampled_from(NODES), count=st.integers(1, 5))
    def hear(self, name: str, count: int) -> None:
        """Some of what the node has said, and that nothing happened since if that is all."""
        node = self.nodes[name]
        if count > len(node.said):
            node.say(self.time.now)
        for _ in range(min(count, len(node.said))):
            moment, epoch, change = node.said.popleft()
            if change is not None:
                self.copies.changed(*change)
            self.sources.heard(name, moment + LIVE_SECONDS, epoch)

    @rule()
    def wait_and_hear_all(self) -> None:
        self.time.now += 2.5
        for name, node in self.nodes.items():
            self.hear(name, len(node.said) + 1)

    @rule()
    def recover(self) -> None:
        self.epoch = max(node.epoch for node in self.nodes.values())
        self.sources.expect(NODES, self.epoch)
        for name, node in self.nodes.items():
            if not node.is_open:
                self._break(name)
            node.is_open = True
            node.epoch = self.epoch
            self.hear(name, len(node.said) + 1)

    @rule(name=st.sampled_from(NODES), how=st.sampled_from(["breaks", "dies unnoticed", "has another ring"]))
    def disturb(self, name: str, how: str) -> None:
        match how:
            case "breaks":
                self._break(name)
            case "dies unnoticed":
                self.nodes[name].is_open = False
            case "has another ring":
                self.nodes[name].epoch = self.epoch + 1

    def _break(self, name: str) -> None:
        self.nodes[name].is_open = False
        self.nodes[name].said.clear()
        self.sources.lost(name)

    @rule(key=st.sampled_from(KEYS))
    def read(self, key: str) -> None:
        self.ask(key)
        self.take_answer(-1)

    @rule(key=st.sampled_from(KEYS))
    def ask(self, key: str) -> None:
        """A read that is done at once, and whose answer arrives at some time."""
        version = self.current[key]
        read = Versioned(str(version).encode(), version, 0, self.epoch, True)
        self.reads.append((key, read, self.copies.begin()))

    @precondition(lambda self: self.reads)
    @rule(row=st.integers(0, 3))
    def take_answer(self, row: int) -> None:
        self.copies.offer(*self.reads.pop(row % len(self.reads)))

    @invariant()
    def is_not_too_old(self) -> None:
        for key in KEYS:
            value = self.copies.get(key)
            if value is not None:
                overwritten = self.time.now - LIVE_SECONDS
                least = [version for moment, version in self.written[key] if moment < overwritten]
                assert int(value) >= max([self.own[key], *least])


TestNearCacheBesideACluster = NearCacheBesideACluster.TestCase
TestNearCacheBesideACluster.settings = settings(max_examples=1_000, stateful_step_count=25)
