"""Runs one way to read a key that expires: origin, nodes and readers as processes of their own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.failover_nodes import Nodes
from benchmarks.impossible import BenchmarkImpossible
from benchmarks.stampede_readers import Options, Seen

NODES = 3
WINDOW_SECONDS = 0.1
_LEAD_SECONDS = 0.5
"""From when all are told to begin until they do."""


@dataclass(frozen=True)
class Variant:
    """A way to read a key that expires."""

    name: str
    is_naive: bool = False
    stale: float = 0.0
    """Seconds for which an expired value is served while it is loaded anew."""
    early_refresh: float = 0.0
    expires: bool = True


VARIANTS = (
    Variant("no expiry", expires=False),
    Variant("naive", is_naive=True),
    Variant("leases"),
    Variant("leases + stale", stale=30.0),
    Variant("leases + early refresh", early_refresh=1.0),
)


@dataclass(frozen=True)
class Load:
    """What the readers of all processes do together."""

    rate: float = 28_000.0
    """Reads a second."""
    processes: int = 2
    seconds: float = 12.0
    ttl: float = 2.0


@dataclass
class Result:
    """What the origin and the readers saw; times in seconds since the readers began."""

    seconds: float
    """From the first read's due time to the last one's."""
    queries: list[float]
    """When they came to the origin."""
    latencies_ms: list[list[float]]
    """Of the reads that were due in each window of WINDOW_SECONDS."""
    ended: float
    """When the last read had ended."""
    failed: Counter[str] = field(default_factory=Counter)
    """By the exception's name."""

    def by_expiry(self, ttl: float) -> list[int]:
        """The queries of each expiry: those that come within half a time to live of each other."""
        counts: list[int] = []
        last = -ttl
        for moment in self.queries:
            if moment - last < ttl / 2:
                counts[-1] += 1
            else:
                counts.append(1)
            last = moment
        return counts

    def by_window(self) -> list[int]:
        """The queries of each window, up to the last one that reads were due in."""
        windows = Counter(int(moment / WINDOW_SECONDS) for moment in self.queries)
        return [windows[window] for window in range(len(self.latencies_ms))]

    @property
    def reads(self) -> int:
        return sum(map(len, self.latencies_ms))

    @property
    def rate(self) -> float:
        """Reads that were answered in a second."""
        return (self.reads - self.failed.total()) / self.ended

    def latency_ms(self, part: float) -> float:
        """The latency within which that part of all reads ended, failed ones included."""
        return quantile([latency for window in self.latencies_ms for latency in window], part)


def quantile(latencies: Sequence[float], part: float) -> float:
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


async def run(variant: Variant, load: Load, folder: Path) -> Result:
    """What is seen with a cluster and an origin that are made for it, in an empty folder."""
    socket = str(folder / "origin")
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Program("benchmarks.stampede_origin", socket))
        nodes = await stack.enter_async_context(
            Nodes(folder / "nodes", "--early-refresh", str(variant.early_refresh))
        )
        await nodes.form(NODES)
        options = Options(
            addresses=nodes.addresses,
            socket=socket,
            is_naive=variant.is_naive,
            stale=variant.stale,
            ttl=load.ttl if variant.expires else load.seconds * 10,
            rate=load.rate / load.processes,
            seconds=load.seconds,
        )
        programs = [
            await stack.enter_async_context(
                Program("benchmarks.stampede_readers", json.dumps(asdict(options)))
            )
            for _ in range(load.processes)
        ]
        for program in (origin, *programs):
            await program.ready()
        begin = time.monotonic() + _LEAD_SECONDS
        printed = await asyncio.gather(*(program.finish(f"{begin}\n") for program in programs))
        queries = sorted(moment - begin for moment in await origin.finish())
    return result_of(options, queries, [Seen(**seen) for seen in printed], begin)


def result_of(options: Options, queries: list[float], seen: Sequence[Seen], begin: float) -> Result:
    windows: list[list[float]] = [[] for _ in range(-int(-options.seconds // WINDOW_SECONDS))]
    failed: Counter[str] = Counter()
    for one in seen:
        failed.update(one.failed)
        for number, latency in enumerate(one.latencies_us):
            window = int(number / options.rate / WINDOW_SECONDS)
            windows[min(window, len(windows) - 1)].append(latency / 1_000)
    ended = max(one.ended for one in seen) - begin
    return Result(options.seconds, queries, windows, ended, failed)


class Program:
    """A module that runs in a process of its own, which ends with the block.

    It prints a line when it is ready, and its result as JSON once it was given its input.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = (sys.executable, "-m", module, *arguments)

    async def __aenter__(self) -> Program:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def ready(self) -> None:
        assert self._process.stdout is not None
        if not await self._process.stdout.readline():
            raise BenchmarkImpossible(f"{self._command[2]} ended before it was ready")

    async def finish(self, given: str = "") -> Any:
        """Gives the program its input, and returns its result."""
        printed, _ = await self._process.communicate(given.encode())
        if self._process.returncode:
            raise BenchmarkImpossible(f"{self._command[2]} ended with code {self._process.returncode}")
        return json.loads(printed)
