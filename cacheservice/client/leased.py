"""Reads of callers who would load what is missing."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from cacheservice.client.batch import NO_VALUE, Reads
from cacheservice.client.versioned import Versioned, VersionedReads
from cacheservice.v1 import cache_pb2 as pb


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


Hold = Callable[[Future[Any], Callable[[Any], dict[str, Found]]], Awaitable[dict[str, Found]]]
"""Awaits such reads, makes of them what was found by key, and sees to it that no lease is lost when the
caller goes away meanwhile."""


def by_key(reads: dict[str, Found]) -> dict[str, Found]:
    """Of reads of many keys."""
    return reads


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
