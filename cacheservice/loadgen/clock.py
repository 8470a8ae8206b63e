"""Time, as the generator measures it and waits for it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, from whenever."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """Sleeps in a thread: an event loop's timers are a millisecond early or late, which is longer than many
    an operation takes; this is 0.1 to 0.3 ms late.
    """

    def __init__(self) -> None:
        self.now = time.perf_counter
        self._thread = ThreadPoolExecutor(1, "clock")

    async def sleep(self, seconds: float) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, time.sleep, seconds)

    def close(self) -> None:
        self._thread.shutdown(wait=False)
