"""What changes in a node's store, as events for those who watch it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cacheservice.clock import Clock
from cacheservice.errors import Overloaded
from cacheservice.node.fences import Fence, Kind
from cacheservice.node.shard import Shard

MAX_WATCHERS = 1_000
MAX_BACKLOG = 10_000
"""Events that wait for one watcher."""


class Changed(NamedTuple):
    """An entry, or many, that no longer hold what they held."""

    kind: Kind | None
    """None: `name` is one key."""
    name: str
    version: int


class Lost(NamedTuple):
    """Events that a watcher is not told; 0 when it is not known how many."""

    events: int


class News(NamedTuple):
    """What a watcher is told."""

    node_id: str
    """Where it happened."""
    at_ms: int
    """All that happened there before was told before."""
    ring_epoch: int
    what: Changed | Lost | None
    """None: nothing, but the node is alive."""


class Backlog:
    """News that wait for one watcher. Of more than `size` the oldest go, which the watcher is told."""

    def __init__(self, on_news: Callable[[], object], size: int = MAX_BACKLOG) -> None:
        self._on_news = on_news
        self._size = size
        self._waiting: deque[News] = deque()
        self._lost: dict[str, News] = {}
        self._sequences: Counter[str] = Counter()

    def add(self, news: News) -> None:
        if len(self._waiting) == self._size:
            self._lose(self._waiting.popleft())
        self._waiting.append(news)
        self._on_news()

    def take(self) -> tuple[News, int] | None:
        """The next news and its number among those of its node; None when there is none."""
        if self._lost:
            news = self._lost.pop(next(iter(self._lost)))
        elif self._waiting:
            news = self._waiting.popleft()
        else:
            return None
        match news.what:
            case Changed():
                self._sequences[news.node_id] += 1
            case Lost(count):
                self._sequences[news.node_id] += count
        return news, self._sequences[news.node_id]

    def _lose(self, news: News) -> None:
        match news.what:
            case Changed():
                count = 1
            case Lost(lost):
                count = lost
            case None:
                return
        before = self._lost.get(news.node_id)
        if before is not None and isinstance(before.what, Lost):
            count += before.what.events
        self._lost[news.node_id] = news._replace(what=Lost(count))


class Events:
    """Tells watchers what changes in the shard. While there are none it costs the shard nothing."""

    def __init__(self, node_id: str, shard: Shard, clock: Clock, ring_epoch: Callable[[], int]) -> None:
        self._node_id = node_id
        self._shard = shard
        self._clock = clock
        self._ring_epoch = ring_epoch
        self._watchers: dict[tuple[str, ...], list[Backlog]] = {}
        """By the prefixes of the keys that they watch."""
        self._count = 0

    @contextmanager
    def watched(self, prefixes: Iterable[str], backlog: Backlog) -> Iterator[None]:
        """Has the backlog filled for as long as it lasts; no prefixes stand for every key.

        Overloaded when MAX_WATCHERS watch already.
        """
        if self._count >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} callers watch this node already")
        watched = tuple(sorted(set(prefixes))) or ("",)
        self._watchers.setdefault(watched, []).append(backlog)
        self._count += 1
        self._shard.on_change = self._changed
        try:
            yield
        finally:
            self._count -= 1
            self._watchers[watched].remove(backlog)
            if not self._watchers[watched]:
                del self._watchers[watched]
            if not self._watchers:
                self._shard.on_change = None

    def alive(self) -> News:
        """That nothing more has happened until now."""
        return self._news(None)

    def fenced(self, fence: Fence) -> None:
        """To be told when all that the fence covers has been removed."""
        if not self._watchers:
            return
        news = self._news(Changed(fence.kind, fence.pattern, fence.version))
        for prefixes, backlogs in self._watchers.items():
            if fence.kind is Kind.TAG or any(_overlap(prefix, fence.pattern) for prefix in prefixes):
                for backlog in backlogs:
                    backlog.add(news)

    def _changed(self, key: str, version: int) -> None:
        news = None
        for prefixes, backlogs in self._watchers.items():
            if key.startswith(prefixes):
                news = news or self._news(Changed(None, key, version))
                for backlog in backlogs:
                    backlog.add(news)

    def _news(self, what: Changed | None) -> News:
        return News(self._node_id, self._clock.now_ms(), self._ring_epoch(), what)


def _overlap(one: str, other: str) -> bool:
    """Whether some key begins with both."""
    return one.startswith(other) or other.startswith(one)
