"""Miss ratios of the store's policies: beside exact LRU and published figures, and beside a real Redis.

`python -m benchmarks.store_hits [--limit REQUESTS]` prints the tables and what of them is a check. It wants
the recorded logs (see workloads.py), redis-server, a C compiler and the extra `benchmark`, and takes about
a quarter of an hour on one core. Keys fall into segments by Python's own hash, so that figures differ by a
few hundredths of a point from run to run, unless PYTHONHASHSEED is set.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks.impossible import BenchmarkImpossible
from benchmarks.redis_server import redis_server
from benchmarks.workloads import PRESETS, TRACES, Workload, load, make, traces_directory
from cacheservice.errors import EntryTooLarge, Overloaded
from cacheservice.store import POLICIES, Entry, Store, cost_of_one, pack
from cacheservice.store.cost import cost_in_bytes

SHARES = (0.01, 0.1)
"""Capacities as parts of the log's distinct keys, or of the memory that these take."""

REFERENCE_COLUMNS = ("LRU", "LFU", "SIEVE", "S3-FIFO", "ARC", "Belady")
REFERENCE: dict[tuple[str, float], tuple[float, ...]] = {
    ("arc_oltp", 0.01): (58.4, 82.4, 59.7, 53.6, 54.6, 40.2),
    ("arc_oltp", 0.1): (33.5, 55.4, 33.3, 32.3, 32.7, 23.8),
    ("cache2k_orm_busy", 0.01): (23.0, 82.9, 29.5, 24.4, 23.3, 17.2),
    ("cache2k_orm_busy", 0.1): (12.0, 35.1, 11.9, 11.0, 12.0, 6.7),
    ("cache2k_web12", 0.1): (31.5, 39.8, 28.3, 27.7, 29.1, 20.0),
    ("scarab_recs", 0.01): (65.3, 69.4, 59.2, 57.2, 59.2, 46.6),
    ("scarab_recs", 0.1): (39.4, 48.8, 39.1, 37.3, 37.7, 25.0),
}
"""Percent of misses as the README of the shared logs has them: libcachesim 0.3.5, and for S3-FIFO with a
threshold of two uses a simulator written for them."""

LRU_TOLERANCE = 0.3
S3FIFO_TOLERANCE = 0.7
WORSE_THAN_LRU = 1.0
"""Points that `adaptive` may lose on LRU, on any log and size."""

REDIS_POLICIES = {"allkeys-lru": 1_000, "allkeys-lfu": 1}
"""Milliseconds of Redis's clock for each request of a log without times.

Its LRU is the better the faster the clock moves. Its LFU forgets by the minute; of 0, 1, 10 and 100 ms, 1 and
10 did best in the mean of the logs.
"""
LEAST_REDIS_BYTES = 100_000
"""With less memory for entries, most of them change while Redis's clock stands still."""

MOST_REQUESTS = 1_500_000
"""How much of a log is replayed where sizes are bytes. Of the recorded ones, one is longer."""
UPKEEP_REQUESTS = 64

Row = tuple[str, Sequence[float | None]]
"""What was measured, and a figure for each column."""


@dataclass
class Table:
    """Rows of figures under a title, as Markdown."""

    title: str
    columns: Sequence[str]
    rows: list[Row] = field(default_factory=list)

    def print(self) -> None:
        print(f"\n{self.title}\n")
        print(f"| {' | '.join(('', *self.columns))} |")
        print(f"|---|{'---:|' * len(self.columns)}")
        for name, figures in self.rows:
            shown = " | ".join("-" if figure is None else f"{figure:.1f}" for figure in figures)
            print(f"| {name} | {shown} |", flush=True)


def capacity(workload: Workload, share: float) -> int:
    """In objects."""
    return round(len(set(workload.keys)) * share)


def memory(workload: Workload, share: float) -> int:
    """In bytes: what the policy lru accounts for when it holds that many entries of average size."""
    cost = cost_in_bytes("lru")
    sizes = workload.last_sizes().items()
    mean = fmean(cost(key, pack(Entry(bytes(size), 1, 0))) for key, size in sizes)
    return round(mean * capacity(workload, share))


def misses_in_objects(keys: Sequence[str], policy: str, entries: int) -> float:
    """Percent of misses of a store that is bounded in entries."""
    store = Store(entries, policy, now=0, cost=cost_of_one)
    packed = pack(Entry(b"", 1, 0))
    for key in keys:
        if store.get(key, 0) is None:
            store.set(key, packed)
    return 100 * store.stats.misses / len(keys)


def misses_of_exact_lru(keys: Sequence[str], entries: int) -> float:
    held: OrderedDict[str, None] = OrderedDict()
    misses = 0
    for key in keys:
        if key in held:
            held.move_to_end(key)
            continue
        misses += 1
        held[key] = None
        if len(held) > entries:
            held.popitem(last=False)
    return 100 * misses / len(keys)


def misses_in_bytes(workload: Workload, policy: str, max_bytes: int) -> float:
    """Percent of misses among the gets of a store that is bounded in bytes, with upkeep as a node has it."""
    store = Store(max_bytes, policy, now=0)
    now = 0
    for number, (key, size, ttl, write) in enumerate(workload.rows()):
        now += workload.ms_per_request
        if number % UPKEEP_REQUESTS == 0 or store.bytes > max_bytes:
            while store.upkeep(now):
                pass
        if not write and store.get(key, now) is not None:
            continue
        try:
            store.set(key, pack(Entry(bytes(size), number, now, now + ttl if ttl else 0)))
        except (EntryTooLarge, Overloaded):
            store.delete(key)
    return 100 * store.stats.misses / (store.stats.hits + store.stats.misses)


def misses_of_redis(workload: Workload, policy: str, max_bytes: int) -> float:
    has_times = any(workload.ttls)
    step = workload.ms_per_request if has_times else REDIS_POLICIES[policy]
    with redis_server(policy) as redis:
        redis.limit(max_bytes)
        return 100 * redis.miss_ratio(workload, ms_per_request=step)


def in_objects(workloads: Iterable[Workload]) -> Table:
    """Every policy beside exact LRU and the reference, on every log."""
    title = "Percent of misses, capacity in objects (last columns: the reference)"
    table = Table(title, (*POLICIES, "exact LRU", *REFERENCE_COLUMNS))
    nothing = (None,) * len(REFERENCE_COLUMNS)
    for workload in workloads:
        for share in SHARES:
            entries = capacity(workload, share)
            ours = [misses_in_objects(workload.keys, policy, entries) for policy in POLICIES]
            exact = misses_of_exact_lru(workload.keys, entries)
            row = (*ours, exact, *REFERENCE.get((workload.name, share), nothing))
            table.rows.append((_row_name(workload, share, f"{entries:,}"), row))
            _progress(table)
    return table


def beside_redis(title: str, workloads: Iterable[Workload]) -> Table:
    """Every policy beside Redis's, on every log, with the same memory."""
    table = Table(title, (*POLICIES, *REDIS_POLICIES))
    for workload in workloads:
        for share in SHARES:
            max_bytes = memory(workload, share)
            if max_bytes < LEAST_REDIS_BYTES:
                continue
            ours = [misses_in_bytes(workload, policy, max_bytes) for policy in POLICIES]
            theirs = [misses_of_redis(workload, policy, max_bytes) for policy in REDIS_POLICIES]
            table.rows.append((_row_name(workload, share, f"{max_bytes / 1e6:,.2f} MB"), (*ours, *theirs)))
            _progress(table)
    return table


@dataclass(frozen=True)
class Check:
    claim: str
    holds: bool
    found: str

    def __str__(self) -> str:
        return f"{'PASS' if self.holds else 'FAIL'}  {self.claim}: {self.found}"


def checks(objects: Table) -> list[Check]:
    """What the policies are meant to reach, on every log and size."""
    off_exact = _worst(objects, "lru", "exact LRU", abs)
    off_reference = _worst(objects, "s3fifo", "S3-FIFO", abs)
    behind_lru = _worst(objects, "adaptive", "exact LRU", float)
    published = [row for row in objects.rows if _figure(objects, row, "ARC") is not None]
    adaptive, arc = (
        fmean(_figure(objects, row, name) or 0.0 for row in published) for name in ("adaptive", "ARC")
    )
    return [
        Check(
            f"lru is within {LRU_TOLERANCE} points of exact LRU",
            off_exact[0] <= LRU_TOLERANCE,
            _at(off_exact),
        ),
        Check(
            f"s3fifo is within {S3FIFO_TOLERANCE} points of the reference",
            off_reference[0] <= S3FIFO_TOLERANCE,
            _at(off_reference),
        ),
        Check(
            f"adaptive is at most {WORSE_THAN_LRU} point worse than exact LRU",
            behind_lru[0] <= WORSE_THAN_LRU,
            _at(behind_lru),
        ),
        Check(
            f"adaptive is below ARC in the mean of the {len(published)} published rows",
            adaptive < arc,
            f"{adaptive:.2f} and {arc:.2f} %",
        ),
    ]


def against_redis(table: Table) -> list[str]:
    """How `adaptive` and `lru` stand beside Redis in a table of beside_redis."""
    lines = []
    for ours, theirs in (("lru", "allkeys-lru"), ("adaptive", "allkeys-lru"), ("adaptive", "allkeys-lfu")):
        pairs = [(_figure(table, row, ours), _figure(table, row, theirs)) for row in table.rows]
        points = [a - b for a, b in pairs if a is not None and b is not None]
        ratios = [a / b for a, b in pairs if a is not None and b]
        lines.append(
            f"{ours} against {theirs}: {min(points):+.1f} to {max(points):+.1f} points, "
            f"mean {fmean(points):+.2f}; misses times {min(ratios):.2f} to {max(ratios):.2f}, "
            f"mean {fmean(ratios):.2f}"
        )
    return lines


def _figure(table: Table, row: Row, column: str) -> float | None:
    return row[1][list(table.columns).index(column)]


def _worst(table: Table, ours: str, other: str, size: Callable[[float], float]) -> tuple[float, str]:
    """The largest difference between two columns, and where it is."""
    found = []
    for row in table.rows:
        a, b = _figure(table, row, ours), _figure(table, row, other)
        if a is not None and b is not None:
            found.append((size(a - b), row[0]))
    return max(found)


def _at(worst: tuple[float, str]) -> str:
    return f"{worst[0]:+.2f} at {worst[1]}"


def _row_name(workload: Workload, share: float, size: str) -> str:
    return f"{workload.name}, {share:.0%}: {size}"


def _progress(table: Table) -> None:
    print(f"{time.strftime('%X')} {table.rows[-1][0]}", file=sys.stderr, flush=True)


def main() -> None:
    parser = ArgumentParser(description="Miss ratios beside exact LRU, published figures and Redis.")
    parser.add_argument("--limit", type=int, help="read so many requests of each recorded log")
    limit = parser.parse_args().limit
    if not traces_directory().is_dir():
        parser.error(f"there are no recorded logs in {traces_directory()}; set TRACES_DIR")
    recorded = [load(name, limit) for name in TRACES]
    objects = in_objects(recorded)
    objects.print()
    memory_title = "Percent of misses with the same memory, values of 100 bytes (adaptsize: its own)"
    preset_title = (
        "Percent of misses of the gets with the same memory, logs made after clusters of Twitter, with TTLs"
    )
    try:
        traces = beside_redis(memory_title, (workload.first(MOST_REQUESTS) for workload in recorded))
        traces.print()
        presets = beside_redis(preset_title, map(make, PRESETS))
        presets.print()
    except BenchmarkImpossible as error:
        parser.exit(1, f"no comparison with Redis: {error}\n")
    print()
    for check in checks(objects):
        print(check)
    for name, table in (("recorded", traces), ("made", presets)):
        for line in against_redis(table):
            print(f"{name}: {line}")


if __name__ == "__main__":
    main()
