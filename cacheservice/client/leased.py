"""Reads of callers who would load what is missing."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cacheservice.client.batch import NO_VALUE, Reads
from cacheservice.client.versioned import Versioned, VersionedReads
from cacheservice.client.waiting import Caller, SharedRows
from cacheservice.errors import CacheServiceError
from cacheservice.v1 import cache_pb2 as pb

GiveBack = Callable[[str, bytes], None]
"""Is given the key and token of a lease that nobody here wants any longer."""


class Found(NamedTuple):
    """What such a read finds."""

    value: bytes | None
    """None also when it is known that there is none."""
    is_answer: bool
    """Whether that may be served."""
    token: bytes = b""
    """Of the lease; empty when it was not given."""
    failure: pb.LoadFailure | None = None
    """Why nobody is to load the value now."""
    copy: Versioned | None = None
    """What to keep a copy of, where that was asked for."""

    @property
    def is_awaited(self) -> bool:
        """Whether somebody else is loading the value."""
        return not (self.is_answer or self.token) and self.failure is None

    @classmethod
    def of(cls, response: pb.GetResponse) -> Found:
        failure = response.load_failure if response.HasField("load_failure") else None
        value = None if response.outcome in NO_VALUE else response.value
        return cls(value, response.outcome != pb.GET_OUTCOME_MISS, response.lease_token, failure)


class Sharers(SharedRows):
    """Those of one process who read the same key: one of them gets its lease."""

    __slots__ = ("_give_back",)

    def __init__(self, rows: Sequence[Sequence[Future[Found]]], give_back: GiveBack) -> None:
        super().__init__(rows)
        self._give_back = give_back

    def done(self, keys: Sequence[str], results: Sequence[Found]) -> None:
        for key, futures, found in zip(keys, self.rows, results, strict=True):
            left = found
            for future in futures:
                if not future.done():
                    future.set_result(left)
                    if left.token:
                        left = left._replace(token=b"")
            if left.token:
                self._give_back(key, left.token)

    def select(self, rows: Sequence[int]) -> Sharers:
        return Sharers([self.rows[row] for row in rows], self._give_back)


class OneForAll(Caller):
    """One caller that reads many keys: when it has gone, or gets an error, nobody has the leases."""

    __slots__ = ("_give_back",)

    def __init__(self, future: Future[dict[str, Any]], rows: int, give_back: GiveBack) -> None:
        super().__init__(future, rows)
        self._give_back = give_back

    def done(self, keys: Sequence[str], results: Sequence[Found]) -> None:
        super().done(keys, results)
        if self.future.cancelled():
            self.leave()

    def leave(self) -> None:
        """Gives back the leases that came so far."""
        for key, found in self._results.items():
            if found.token:
                self._give_back(key, found.token)
        self._results = {}

    def _end(self, results: dict[str, Any], error: CacheServiceError | None) -> None:
        if error:
            self.leave()
        super()._end(results, error)


class LeasedReads(Reads):
    """Results: a Found."""

    __slots__ = ()

    def _fill(self, request: pb.ExchangeRequest) -> None:
        super()._fill(request)
        request.get.lease.SetInParent()

    def results(self, response: pb.ExchangeResponse) -> list[Any]:
        columns = response.get
        found = [
            Found(None if outcome in NO_VALUE else value, outcome != pb.GET_OUTCOME_MISS)
            for outcome, value in zip(columns.outcomes, columns.values, strict=True)
        ]
        for lease in columns.leases:
            found[lease.index] = found[lease.index]._replace(token=lease.token)
        for at in columns.load_failures:
            found[at.index] = found[at.index]._replace(failure=at.failure)
        return found


class LeasedCopies(LeasedReads):
    """The same, with what is needed to keep copies."""

    __slots__ = ()

    def _fill(self, request: pb.ExchangeRequest) -> None:
        super()._fill(request)
        request.get.values_only = False

    def results(self, response: pb.ExchangeResponse) -> list[Any]:
        copies = VersionedReads.results_of(response)
        return [
            found._replace(copy=copy) for found, copy in zip(super().results(response), copies, strict=True)
        ]
