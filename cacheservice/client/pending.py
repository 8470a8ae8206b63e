"""What waits to leave for one node: what callers ask for at about the same time becomes one batch.

Kinds leave in the order reads, writes, removals. An operation on a key that has one pending which would
leave after it starts new batches, so that the single operations on one key leave in the order in which they
were asked for. One caller's batches of many keys wait apart, and keep no order with those.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from typing import Any

from cacheservice.client.batch import Batch, Callers, HotReads, Reads, Removals, Times, Together, Writes
from cacheservice.client.leased import Found, LeasedReads
from cacheservice.client.results import SetResult
from cacheservice.errors import Overloaded

MAX_KEYS = 1_000
"""Of a batch that gathers the operations of many callers."""
ANSWER_BYTES = 240 * 1024
"""Of the answer to reads of many keys, as far as it can be foreseen: buffers of more are new to the process
each time, and the system takes longer to provide them than the values take to be copied."""
MAX_WAITING = 256
"""Batches of many callers' operations that wait for a node that takes none."""
LEAST_KEYS = 16
"""Fewer are not parted: a batch costs as much as some fifty keys."""
MAX_VALUE_BYTES = 1024 * 1024
"""Of the values written in such a batch, but for the last."""


class Pending:
    """Operations of many callers in open batches, and batches that are ready to leave."""

    def __init__(
        self, new_future: Callable[[], Future[Any]], times: Callable[[], Times], *, nearest: bool = False
    ) -> None:
        self._nearest = nearest
        """Of single reads; batches of many keys have their own preference."""
        self._new_future = new_future
        self._times = times
        self._reads: Reads | None = None
        self._read_futures: list[Future[Any]] = []
        self._hot_reads: HotReads | None = None
        self._hot_futures: list[Together] = []
        self._together: dict[str, Together] = {}
        """Who waits for each key of these."""
        self._leased: LeasedReads | None = None
        self._leased_futures: list[Future[Any]] = []
        self._writes: Writes | None = None
        self._write_futures: list[Future[Any]] = []
        self._removals: Removals | None = None
        self._removal_futures: list[Future[Any]] = []
        self._written: set[str] = set()
        self._value_bytes = 0
        self._removed: set[str] = set()
        self._small: deque[Batch] = deque()
        self._large: deque[Batch] = deque()
        self._large_is_next = False
        self._bytes_a_read = 0.0

    @property
    def is_empty(self) -> bool:
        return not (self._small or self._large or any(self._open))

    @property
    def _open(self) -> tuple[Batch | None, ...]:
        """What operations may still join, in the order in which it leaves."""
        return self._reads, self._hot_reads, self._leased, self._writes, self._removals

    def read(self, key: str) -> Future[bytes | None]:
        if key in self._written or key in self._removed:
            self.seal()
        batch = self._reads
        if batch is None:
            self._read_futures = []
            batch = self._reads = Reads([], Callers(self._read_futures), self._new_times(), self._nearest)
        future = self._new_future()
        batch.keys.append(key)
        self._read_futures.append(future)
        if len(batch.keys) == MAX_KEYS:
            self.seal()
        return future

    def read_hot(self, key: str) -> Future[bytes | None]:
        """As `read` of a key that any owner may be asked for; all who ask for it meanwhile share one row."""
        if key in self._written or key in self._removed:
            self.seal()
        future = self._new_future()
        together = self._together.get(key)
        if together is None or len(together.futures) == MAX_KEYS:
            together = self._together[key] = self._new_row(key)
        together.futures.append(future)
        return future

    def _new_row(self, key: str) -> Together:
        if self._hot_reads is not None and len(self._hot_reads.keys) == MAX_KEYS:
            self.seal()
        if self._hot_reads is None:
            self._hot_futures = []
            self._hot_reads = HotReads([], Callers(self._hot_futures), self._new_times(), nearest=True)
        self._hot_reads.keys.append(key)
        self._hot_futures.append(Together())
        return self._hot_futures[-1]

    def is_read_hot(self, key: str) -> bool:
        """Whether a read of the hot key waits that others may share."""
        return key in self._together

    def changes(self, key: str) -> bool:
        """Whether an operation on this one key waits that writes or removes it."""
        return (
            key in self._written or key in self._removed or any(batch.changes(key) for batch in self._small)
        )

    def read_leased(self, key: str) -> Future[Found]:
        if key in self._written or key in self._removed:
            self.seal()
        batch = self._leased
        if batch is None:
            self._leased_futures = []
            batch = self._leased = LeasedReads([], Callers(self._leased_futures), self._new_times())
        future = self._new_future()
        batch.keys.append(key)
        self._leased_futures.append(future)
        if len(batch.keys) == MAX_KEYS:
            self.seal()
        return future

    def write(self, key: str, value: bytes, ttl_ms: int, stale_ms: int) -> Future[SetResult]:
        if key in self._removed:
            self.seal()
        batch = self._writes
        if batch is None:
            self._write_futures = []
            batch = self._writes = Writes([], [], [], [], Callers(self._write_futures), self._new_times())
        future = self._new_future()
        batch.keys.append(key)
        batch.values.append(value)
        batch.ttl_ms.append(ttl_ms)
        batch.stale_ms.append(stale_ms)
        self._write_futures.append(future)
        self._written.add(key)
        self._value_bytes += len(value)
        if len(batch.keys) == MAX_KEYS or self._value_bytes >= MAX_VALUE_BYTES:
            self.seal()
        return future

    def remove(self, key: str) -> Future[bool]:
        batch = self._removals
        if batch is None:
            self._removal_futures = []
            batch = self._removals = Removals([], Callers(self._removal_futures), self._new_times())
        future = self._new_future()
        batch.keys.append(key)
        self._removal_futures.append(future)
        self._removed.add(key)
        if len(batch.keys) == MAX_KEYS:
            self.seal()
        return future

    def add(self, batch: Batch) -> None:
        """Takes a batch that is complete: one caller's own, or one that comes from another node."""
        if batch.is_large:
            self._large.append(batch)
        else:
            self._small.append(batch)

    def _new_times(self) -> Times:
        """Of a batch that is begun now. Overloaded when too many wait already."""
        if len(self._small) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} batches wait for this node already", retry_after_ms="100")
        return self._times()

    def seal(self, size: int = MAX_KEYS) -> None:
        """Lets nothing more join the operations that wait now; they leave at most `size` together."""
        for batch in self._open:
            if batch is not None:
                rows = range(len(batch.keys))
                self._small += [batch.select(rows[start : start + size]) for start in rows[::size]]
        self._reads = self._hot_reads = self._leased = self._writes = self._removals = None
        self._together = {}
        self._written.clear()
        self._removed.clear()
        self._value_bytes = 0

    def take(self, small: bool, large: bool, under_way: int, under_way_large: int = 0) -> list[Batch]:
        """What is to leave next, of the sizes that may; in turns where both do.

        Several batches are of different kinds, and leave in one message.

        `under_way` and `under_way_large` count the operations that have left in batches of either size and
        are not answered. About half of all should be: while the node works on them, this side has the others.
        """
        if small and not self._small:
            self._seal_half(under_way)
        if large and self._large and (self._large_is_next or not (small and self._small)):
            self._large_is_next = False
            return [self._take_large(under_way_large)]
        if not (small and self._small):
            return []
        self._large_is_next = True
        batches = [self._small.popleft()]
        kinds = {type(batches[0])}
        while self._small and type(self._small[0]) not in kinds:
            kinds.add(type(self._small[0]))
            batches.append(self._small.popleft())
        return batches

    def value_read(self, size: int) -> None:
        """To be told the bytes of a value now and then, so that reads of many are cut to fit their answer."""
        self._bytes_a_read += (size - self._bytes_a_read) / 8

    def _take_large(self, under_way: int) -> Batch:
        """The first large batch; of reads also those behind it, up to half of all there are."""
        first = self._large.popleft()
        if not isinstance(first, Reads) or first.tried:
            return first
        most = max(LEAST_KEYS, min(MAX_KEYS, int(ANSWER_BYTES / (self._bytes_a_read + 1))))
        if len(first.keys) > most:
            self._large.appendleft(first.select(range(most, len(first.keys))))
            return first.select(range(most))
        waiting = len(first.keys) + sum(len(batch.keys) for batch in self._large)
        most = min(most, (under_way + waiting + 1) // 2)
        reads, size = [first], len(first.keys)
        while self._large and size + len(self._large[0].keys) <= most:
            batch = self._large[0]
            if not (isinstance(batch, Reads) and first.joins(batch)):
                break
            reads.append(batch)
            size += len(batch.keys)
            self._large.popleft()
        return type(first).joined(reads)

    def _seal_half(self, under_way: int) -> None:
        gathering = [batch for batch in self._open if batch is not None]
        waiting = sum(len(batch.keys) for batch in gathering)
        half = max(LEAST_KEYS, (under_way + waiting + 1) // 2)
        if len(gathering) > 1 or waiting <= half or gathering[0] not in (self._reads, self._leased):
            self.seal(half)
            return
        rest = range(half, waiting)
        if self._reads is not None:
            self._small.append(self._reads.select(range(half)))
            self._read_futures = [self._read_futures[row] for row in rest]
            left = self._reads.keys[half:]
            self._reads = Reads(left, Callers(self._read_futures), self._reads.times, self._nearest)
        elif self._leased is not None:
            self._small.append(self._leased.select(range(half)))
            self._leased_futures = [self._leased_futures[row] for row in rest]
            left = self._leased.keys[half:]
            self._leased = LeasedReads(left, Callers(self._leased_futures), self._leased.times)

    def take_all(self) -> list[Batch]:
        self.seal()
        batches = [*self._small, *self._large]
        self._small.clear()
        self._large.clear()
        return batches

    def take_late(self, now: float) -> list[Batch]:
        """The batches that have waited until they should try another node."""
        self.seal()
        late = [batch for batch in (*self._small, *self._large) if batch.yields_at <= now]
        if late:
            self._small = deque(batch for batch in self._small if batch.yields_at > now)
            self._large = deque(batch for batch in self._large if batch.yields_at > now)
        return late
