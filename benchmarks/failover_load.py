"""A steady load on a cache that is disturbed meanwhile, and what its callers notice.

Open loop: operations are due at a fixed rate, whether those before them are done or not, and each latency
counts from when the operation was due. None is left out: what cannot start in time is done later, and counted
as late. The operations on one key follow each other, so that each read knows what it has to find.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Protocol

from benchmarks.impossible import BenchmarkImpossible

VALUE_BYTES = 100
WINDOW_SECONDS = 0.1
LATE_SECONDS = 0.05
START_SECONDS = 60.0
_AT_A_TIME = 50
_FILL_TRIES = 20
_FILL_PAUSE_SECONDS = 0.25


class Cache(Protocol):
    """Counters by key. Both methods raise whatever the client of the cache raises."""

    async def read(self, key: str) -> int | None: ...

    async def write(self, key: str, counter: int) -> bool:
        """Whether the cache has promised to keep it when a node dies."""
        ...


def encoded(counter: int) -> bytes:
    return str(counter).encode().ljust(VALUE_BYTES)


def decoded(value: bytes | None) -> int | None:
    return None if value is None else int(value)


@dataclass
class Entry:
    """A key, with what was written to it and what of that has to be found again."""

    key: str
    written: int = 0
    acknowledged: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Figures:
    """What the callers noticed from `begin` to `end`, in seconds of time.perf_counter."""

    rate: float
    """Operations that were due in a second."""
    begin: float = field(default_factory=time.perf_counter)
    end: float = math.inf
    latencies: list[float] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    lost: int = 0
    """Reads that found less than the last acknowledged counter; each loss counts once."""
    late: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """By the exception's name."""
    _good: Counter[int] = field(default_factory=Counter)
    """By window: the operations that succeeded in it."""
    _bad: set[int] = field(default_factory=set)

    def finished(self, due: float, error: Exception | None = None) -> None:
        now = time.perf_counter()
        self.latencies.append(now - due)
        window = int((now - self.begin) / WINDOW_SECONDS)
        if error is None:
            self._good[window] += 1
        else:
            self._bad.add(window)
            self.failed[type(error).__name__] += 1

    @property
    def hit_ratio(self) -> float:
        return self.hits / max(1, self.hits + self.misses)

    @property
    def seconds_without_service(self) -> float:
        """All windows in which a request failed, or none succeeded."""
        return self._seconds(lambda window: window in self._bad or window not in self._good)

    def seconds_below(self, rate: float) -> float:
        """All windows in which fewer operations succeeded than `rate` a second."""
        return self._seconds(lambda window: self._good[window] < rate * WINDOW_SECONDS)

    def _seconds(self, counts: Callable[[int], bool]) -> float:
        windows = int((self.end - self.begin) / WINDOW_SECONDS)
        return WINDOW_SECONDS * sum(map(counts, range(windows)))

    def slower_than(self, seconds: float) -> int:
        return sum(latency > seconds for latency in self.latencies)

    def latency_ms(self, part: float) -> float:
        """The latency within which that part of the operations ended, failed ones included."""
        ordered = sorted(self.latencies)
        return 1_000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else math.nan


class Load:
    """Reads and writes of `keys`, drawn at random, `rate` a second and at most `in_flight` at a time."""

    def __init__(
        self,
        cache: Cache,
        keys: Sequence[str],
        *,
        rate: float,
        writes: float,
        in_flight: int,
        seed: int,
        counter: int = 0,
    ) -> None:
        """`writes` is the part of the operations that write, `counter` what all keys already have."""
        self._cache = cache
        self._entries = [Entry(key, counter, counter) for key in keys]
        self._rate = rate
        self._writes = writes
        self._in_flight = in_flight
        self._random = Random(seed)

    async def fill(self) -> None:
        """Writes every key once, and again when that fails; raises what still fails after many tries."""
        for start in range(0, len(self._entries), _AT_A_TIME):
            part = self._entries[start : start + _AT_A_TIME]
            await asyncio.gather(*map(self._fill, part))

    async def check(self) -> Figures:
        """Reads every key once."""
        figures = Figures(self._rate)
        for start in range(0, len(self._entries), _AT_A_TIME):
            now = time.perf_counter()
            part = self._entries[start : start + _AT_A_TIME]
            await asyncio.gather(*(self._operate(entry, False, now, figures) for entry in part))
        figures.end = time.perf_counter()
        return figures

    async def during(self, work: Awaitable[None]) -> Figures:
        """What is noticed until `work` is done."""
        figures = Figures(self._rate)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pace(figures, group))
            await work
            figures.end = time.perf_counter()
        return figures

    async def _pace(self, figures: Figures, group: asyncio.TaskGroup) -> None:
        room = asyncio.Semaphore(self._in_flight)
        for number in count():
            due = figures.begin + number / self._rate
            await asyncio.sleep(due - time.perf_counter())
            if due >= figures.end:
                return
            await room.acquire()
            figures.late += time.perf_counter() - due > LATE_SECONDS
            entry = self._random.choice(self._entries)
            is_write = self._random.random() < self._writes
            operation = group.create_task(self._operate(entry, is_write, due, figures))
            operation.add_done_callback(lambda _: room.release())

    async def _operate(self, entry: Entry, is_write: bool, due: float, figures: Figures) -> None:
        async with entry.turn:
            try:
                await (self._write(entry) if is_write else self._read(entry, figures))
            except Exception as error:
                figures.finished(due, error)
            else:
                figures.finished(due)

    async def _fill(self, entry: Entry) -> None:
        for tries_left in reversed(range(_FILL_TRIES)):
            try:
                return await self._write(entry)
            except Exception:
                if not tries_left:
                    raise
            await asyncio.sleep(_FILL_PAUSE_SECONDS)
        return None

    async def _write(self, entry: Entry) -> None:
        entry.written += 1
        if await self._cache.write(entry.key, entry.written):
            entry.acknowledged = entry.written

    async def _read(self, entry: Entry, figures: Figures) -> None:
        found = await self._cache.read(entry.key)
        figures.hits += found is not None
        figures.misses += found is None
        if (found or 0) < entry.acknowledged:
            figures.lost += 1
            entry.acknowledged = found or 0


@dataclass
class Outcome:
    """What was noticed before a disturbance, during it, and of all keys after it."""

    before: Figures
    during: Figures
    after: Figures
    notes: dict[str, str] = field(default_factory=dict)

    def rows(self) -> dict[str, str]:
        return {
            "hit ratio before": f"{self.before.hit_ratio:.2%}",
            "p99 before": f"{self.before.latency_ms(0.99):,.1f} ms",
            "slowest before": f"{self.before.latency_ms(1):,.1f} ms",
            **figure_rows(self.during),
            "lost acknowledged writes": f"{self.during.lost + self.after.lost:,}",
            "keys gone in the end": f"{self.after.misses:,} of {self.after.misses + self.after.hits:,}",
            "unreadable in the end": f"{self.after.failed.total():,}",
            **self.notes,
        }


def figure_rows(figures: Figures) -> dict[str, str]:
    kinds = (f"  {kind}" for kind, _ in figures.failed.most_common())
    return {
        "seconds": f"{figures.end - figures.begin:,.1f}",
        "operations": f"{len(figures.latencies):,}",
        "failed requests": f"{figures.failed.total():,}",
        **{kind: f"{figures.failed[kind.strip()]:,}" for kind in kinds},
        "seconds without service": f"{figures.seconds_without_service:,.1f}",
        "seconds below half the rate": f"{figures.seconds_below(figures.rate / 2):,.1f}",
        "hit ratio": f"{figures.hit_ratio:.2%}",
        "p50": f"{figures.latency_ms(0.5):,.1f} ms",
        "p99": f"{figures.latency_ms(0.99):,.1f} ms",
        "slowest": f"{figures.latency_ms(1):,.1f} ms",
        "slower than 1 s": f"{figures.slower_than(1):,}",
        "started late": f"{figures.late:,}",
    }


def print_table(columns: Mapping[str, Mapping[str, str]]) -> None:
    """The columns side by side, with the rows that any of them has."""
    names = list(columns)
    rows = _merged([list(column) for column in columns.values()])
    width = max(map(len, rows))
    widths = [max(16, len(name), *map(len, columns[name].values())) for name in names]
    shown = zip(names, widths, strict=True)
    print(f"\n{'':{width}}", *(f"{name:>{cell}}" for name, cell in shown), sep="  ")
    for row in rows:
        cells = zip((columns[name].get(row, "") for name in names), widths, strict=True)
        print(f"{row:{width}}", *(f"{text:>{cell}}" for text, cell in cells), sep="  ", flush=True)


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """All names once; one that is new stands where it stands in its own list."""
    merged: list[str] = []
    for names in lists:
        place = 0
        for name in names:
            if name in merged:
                place = merged.index(name) + 1
            else:
                merged.insert(place, name)
                place += 1
    return merged


def say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')}  {text}", flush=True)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Polls until the condition holds; BenchmarkImpossible when that takes too long."""
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise BenchmarkImpossible(f"not within {START_SECONDS:g} s: {what}") from None
