"""What is noted of operations."""

from __future__ import annotations

import asyncio

from cacheservice.client import Client
from cacheservice.loadgen.clock import SystemClock
from cacheservice.loadgen.interval import Interval
from cacheservice.loadgen.performer import Performer


async def test_a_failure_and_its_latency_are_in_the_same_interval() -> None:
    clock = SystemClock()
    async with Client("127.0.0.1:1") as client:
        performer = Performer(client, clock, 0)
        intervals = [performer.interval]
        # An empty key, which the client refuses.
        operation = asyncio.create_task(performer.perform(("get", [""], 0, 0.0), clock.now()))
        while not operation.done():
            await asyncio.sleep(0)
            performer.interval = Interval()
            intervals.append(performer.interval)
    clock.close()
    noted = [(each.failed["get"], sum(each.latencies["get"].values())) for each in intervals]
    assert sorted(noted)[-1] == (1, 1)
    assert sum(failed for failed, _ in noted) == sum(latencies for _, latencies in noted) == 1
