"""What waits to leave for one node: what callers ask for at about the same time becomes one batch.

Kinds leave in the order reads, writes, removals. An operation on a key that has one pending which would
leave after it starts new batches, so that the single operations on one key leave in the order in which they
were asked for. One caller's batches of many keys wait apart, and keep no order with those.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from cacheservice.client.batch import Batch, HotReads, Reads, Removals, Slot, Times
from cacheservice.client.gathering import Gathering, SharedReads, Singles, SingleWrites
from cacheservice.client.leased import Found, GiveBack, LeasedReads, Sharers
from cacheservice.client.results import SetResult
from cacheservice.client.waiting import SharedRows
from cacheservice.errors import Overloaded

MAX_KEYS: Final = 1_000
"""Of a batch that gathers the operations of many callers."""
ANSWER_BYTES = 240 * 1024
"""Of the answer to reads of many keys, as far as it can be foreseen: buffers of more are new to the process
each time, and the system takes longer to provide them than the values take to be copied."""
MAX_WAITING: Final = 256
"""Batches of many callers' operations that wait for a node that takes none."""
LEAST_KEYS: Final = 16
"""Fewer are not parted: a batch costs as much as some fifty keys."""
_KINDS_OF_READS = 3
MAX_VALUE_BYTES: Final = 1024 * 1024
"""Of the values written in such a batch, but for the last."""


class Pending:
    """Operations of many callers that gather, and batches that are ready to leave.

    `nearest` is of single reads; batches of many keys have their own preference.
    """

    def __init__(
        self,
        new_future: Callable[[], Future[Any]],
        times: Callable[[], Times],
        leased: type[LeasedReads],
        give_back: GiveBack,
        *,
        nearest: bool = False,
    ) -> None:
        self._new_future = new_future
        self._times = times
        self._reads = Singles(partial(Reads, nearest=nearest))
        self._hot = SharedReads(HotReads, SharedRows, nearest=True)
        self._leased = SharedReads(leased, partial(Sharers, give_back=give_back), nearest=False)
        self._writes = SingleWrites()
        self._removals = Singles(Removals)
        self._gathering: tuple[Gathering, ...] = (
            self._reads,
            self._hot,
            self._leased,
            self._writes,
            self._removals,
        )
        """In the order in which they leave; those that only read are the first."""
        self._written: set[str] = set()
        self._value_bytes = 0
        self._removed: set[str] = set()
        self._small: deque[Batch] = deque()
        self._large: deque[Batch] = deque()
        self._large_is_next = False
        self.is_alone = True
        """Whether no other node is asked. Then half of all waits while it works on the other half; with
        several nodes the others have work meanwhile, and fewer, larger batches cost less."""
        self._bytes_a_read = 0.0

    @property
    def is_empty(self) -> bool:
        return not (self._small or self._large or any(self._gathering))

    @property
    def reads(self) -> int:
        """How many keys single callers would read with what leaves next."""
        if self._small:
            first = self._small[0]
            return len(first.keys) if first.slot == Slot.READS else 0
        return len(self._reads.keys) + len(self._hot.rows) + len(self._leased.rows)

    def read(self, key: str) -> Future[bytes | None]:
        if key in self._written or key in self._removed:
            self.seal()
        reads = self._reads
        if not reads.keys:
            reads.times = self._new_times()
        future = self._new_future()
        reads.keys.append(key)
        reads.futures.append(future)
        if len(reads.keys) == MAX_KEYS:
            self.seal()
        return future

    def read_hot(self, key: str) -> Future[bytes | None]:
        """As `read` of a key that any owner may be asked for; all who ask for it meanwhile share one row."""
        return self._share(self._hot, key)

    def read_leased(self, key: str) -> Future[Found]:
        """As `read` by a caller who would load the value; all who are meanwhile share one row."""
        return self._share(self._leased, key)

    def _share(self, reads: SharedReads, key: str) -> Future[Any]:
        if key in self._written or key in self._removed:
            self.seal()
        row = reads.rows.get(key)
        if row is None or len(row) == MAX_KEYS:
            if row is not None or len(reads.rows) == MAX_KEYS:
                self.seal()
            if not reads.rows:
                reads.times = self._new_times()
            row = reads.rows[key] = []
        future = self._new_future()
        row.append(future)
        return future

    def changes(self, key: str) -> bool:
        """Whether an operation on this one key waits that writes or removes it."""
        return (
            key in self._written or key in self._removed or any(key in batch.changed for batch in self._small)
        )

    def changing(self) -> set[str]:
        """The keys of all such operations."""
        return self._written.union(self._removed, *(batch.changed for batch in self._small))

    def write(self, key: str, value: bytes, ttl_ms: int, stale_ms: int) -> Future[SetResult]:
        if key in self._removed:
            self.seal()
        writes = self._writes
        if not writes.keys:
            writes.times = self._new_times()
        future = self._new_future()
        writes.keys.append(key)
        writes.values.append(value)
        writes.ttl_ms.append(ttl_ms)
        writes.stale_ms.append(stale_ms)
        writes.futures.append(future)
        self._written.add(key)
        self._value_bytes += len(value)
        if len(writes.keys) == MAX_KEYS or self._value_bytes >= MAX_VALUE_BYTES:
            self.seal()
        return future

    def remove(self, key: str) -> Future[bool]:
        removals = self._removals
        if not removals.keys:
            removals.times = self._new_times()
        future = self._new_future()
        removals.keys.append(key)
        removals.futures.append(future)
        self._removed.add(key)
        if len(removals.keys) == MAX_KEYS:
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
        for gathering in self._gathering:
            while gathering:
                self._small.append(gathering.take(size))
        self._written.clear()
        self._removed.clear()
        self._value_bytes = 0

    def take(
        self,
        small: bool,
        large: bool,
        under_way: int,
        under_way_large: int = 0,
        *,
        is_changing: bool = False,
        is_fed: bool = False,
    ) -> list[Batch]:
        """What is to leave next, of the sizes that may; in turns where both do.

        Several batches are of different kinds, and leave in one message.

        `under_way` and `under_way_large` count the operations that have left in batches of either size and
        are not answered. About half of all should be: while the node works on them, this side has the others.
        `is_changing`: whether there are writes or removals among them. With several nodes those that wait
        then gather, since to have them replicated takes as much for one as for some tens. `is_fed`: whether
        the node has large reads waiting behind those that it works on. Then others gather as long as more
        than half is under way and an answer has room for one caller's more: sooner they would only be more
        messages.
        """
        if small and not self._small:
            if self.is_alone:
                self._seal_half(under_way)
            elif is_changing:
                self._seal_reads()
            else:
                self.seal()
        if large and self._large and (self._large_is_next or not (small and self._small)):
            batch = self._take_large(under_way_large, is_fed=is_fed)
            if batch is not None:
                self._large_is_next = False
                return [batch]
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

    def _take_large(self, under_way: int, *, is_fed: bool) -> Batch | None:
        """The first large batch; of reads also those behind it, up to half of all there are. None while they
        gather; see `take`."""
        first = self._large[0]
        if not isinstance(first, Reads) or first.tried:
            return self._large.popleft()
        most = max(LEAST_KEYS, min(MAX_KEYS, int(ANSWER_BYTES / (self._bytes_a_read + 1))))
        if len(first.keys) > most:
            self._large[0] = first.select(range(most, len(first.keys)))
            return first.select(range(most))
        waiting = sum(len(batch.keys) for batch in self._large)
        has_room = waiting + len(first.keys) <= most
        if is_fed and under_way > waiting and has_room and all(map(first.joins, self._large)):
            return None
        self._large.popleft()
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

    def _seal_reads(self) -> None:
        for gathering in self._gathering[:_KINDS_OF_READS]:
            while gathering:
                self._small.append(gathering.take(MAX_KEYS))

    def _seal_half(self, under_way: int) -> None:
        gathering = [some for some in self._gathering if some]
        waiting = sum(len(some) for some in gathering)
        half = max(LEAST_KEYS, (under_way + waiting + 1) // 2)
        if len(gathering) == 1 and waiting > half and gathering[0] in (self._reads, self._leased):
            self._small.append(gathering[0].take(half))
        else:
            self.seal(half)

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
