"""Operations of one kind that travel together, as columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum, auto
from itertools import repeat
from typing import Any

from cacheservice.client.results import SetResult
from cacheservice.client.waiting import Several, Waiting
from cacheservice.errors import (
    AnswerTooLarge,
    CacheServiceError,
    NoOwnerReachable,
    NotReady,
    Unavailable,
    WrongOwner,
)
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import from_status

_NO_ANSWER = (Unavailable, NoOwnerReachable, NotReady, WrongOwner)
"""Errors that leave it open what another node would say."""
NO_VALUE = (pb.GET_OUTCOME_MISS, pb.GET_OUTCOME_ABSENT)
"""Outcomes of reads that have no value to give."""

Times = tuple[float, float]
"""Until when the callers wait; and when another node is tried, if the one asked has not answered by then."""


class Slot(IntEnum):
    """What a node has only so many batches of at a time."""

    READS = auto()
    CHANGES = auto()
    LARGE = auto()


class Batch(ABC):
    """Operations of one kind. Times in seconds of the event loop's clock."""

    __slots__ = (
        "counts",
        "deadline",
        "error",
        "is_large",
        "keys",
        "sent_at",
        "tried",
        "waiting",
        "yields_at",
    )

    def __init__(self, keys: list[str], waiting: Waiting, times: Times) -> None:
        self.keys = keys
        self.waiting = waiting
        self.deadline, self.yields_at = times
        self.tried: frozenset[str] = frozenset()
        """Addresses of nodes that gave no answer."""
        self.error: CacheServiceError | None = None
        """Why the last of them gave none."""
        self.is_large = waiting.is_one
        """Whether it is one caller's own, which waits apart from those that gather the operations of many."""
        self.sent_at = 0.0
        self.counts = False
        """Whether it is under way, and not for so long that others may pass it."""

    @property
    def times(self) -> Times:
        return self.deadline, self.yields_at

    @property
    def changed(self) -> Sequence[str]:
        """The keys that it writes or removes."""
        return ()

    @property
    def slot(self) -> Slot:
        """What it is counted as while it is under way."""
        if self.is_large:
            return Slot.LARGE
        return Slot.CHANGES if self.changed else Slot.READS

    def fill(self, request: pb.ExchangeRequest, batch_id: int, timeout_ms: int) -> None:
        """Makes the request, which is empty, that of the batch."""
        request.batch_id = batch_id
        request.timeout_ms = timeout_ms
        self._fill(request)

    @abstractmethod
    def _fill(self, request: pb.ExchangeRequest) -> None: ...

    @abstractmethod
    def results(self, response: pb.ExchangeResponse) -> list[Any]:
        """The result of each row; of no meaning where the response has an error."""

    @abstractmethod
    def _columns(self, rows: Sequence[int], waiting: Waiting) -> Batch: ...

    def select(self, rows: Sequence[int]) -> Batch:
        """These rows alone, as a batch that has been where this one has been."""
        if len(rows) == len(self.keys):
            return self
        batch = self._columns(rows, self.waiting.select(rows))
        batch.tried = self.tried
        batch.error = self.error
        return batch

    def settle(self, response: pb.ExchangeResponse) -> tuple[list[int], list[int]]:
        """Hands out the results; the rows to ask another node for, and those to ask this one for again."""
        if not response.errors:
            self.waiting.done(self.keys, self.results(response))
            return [], []
        errors = {error.index: from_status(error.status) for error in response.errors}
        results = self.results(response)
        rows = [row for row in range(len(self.keys)) if row not in errors]
        self.waiting.select(rows).done([self.keys[row] for row in rows], [results[row] for row in rows])
        elsewhere: list[int] = []
        again: list[int] = []
        for row, error in errors.items():
            if is_no_answer(error):
                self.error = error
                elsewhere.append(row)
            elif isinstance(error, AnswerTooLarge) and rows:
                again.append(row)
            else:
                self.waiting.failed(row, error)
        return elsewhere, again

    def fail(self, error: CacheServiceError) -> None:
        for row in range(len(self.keys)):
            self.waiting.failed(row, error)


class Reads(Batch):
    """Results: the value, or None when there is none."""

    __slots__ = ("nearest",)

    def __init__(self, keys: list[str], waiting: Waiting, times: Times, nearest: bool = False) -> None:
        super().__init__(keys, waiting, times)
        self.nearest = nearest

    def joins(self, other: Batch) -> bool:
        """Whether both may be one batch, for neither has been sent before, and they ask for the same."""
        is_like = isinstance(other, Reads) and type(other) is type(self) and other.nearest is self.nearest
        return is_like and not (self.tried or other.tried)

    def _fill(self, request: pb.ExchangeRequest) -> None:
        request.get.values_only = True
        if self.nearest:
            request.get.read_preference = pb.READ_PREFERENCE_NEAREST
        request.get.keys.extend(self.keys)

    def results(self, response: pb.ExchangeResponse) -> list[Any]:
        values: list[bytes | None] = list(response.get.values)
        if all(values):
            return values
        return [
            None if outcome in NO_VALUE else value
            for outcome, value in zip(response.get.outcomes, values, strict=True)
        ]

    @staticmethod
    def joined(batches: Sequence[Reads]) -> Reads:
        """The reads of all the batches, each of which joins the first."""
        if len(batches) == 1:
            return batches[0]
        waiting = Several([(batch.waiting, len(batch.keys)) for batch in batches])
        keys = [key for batch in batches for key in batch.keys]
        return type(batches[0])(keys, waiting, min(batch.times for batch in batches), batches[0].nearest)

    def _columns(self, rows: Sequence[int], waiting: Waiting) -> Batch:
        return type(self)([self.keys[row] for row in rows], waiting, self.times, self.nearest)


class HotReads(Reads):
    """Reads of hot keys, which any of a key's owners answers. A kind of its own: a replica may have to ask
    the first owner, and other reads do not wait for that."""

    __slots__ = ()


class Writes(Batch):
    """Results: a SetResult."""

    __slots__ = ("stale_ms", "ttl_ms", "values")

    def __init__(
        self,
        keys: list[str],
        values: list[bytes],
        ttl_ms: list[int],
        stale_ms: list[int],
        waiting: Waiting,
        times: Times,
    ) -> None:
        super().__init__(keys, waiting, times)
        self.values = values
        self.ttl_ms = ttl_ms
        self.stale_ms = stale_ms

    def _fill(self, request: pb.ExchangeRequest) -> None:
        columns = request.set
        columns.keys.extend(self.keys)
        columns.values.extend(self.values)
        columns.ttl_ms.extend(_shortened(self.ttl_ms))
        columns.stale_ms.extend(_shortened(self.stale_ms))

    @property
    def changed(self) -> Sequence[str]:
        return self.keys

    def results(self, response: pb.ExchangeResponse) -> list[SetResult]:
        return list(map(SetResult, repeat(True), response.set.versions, response.set.replicas))

    def _columns(self, rows: Sequence[int], waiting: Waiting) -> Batch:
        return Writes(
            [self.keys[row] for row in rows],
            [self.values[row] for row in rows],
            [self.ttl_ms[row] for row in rows],
            [self.stale_ms[row] for row in rows],
            waiting,
            self.times,
        )


class Removals(Batch):
    """Results: whether there was an entry."""

    __slots__ = ()

    def _fill(self, request: pb.ExchangeRequest) -> None:
        request.delete.keys.extend(self.keys)

    @property
    def changed(self) -> Sequence[str]:
        return self.keys

    def results(self, response: pb.ExchangeResponse) -> list[bool]:
        return [outcome == pb.DELETE_OUTCOME_DELETED for outcome in response.delete.outcomes]

    def _columns(self, rows: Sequence[int], waiting: Waiting) -> Batch:
        return Removals([self.keys[row] for row in rows], waiting, self.times)


def is_no_answer(error: CacheServiceError) -> bool:
    """Whether another node may answer what this error left open."""
    return type(error) in _NO_ANSWER


def _shortened(column: list[int]) -> list[int]:
    """One element for all, where they are alike; none for 0."""
    if column.count(column[0]) < len(column):
        return column
    return column[:1] if column[0] else []
