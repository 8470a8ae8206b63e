"""Operations of many callers that become one batch: whoever asks in time joins it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import Future
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

from cacheservice.client.batch import Batch, Reads, Times, Writes
from cacheservice.client.waiting import Callers, SharedRows

Item = TypeVar("Item")


class Gathering(ABC):
    """Operations of one kind. Whoever adds the first sets `times`, which are those of all."""

    __slots__ = ("times",)

    def __init__(self) -> None:
        self.times: Times = (0.0, 0.0)

    @abstractmethod
    def __len__(self) -> int:
        """The rows of the batch that it would be."""

    @abstractmethod
    def take(self, count: int) -> Batch:
        """The first `count` rows or all, which this no longer has."""


class Singles(Gathering):
    """A row for each operation on a key."""

    __slots__ = ("_batch", "futures", "keys")

    def __init__(self, batch: Callable[[list[str], Callers, Times], Batch]) -> None:
        super().__init__()
        self._batch = batch
        self.keys: list[str] = []
        self.futures: list[Future[Any]] = []

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, count: int) -> Batch:
        keys, self.keys = _parted(self.keys, count)
        futures, self.futures = _parted(self.futures, count)
        return self._batch(keys, Callers(futures), self.times)


class SharedReads(Gathering):
    """A row for all who read the same key."""

    __slots__ = ("_kind", "_nearest", "_waiting", "rows")

    def __init__(
        self, kind: type[Reads], waiting: Callable[[list[list[Future[Any]]]], SharedRows], *, nearest: bool
    ) -> None:
        super().__init__()
        self._kind = kind
        self._waiting = waiting
        self._nearest = nearest
        self.rows: dict[str, list[Future[Any]]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> Batch:
        rows = self.rows
        taken = dict(islice(rows.items(), count))
        self.rows = dict(islice(rows.items(), count, None))
        return self._kind(list(taken), self._waiting(list(taken.values())), self.times, self._nearest)


class SingleWrites(Gathering):
    """A row for each write."""

    __slots__ = ("futures", "keys", "stale_ms", "ttl_ms", "values")

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.values: list[bytes] = []
        self.ttl_ms: list[int] = []
        self.stale_ms: list[int] = []
        self.futures: list[Future[Any]] = []

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, count: int) -> Batch:
        keys, self.keys = _parted(self.keys, count)
        values, self.values = _parted(self.values, count)
        ttl_ms, self.ttl_ms = _parted(self.ttl_ms, count)
        stale_ms, self.stale_ms = _parted(self.stale_ms, count)
        futures, self.futures = _parted(self.futures, count)
        return Writes(keys, values, ttl_ms, stale_ms, Callers(futures), self.times)


def _parted(column: list[Item], count: int) -> tuple[list[Item], list[Item]]:
    return (column[:count], column[count:]) if count < len(column) else (column, [])
