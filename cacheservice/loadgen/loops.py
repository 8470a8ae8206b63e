"""When operations are begun: one after the other, or when they are due.

In a closed loop each caller waits for its answer. So a server that stops for a second makes every caller
late once, and what would have been asked for meanwhile is neither asked nor measured: coordinated omission
(Gil Tene, How NOT to Measure Latency, 2013). In an open loop operations are due whatever the server does, and
their latency counts from then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from cacheservice.loadgen.clock import Clock
from cacheservice.loadgen.operations import Operation

Perform = Callable[[Operation, float], Awaitable[None]]
"""Does the operation, whose latency counts from the given moment."""

_LEAST_SLEEP = 0.001
_LONGEST_SLEEP = 0.1


class Loop(Protocol):
    async def run(self) -> None:
        """Until `stop`, and until all that was begun then is answered."""
        ...

    def stop(self) -> None: ...

    def not_started(self) -> int:
        """Operations that are due and not begun."""
        ...


class ClosedLoop:
    """Callers that each do one operation after the other."""

    def __init__(self, callers: int, operations: Iterator[Operation], perform: Perform, clock: Clock) -> None:
        self._callers = callers
        self._operations = operations
        self._perform = perform
        self._now = clock.now
        self._is_stopped = False

    async def run(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(self._callers)))

    def stop(self) -> None:
        self._is_stopped = True

    def not_started(self) -> int:
        return 0

    async def _call(self) -> None:
        for operation in self._operations:
            if self._is_stopped:
                return
            await self._perform(operation, self._now())


class OpenLoop:
    """An operation every `interval` seconds, the first one at the moment `first`.

    As many as there are callers are in flight at most. What is due beyond that waits, and its latency
    counts from when it was due all the same.
    """

    def __init__(
        self,
        callers: int,
        interval: float,
        first: float,
        operations: Iterator[Operation],
        perform: Perform,
        clock: Clock,
        began_late: Callable[[float], None],
    ) -> None:
        self._callers = callers
        self._interval = interval
        self._first = first
        self._operations = operations
        self._perform = perform
        self._clock = clock
        self._began_late = began_late
        self._begun = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._stopped_at: float | None = None

    async def run(self) -> None:
        callers = [asyncio.create_task(self._call()) for _ in range(self._callers)]
        await self._wake_callers()
        await asyncio.gather(*callers)

    def stop(self) -> None:
        if self._stopped_at is None:
            self._stopped_at = self._clock.now()

    def not_started(self) -> int:
        until = self._clock.now() if self._stopped_at is None else self._stopped_at
        return max(0, int((until - self._first) / self._interval) + 1 - self._begun)

    @property
    def _next_due(self) -> float:
        return self._first + self._begun * self._interval

    async def _wake_callers(self) -> None:
        """As many as operations are due. Those who have just finished one look for themselves."""
        while self._stopped_at is None:
            for _ in range(min(self.not_started(), len(self._idle))):
                self._idle.popleft().set_result(None)
            # Let them begin, so that what is due next is known.
            await asyncio.sleep(0)
            wait = self._next_due - self._clock.now()
            await self._clock.sleep(min(max(wait, _LEAST_SLEEP), _LONGEST_SLEEP))
        for caller in self._idle:
            caller.set_result(None)

    async def _call(self) -> None:
        new_future = asyncio.get_running_loop().create_future
        for operation in self._operations:
            while self._stopped_at is None and self._next_due > self._clock.now():
                turn = new_future()
                self._idle.append(turn)
                await turn
            if self._stopped_at is not None:
                return
            due = self._next_due
            self._begun += 1
            self._began_late(self._clock.now() - due)
            await self._perform(operation, due)
