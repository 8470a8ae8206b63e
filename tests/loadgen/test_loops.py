"""When operations are begun, and from when their latency counts, in virtual time."""

from __future__ import annotations

import asyncio
from itertools import repeat

import pytest

from cacheservice.loadgen.histogram import Histogram
from cacheservice.loadgen.interval import Interval
from cacheservice.loadgen.loops import ClosedLoop, Loop, OpenLoop
from cacheservice.loadgen.operations import Operation
from tests.simulation.virtual_time import run

OPERATION: Operation = ("get", ["k"], 0, 0.0)
ANSWER_SECONDS = 0.0005


class VirtualClock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Server:
    """Answers after half a millisecond, but for a while in which it answers nobody."""

    def __init__(self, clock: VirtualClock, pause: tuple[float, float] = (0.0, 0.0)) -> None:
        self.interval = Interval()
        self.in_flight = 0
        self.most_in_flight = 0
        self.begun: list[float] = []
        self._clock = clock
        self._pause = pause

    async def perform(self, operation: Operation, since: float) -> None:
        now = self._clock.now()
        self.begun.append(now)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        begins, ends = self._pause
        await asyncio.sleep((ends - now if begins <= now < ends else 0) + ANSWER_SECONDS)
        self.in_flight -= 1
        self.interval.took(operation[0], self._clock.now() - since)

    @property
    def latencies(self) -> Histogram:
        histogram = Histogram()
        histogram.add(self.interval.latencies["get"])
        return histogram


async def go(loop: Loop, seconds: float) -> int:
    """Lets it run so long; how many operations it had not begun by then."""
    running = asyncio.create_task(loop.run())
    await asyncio.sleep(seconds)
    loop.stop()
    late = loop.not_started()
    await running
    return late


def open_loop(server: Server, clock: VirtualClock, callers: int, interval: float) -> OpenLoop:
    return OpenLoop(
        callers, interval, clock.now(), repeat(OPERATION), server.perform, clock, server.interval.began_late
    )


def test_a_pause_of_the_server_is_seen_in_the_open_loop_alone() -> None:
    """10 s of 1,000 operations a second, in which the server stands still for a second: so a tenth of them
    waits, evenly spread from a second down to nothing."""

    async def closed() -> Histogram:
        clock = VirtualClock()
        server = Server(clock, (4.0, 5.0))
        await go(ClosedLoop(10, repeat(OPERATION), server.perform, clock), 10)
        return server.latencies

    async def opened(callers: int) -> Histogram:
        clock = VirtualClock()
        server = Server(clock, (4.0, 5.0))
        assert await go(open_loop(server, clock, callers, 0.001), 10) <= 1
        assert server.most_in_flight <= callers
        return server.latencies

    unnoticed = run(closed()).at([99, 99.9])
    assert unnoticed[99.0] < 1
    assert unnoticed[99.9] < 1
    # Whether all that is due is in flight, or waits for the few callers there are.
    for callers in (2_000, 100):
        histogram = run(opened(callers))
        noticed = histogram.at([50, 91, 95, 99])
        assert noticed[50.0] < 3
        assert noticed[91.0] == pytest.approx(100, abs=20)
        assert noticed[95.0] == pytest.approx(500, abs=20)
        assert noticed[99.0] == pytest.approx(900, abs=20)
        assert histogram.max == pytest.approx(1_000, abs=20)


def test_an_open_loop_begins_each_operation_when_it_is_due() -> None:
    async def story() -> None:
        clock = VirtualClock()
        server = Server(clock)
        assert await go(open_loop(server, clock, 10, 0.25), 2.1) == 0
        assert server.begun == pytest.approx([0.25 * step for step in range(9)], abs=0.001)
        assert max(server.interval.start_delays) <= 1_000

    run(story())


def test_an_open_loop_that_cannot_keep_up_has_no_more_in_flight_and_tells_what_is_left() -> None:
    async def story() -> None:
        clock = VirtualClock()
        server = Server(clock)
        # Two callers do 4,000 operations a second of the 10,000 that are due.
        left = await go(open_loop(server, clock, 2, 0.0001), 1)
        assert server.most_in_flight == 2
        assert len(server.begun) == pytest.approx(4_000, rel=0.01)
        assert left + len(server.begun) == pytest.approx(10_000, abs=3)
        assert server.latencies.max == pytest.approx(600, rel=0.02)
        assert max(server.interval.start_delays) == pytest.approx(600_000, rel=0.02)

    run(story())


def test_a_loop_ends_when_what_it_has_begun_is_answered() -> None:
    async def story() -> None:
        clock = VirtualClock()
        for make in (
            lambda server: ClosedLoop(5, repeat(OPERATION), server.perform, clock),
            lambda server: open_loop(server, clock, 5, 0.01),
        ):
            server = Server(clock, (0.0, clock.now() + 3))
            began = clock.now()
            await go(make(server), 1)
            assert (server.in_flight, len(server.begun)) == (0, 5)
            assert clock.now() - began == pytest.approx(3, abs=0.2)

    run(story())


def test_a_closed_loop_has_as_many_in_flight_as_callers() -> None:
    async def story() -> None:
        clock = VirtualClock()
        server = Server(clock)
        assert await go(ClosedLoop(7, repeat(OPERATION), server.perform, clock), 1) == 0
        assert server.most_in_flight == 7
        assert len(server.begun) == pytest.approx(7 / ANSWER_SECONDS, rel=0.01)

    run(story())
