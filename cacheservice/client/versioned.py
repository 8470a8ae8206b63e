"""Reads whose results tell what is needed to keep a copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

from cacheservice.client.batch import NO_VALUE, Reads
from cacheservice.v1 import cache_pb2 as pb


class Versioned(NamedTuple):
    """A value that was read."""

    value: bytes
    version: int
    ttl_ms: int
    """0: for ever."""
    ring_epoch: int
    """Of the node that was asked."""
    may_be_kept: bool
    """Whether it is fresh, and from the key's first owner."""


class VersionedReads(Reads):
    """Results: a Versioned, or None when there is no value."""

    __slots__ = ()

    def _fill(self, request: pb.ExchangeRequest) -> None:
        super()._fill(request)
        request.get.values_only = False

    def results(self, response: pb.ExchangeResponse) -> list[Any]:
        return self.results_of(response)

    @staticmethod
    def results_of(response: pb.ExchangeResponse) -> list[Versioned | None]:
        columns = response.get
        epoch = response.ring_epoch
        from_replica: Sequence[bool] | repeat[bool] = columns.from_replica or repeat(False)
        return [
            None
            if outcome in NO_VALUE
            else Versioned(value, version, ttl_ms, epoch, outcome == pb.GET_OUTCOME_HIT and not is_replicas)
            for outcome, value, version, ttl_ms, is_replicas in zip(
                columns.outcomes, columns.values, columns.versions, columns.ttl_ms, from_replica, strict=False
            )
        ]
