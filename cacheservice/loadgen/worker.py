"""One process that generates load, told what to do through a pipe, and telling what it saw through another.

It sends Filling now and then while it writes the entries, then Ready; once it is told to go, an Interval for
each second, the last one of them marked. It ends when it is told to stop, or when a pipe is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from cacheservice.client import Client
from cacheservice.errors import CacheServiceError
from cacheservice.loadgen.clock import SystemClock
from cacheservice.loadgen.interval import Interval
from cacheservice.loadgen.loops import ClosedLoop, Loop, OpenLoop
from cacheservice.loadgen.operations import entries, operations
from cacheservice.loadgen.performer import Performer
from cacheservice.loadgen.plan import MAX_VALUE_BYTES, Share

GO, STOP = "go", "stop"
INTERVAL_SECONDS = 1.0

_FILL_KEYS = 1_000
_FILL_BYTES = 512 * 1024
_FILLS_AT_A_TIME = 4
_FILL_TRIES = 3


@dataclass(frozen=True, slots=True)
class Filling:
    """So many more entries are written."""

    entries: int


@dataclass(frozen=True, slots=True)
class Ready:
    """All entries are written, but for those that could not be."""

    not_filled: int
    message: str
    """Why the first of them could not."""


def work(share: Share, orders: Connection, results: Connection) -> None:
    """All of the process. The pipes are one-way: the event loop makes the one it reads non-blocking, and the
    other must not be, so that results wait for a reader that is busy.
    """
    # Whom it would tell may be gone.
    with suppress(BrokenPipeError), ThreadPoolExecutor(1, "results") as sender:
        uvloop.run(_Worker(share, orders, results, sender).run())


class _Worker:
    def __init__(
        self, share: Share, orders: Connection, results: Connection, sender: ThreadPoolExecutor
    ) -> None:
        self._share = share
        self._plan = share.plan
        self._orders = orders
        self._results = results
        self._sender = sender
        self._go = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._orders.fileno(), self._take_order)
        clock = SystemClock()
        try:
            async with Client(
                self._plan.targets,
                routing=self._plan.routing,
                timeout=self._plan.timeout,
                tls=self._plan.tls,
            ) as client:
                performer = Performer(
                    client, clock, _most_bytes(self._share), get_or_load=self._plan.get_or_load
                )
                await self._send(await self._fill(performer) if self._plan.fill else Ready(0, ""))
                await self._go.wait()
                await self._load(performer, clock)
        finally:
            loop.remove_reader(self._orders.fileno())
            clock.close()

    def _take_order(self) -> None:
        try:
            order = self._orders.recv()
        except EOFError:
            order = STOP
            asyncio.get_running_loop().remove_reader(self._orders.fileno())
        if order == STOP:
            self._stopped.set()
        self._go.set()

    async def _send(self, message: Any) -> None:
        # In a thread, since whoever reads it may be busy; always the same one, since a pipe takes one message
        # at a time.
        await asyncio.get_running_loop().run_in_executor(self._sender, self._results.send, message)

    async def _fill(self, performer: Performer) -> Ready:
        not_filled, message = 0, ""
        parts = _parts(entries(self._share))

        async def write() -> None:
            nonlocal not_filled, message
            for part in parts:
                if self._stopped.is_set():
                    return
                problem = await self._write(performer, part)
                if problem:
                    not_filled += len(part)
                    message = message or problem
                await self._send(Filling(len(part)))

        await asyncio.gather(*(write() for _ in range(_FILLS_AT_A_TIME)))
        return Ready(not_filled, message)

    async def _write(self, performer: Performer, part: dict[str, int]) -> str:
        """What is wrong when it did not work the last time either."""
        problem = ""
        for _ in range(_FILL_TRIES):
            try:
                await performer.fill(part, self._plan.ttl)
            except CacheServiceError as error:
                problem = f"{error.reason}: {error.message}"
            else:
                return ""
        return problem

    async def _load(self, performer: Performer, clock: SystemClock) -> None:
        loop = self._loop(performer, clock)
        running = asyncio.create_task(loop.run())
        await self._sleep(self._plan.warm_up)
        meter = _Meter(performer, clock)
        ends = clock.now() + self._plan.seconds
        while not self._stopped.is_set():
            left = ends - clock.now()
            await self._sleep(min(left, INTERVAL_SECONDS))
            if left <= INTERVAL_SECONDS:
                break
            await self._send(meter.take())
        loop.stop()
        not_started = loop.not_started()
        await running
        last = meter.take()
        last.is_last = True
        last.not_started = not_started
        await self._send(last)

    def _loop(self, performer: Performer, clock: SystemClock) -> Loop:
        share, perform = self._share, performer.perform
        if self._plan.rate is None:
            return ClosedLoop(share.callers, operations(share), perform, clock)
        return OpenLoop(
            share.callers,
            share.interval,
            clock.now() + share.offset,
            operations(share),
            perform,
            clock,
            lambda seconds: performer.interval.began_late(seconds),
        )

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until it is told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stopped.wait()


class _Meter:
    """Takes what was seen since it did so before."""

    def __init__(self, performer: Performer, clock: SystemClock) -> None:
        self._performer = performer
        self._clock = clock
        self._begin()

    def take(self) -> Interval:
        done = self._performer.interval
        done.seconds = self._clock.now() - self._started
        done.processor_seconds = time.process_time() - self._processor_seconds
        self._begin()
        return done

    def _begin(self) -> None:
        self._performer.interval = Interval()
        self._started = self._clock.now()
        self._processor_seconds = time.process_time()


def _most_bytes(share: Share) -> int:
    trace = share.plan.trace
    told = max(trace.sizes, default=0) if trace is not None else 0
    return min(MAX_VALUE_BYTES, max(told, share.plan.sizes[1]))


def _parts(rows: Iterator[tuple[str, int]]) -> Iterator[dict[str, int]]:
    """Keys and sizes, bounded in number and, but for the last one, in bytes."""
    part: dict[str, int] = {}
    size = 0
    for key, bytes_of_value in rows:
        part[key] = bytes_of_value
        size += bytes_of_value
        if len(part) == _FILL_KEYS or size >= _FILL_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part
