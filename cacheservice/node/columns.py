"""Batches of one kind of operation as columns: a list a field, in the order of the keys.

Where `errors` has one, by position from 0, the other columns have their zero.

Reads and Writes have an `__init__` of their own since it is compiled, while that of a dataclass is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TypeVar

from cacheservice.errors import CacheServiceError
from cacheservice.node.leases import Failure, Lease
from cacheservice.node.operations import Answer, DeleteResult, GetResult, SetResult

Errors = dict[int, CacheServiceError]
Cell = TypeVar("Cell")
Row = tuple[str, bytes, int, int]
"""Key, value, time to live and stale window of a plain write."""


def rows_of(
    keys: Sequence[str], values: Sequence[bytes], ttl_ms: Sequence[int], stale_ms: Sequence[int]
) -> list[Row]:
    """`ttl_ms` and `stale_ms` are as long as the keys, or have one element for all, or none for 0."""
    return list(zip(keys, values, _for_all(ttl_ms), _for_all(stale_ms), strict=False))


@dataclass(slots=True, init=False)
class Reads:
    """What was read."""

    outcomes: list[int]
    """GetOutcome of each key."""
    values: list[bytes]
    versions: list[int] | None
    """None, as ttl_ms, when only the values were asked for."""
    ttl_ms: list[int] | None
    errors: Errors
    from_replica: list[bool] | None
    """None also when none is."""
    leases: dict[int, Lease]
    """Those given along with reads, by position from 0."""
    load_failures: dict[int, Failure]
    hot: tuple[int, ...]
    """Positions from 0 of the keys that are hot."""
    hot_ms: int
    """Of all of them; see GetResult."""

    def __init__(
        self,
        outcomes: list[int],
        values: list[bytes],
        versions: list[int] | None = None,
        ttl_ms: list[int] | None = None,
        errors: Errors | None = None,
        from_replica: list[bool] | None = None,
        leases: dict[int, Lease] | None = None,
        load_failures: dict[int, Failure] | None = None,
        hot: tuple[int, ...] = (),
        hot_ms: int = 0,
    ) -> None:
        self.outcomes = outcomes
        self.values = values
        self.versions = versions
        self.ttl_ms = ttl_ms
        self.errors = {} if errors is None else errors
        self.from_replica = from_replica
        self.leases = {} if leases is None else leases
        self.load_failures = {} if load_failures is None else load_failures
        self.hot = hot
        self.hot_ms = hot_ms

    @classmethod
    def none(cls, size: int, *, values_only: bool) -> Reads:
        """For so many keys, whose places are still empty."""
        times = (None, None) if values_only else ([0] * size, [0] * size)
        return cls([0] * size, [b""] * size, *times)

    def put(self, rows: Sequence[int], part: Reads) -> None:
        """Gives those keys what the part has, which is of the same kind, in their order."""
        _put(self.outcomes, rows, part.outcomes)
        _put(self.values, rows, part.values)
        if self.versions is not None and part.versions is not None:
            _put(self.versions, rows, part.versions)
        if self.ttl_ms is not None and part.ttl_ms is not None:
            _put(self.ttl_ms, rows, part.ttl_ms)
        if part.from_replica is not None:
            self.from_replica = self.from_replica or [False] * len(self.outcomes)
            _put(self.from_replica, rows, part.from_replica)
        self.errors.update((rows[row], error) for row, error in part.errors.items())
        self.leases.update((rows[row], lease) for row, lease in part.leases.items())
        self.load_failures.update((rows[row], failure) for row, failure in part.load_failures.items())
        self.hot += tuple(rows[row] for row in part.hot)
        self.hot_ms = max(self.hot_ms, part.hot_ms)

    @classmethod
    def of(cls, answers: Sequence[Answer], *, values_only: bool = False) -> Reads:
        found = [answer if isinstance(answer, GetResult) else None for answer in answers]
        from_replica = [read is not None and read.from_replica for read in found]
        return cls(
            [read.outcome if read else 0 for read in found],
            [read.value if read else b"" for read in found],
            None if values_only else [read.version if read else 0 for read in found],
            None if values_only else [read.ttl_ms if read else 0 for read in found],
            _errors(answers),
            from_replica if any(from_replica) and not values_only else None,
            {row: read.lease for row, read in enumerate(found) if read and read.lease},
            {row: read.load_failure for row, read in enumerate(found) if read and read.load_failure},
            tuple(row for row, read in enumerate(found) if read and read.hot_ms),
            max((read.hot_ms for read in found if read), default=0),
        )

    def with_refused(self, refused: Errors) -> Reads:
        """These reads, and between them those that were refused, by their positions in the whole."""
        places = _places(len(self.outcomes), refused)
        return Reads(
            _spread(self.outcomes, refused, 0),
            _spread(self.values, refused, b""),
            None if self.versions is None else _spread(self.versions, refused, 0),
            None if self.ttl_ms is None else _spread(self.ttl_ms, refused, 0),
            refused | {places[row]: error for row, error in self.errors.items()},
            None if self.from_replica is None else _spread(self.from_replica, refused, False),
            {places[row]: lease for row, lease in self.leases.items()},
            {places[row]: failure for row, failure in self.load_failures.items()},
            tuple(places[row] for row in self.hot),
            self.hot_ms,
        )


@dataclass(slots=True, init=False)
class Writes:
    """What became of plain writes."""

    versions: list[int]
    replicas: list[int]
    errors: Errors

    def __init__(self, versions: list[int], replicas: list[int], errors: Errors | None = None) -> None:
        self.versions = versions
        self.replicas = replicas
        self.errors = {} if errors is None else errors

    @classmethod
    def none(cls, size: int) -> Writes:
        """For so many keys, whose places are still empty."""
        return cls([0] * size, [0] * size)

    def put(self, rows: Sequence[int], part: Writes) -> None:
        """Gives those keys what the part has, in their order."""
        _put(self.versions, rows, part.versions)
        _put(self.replicas, rows, part.replicas)
        self.errors.update((rows[row], error) for row, error in part.errors.items())

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Writes:
        done = [answer if isinstance(answer, SetResult) else None for answer in answers]
        return cls(
            [write.version if write else 0 for write in done],
            [write.replicas if write else 0 for write in done],
            _errors(answers),
        )

    def with_refused(self, refused: Errors) -> Writes:
        """These writes, and between them those that were refused, by their positions in the whole."""
        return Writes(
            _spread(self.versions, refused, 0),
            _spread(self.replicas, refused, 0),
            _spread_errors(self.errors, len(self.versions), refused),
        )


@dataclass(slots=True)
class Removals:
    """What became of plain removals."""

    outcomes: list[int]
    """DeleteOutcome of each key."""
    versions: list[int]
    errors: Errors = field(default_factory=dict)

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Removals:
        done = [answer if isinstance(answer, DeleteResult) else None for answer in answers]
        return cls(
            [removal.outcome if removal else 0 for removal in done],
            [removal.version if removal else 0 for removal in done],
            _errors(answers),
        )

    def with_refused(self, refused: Errors) -> Removals:
        """These removals, and between them those that were refused, by their positions in the whole."""
        return Removals(
            _spread(self.outcomes, refused, 0),
            _spread(self.versions, refused, 0),
            _spread_errors(self.errors, len(self.outcomes), refused),
        )


def _put(column: list[Cell], rows: Sequence[int], cells: Sequence[Cell]) -> None:
    for row, cell in zip(rows, cells, strict=True):
        column[row] = cell


def _for_all(durations: Sequence[int]) -> Iterable[int]:
    return durations if len(durations) > 1 else repeat(durations[0] if durations else 0)


def _errors(answers: Sequence[Answer]) -> Errors:
    return {
        position: answer for position, answer in enumerate(answers) if isinstance(answer, CacheServiceError)
    }


def _spread(column: list[Cell], refused: Mapping[int, object], zero: Cell) -> list[Cell]:
    cells = iter(column)
    return [zero if row in refused else next(cells) for row in range(len(column) + len(refused))]


def _places(rows: int, refused: Mapping[int, object]) -> list[int]:
    """Where in the whole each row is that was not refused."""
    return [row for row in range(rows + len(refused)) if row not in refused]


def _spread_errors(errors: Errors, rows: int, refused: Errors) -> Errors:
    places = _places(rows, refused)
    return refused | {places[row]: error for row, error in errors.items()}
