"""Waiting for a value that another caller is loading, on whatever node the waiting caller has called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cacheservice.clock import Clock
from cacheservice.node.leases import Leases
from cacheservice.node.operations import Answer, Get, GetResult

FIRST_LOOK_MS = 5
LAST_LOOK_MS = 250
LONGER_EACH_TIME = 1.5
LONGEST_SLEEP_MS = 1_000
"""A lease that was given here is looked at so often at least: its key may belong to another node by now."""
MARGIN_MS = 50
"""What is left of a caller's time for the answer."""


class FillWaits:
    """Callers that wait for the fill of a key; those on one node share one look at its owner.

    The owner is asked again and again, and not left with the question, so that a wait outlives it, and holds
    up nothing between the nodes. Where this node itself has given the lease, it is told when that ends.
    """

    def __init__(
        self,
        execute: Callable[[Get, int], Awaitable[Answer]],
        leases: Leases,
        clock: Clock,
        most_waiting: int,
    ) -> None:
        self.waiting = 0
        self._execute = execute
        self._leases = leases
        self._clock = clock
        self._most_waiting = most_waiting
        self._looks: dict[str, asyncio.Future[Answer | None]] = {}

    async def wait(self, key: str, wait_ms: int, timeout_ms: int) -> Answer | None:
        """What a read of the key that asks for the lease finds, once it need not wait any longer.

        None when it would have to after `wait_ms`, or shortly before `timeout_ms` are over; at once when too
        many wait already.
        """
        if self.waiting >= self._most_waiting:
            return None
        until = self._clock.now_ms() + min(wait_ms, timeout_ms - MARGIN_MS)
        self.waiting += 1
        try:
            while (left_ms := until - self._clock.now_ms()) > 0:
                look = self._looks.get(key)
                if look is None:
                    return await self._look(key, until)
                try:
                    async with asyncio.timeout(left_ms / 1_000):
                        answer = await asyncio.shield(look)
                except TimeoutError:
                    return None
                if answer is not None:
                    return answer
            return None
        finally:
            self.waiting -= 1

    async def _look(self, key: str, until: int) -> Answer | None:
        look = self._looks[key] = asyncio.get_running_loop().create_future()
        for_all = None
        try:
            answer = await self._until_loaded(key, until)
            if not (isinstance(answer, GetResult) and answer.lease):
                for_all = answer
            return answer
        finally:
            del self._looks[key]
            look.set_result(for_all)

    async def _until_loaded(self, key: str, until: int) -> Answer | None:
        pause_ms: float = FIRST_LOOK_MS
        while (left_ms := until - self._clock.now_ms()) > 0:
            if not await self._leases.ended(key, min(left_ms, LONGEST_SLEEP_MS)):
                await asyncio.sleep(min(pause_ms, left_ms) / 1_000)
                pause_ms = min(pause_ms * LONGER_EACH_TIME, LAST_LOOK_MS)
            answer = await self._execute(Get(key, lease=True), max(1, left_ms) + MARGIN_MS)
            if not (isinstance(answer, GetResult) and answer.is_awaited):
                return answer
        return None
