"""Those who wait for the results of a batch, row by row."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from typing import Any, Protocol, Self

from cacheservice.errors import CacheServiceError


class Waiting(Protocol):
    """Who waits for the rows of a batch."""

    def done(self, keys: Sequence[str], results: Sequence[Any]) -> None:
        """Gives all rows their results."""

    def failed(self, row: int, error: CacheServiceError) -> None: ...

    def select(self, rows: Sequence[int]) -> Waiting:
        """Who waits for these rows."""
        ...

    def callers(self, row: int) -> int:
        """How many wait for the row alone: none of those who wait for many."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any longer."""
        ...

    @property
    def is_one(self) -> bool:
        """Whether each part of it is one caller that waits for many rows."""
        ...


class Callers:
    """A future for each row; it may have been cancelled."""

    __slots__ = ("futures",)

    def __init__(self, futures: Sequence[Future[Any]]) -> None:
        self.futures = futures

    def done(self, keys: Sequence[str], results: Sequence[Any]) -> None:
        del keys
        for future, result in zip(self.futures, results, strict=True):
            if not future.done():
                future.set_result(result)

    def failed(self, row: int, error: CacheServiceError) -> None:
        if not self.futures[row].done():
            self.futures[row].set_exception(error)

    def select(self, rows: Sequence[int]) -> Self:
        return type(self)([self.futures[row] for row in rows])

    def callers(self, row: int) -> int:
        del row
        return 1

    @property
    def is_over(self) -> bool:
        return all(future.done() for future in self.futures)

    @property
    def is_one(self) -> bool:
        return False


class SharedRows:
    """The futures of all who asked for the same, for each row; they may have been cancelled."""

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[Sequence[Future[Any]]]) -> None:
        self.rows = rows

    def done(self, keys: Sequence[str], results: Sequence[Any]) -> None:
        del keys
        for futures, result in zip(self.rows, results, strict=True):
            for future in futures:
                if not future.done():
                    future.set_result(result)

    def failed(self, row: int, error: CacheServiceError) -> None:
        for future in self.rows[row]:
            if not future.done():
                future.set_exception(error)

    def select(self, rows: Sequence[int]) -> Self:
        return type(self)([self.rows[row] for row in rows])

    def callers(self, row: int) -> int:
        return len(self.rows[row])

    @property
    def is_over(self) -> bool:
        return all(future.done() for futures in self.rows for future in futures)

    @property
    def is_one(self) -> bool:
        return False


class Caller:
    """One caller that waits for many rows, in one batch or in several.

    Gets the results by key of those rows whose result is not None; or the first error, when all rows are
    done for.
    """

    __slots__ = ("_error", "_missing", "_results", "future")

    def __init__(self, future: Future[dict[str, Any]], rows: int) -> None:
        self.future = future
        self._missing = rows
        self._results: dict[str, Any] = {}
        self._error: CacheServiceError | None = None

    def done(self, keys: Sequence[str], results: Sequence[Any]) -> None:
        if None in results:
            self._results.update(pair for pair in zip(keys, results, strict=True) if pair[1] is not None)
        else:
            self._results.update(zip(keys, results, strict=True))
        self._settle(len(keys))

    def failed(self, row: int, error: CacheServiceError) -> None:
        del row
        self._error = self._error or error
        self._settle(1)

    def select(self, rows: Sequence[int]) -> Caller:
        del rows
        return self

    def callers(self, row: int) -> int:
        del row
        return 0

    @property
    def is_over(self) -> bool:
        return self.future.done()

    @property
    def is_one(self) -> bool:
        return True

    def _settle(self, rows: int) -> None:
        self._missing -= rows
        if not self._missing:
            self._end(self._results, self._error)

    def _end(self, results: dict[str, Any], error: CacheServiceError | None) -> None:
        if self.future.done():
            return
        if error:
            self.future.set_exception(error)
        else:
            self.future.set_result(results)


class Several:
    """Others one after the other, each with so many rows."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[tuple[Waiting, int]]) -> None:
        self._parts = parts

    def done(self, keys: Sequence[str], results: Sequence[Any]) -> None:
        start = 0
        for waiting, rows in self._parts:
            waiting.done(keys[start : start + rows], results[start : start + rows])
            start += rows

    def failed(self, row: int, error: CacheServiceError) -> None:
        for waiting, rows in self._parts:
            if row < rows:
                waiting.failed(row, error)
                return
            row -= rows

    def select(self, rows: Sequence[int]) -> Several:
        parts: list[tuple[Waiting, int]] = []
        start = 0
        for waiting, count in self._parts:
            some = [row - start for row in rows if start <= row < start + count]
            start += count
            if some:
                parts.append((waiting.select(some), len(some)))
        return Several(parts)

    def callers(self, row: int) -> int:
        del row
        return 0

    @property
    def is_over(self) -> bool:
        return all(waiting.is_over for waiting, _ in self._parts)

    @property
    def is_one(self) -> bool:
        return True


class Race:
    """Those who wait for rows that two nodes have been asked for: the first result of each row counts, and an
    error only when both have one."""

    __slots__ = ("_failed", "_rows", "_settled", "_waiting")

    def __init__(self, waiting: Waiting, rows: Sequence[int], settled: set[int], failed: set[int]) -> None:
        self._waiting = waiting
        self._rows = rows
        """Of those that `waiting` has, these."""
        self._settled = settled
        self._failed = failed

    @classmethod
    def of(cls, waiting: Waiting, rows: int, asked_twice: Sequence[int]) -> Race:
        """Of all the rows; two nodes are asked for some of them."""
        return cls(waiting, range(rows), set(), set(range(rows)).difference(asked_twice))

    def done(self, keys: Sequence[str], results: Sequence[Any]) -> None:
        left = [position for position, row in enumerate(self._rows) if row not in self._settled]
        if left:
            rows = [self._rows[position] for position in left]
            self._settled.update(rows)
            self._waiting.select(rows).done(
                [keys[position] for position in left], [results[position] for position in left]
            )

    def failed(self, row: int, error: CacheServiceError) -> None:
        failed = self._rows[row]
        if failed in self._settled:
            return
        if failed in self._failed:
            self._settled.add(failed)
            self._waiting.select([failed]).failed(0, error)
        self._failed.add(failed)

    def select(self, rows: Sequence[int]) -> Race:
        return Race(self._waiting, [self._rows[row] for row in rows], self._settled, self._failed)

    def callers(self, row: int) -> int:
        return self._waiting.callers(self._rows[row])

    @property
    def is_over(self) -> bool:
        return self._waiting.is_over or all(row in self._settled for row in self._rows)

    @property
    def is_one(self) -> bool:
        return self._waiting.is_one
