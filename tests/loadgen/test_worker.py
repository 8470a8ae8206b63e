"""A process that generates load, seen from the other ends of its pipes."""

from __future__ import annotations

import array
import fcntl
import multiprocessing
import termios
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from cacheservice.loadgen.interval import Interval
from cacheservice.loadgen.plan import Plan, Share
from cacheservice.loadgen.worker import GO, STOP, Filling, Ready, work
from tests.integration.processes import NodeProcess, wait_until

SECONDS = 30.0
KEYS, WRITERS = 1_000, 4
"""Of a part that is filled at once, and parts at a time."""
MESSAGE_BYTES = 4 + len(ForkingPickler.dumps(Filling(KEYS)))
"""With its length before it."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path, "n1")
    made.wait_ready()
    yield made
    assert made.stop() == 0


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes have no size here")
def test_what_is_not_read_for_a_while_is_not_lost(node: NodeProcess) -> None:
    """Here the results of filling, in a pipe that has no room for all of them."""
    context = multiprocessing.get_context("spawn")
    their_orders, orders = context.Pipe(duplex=False)
    results, their_results = context.Pipe(duplex=False)
    room = fcntl.fcntl(results.fileno(), fcntl.F_SETPIPE_SZ, 4_096)
    told = room // MESSAGE_BYTES
    keys = (told + 10 * WRITERS) * KEYS
    plan = Plan((node.address,), callers=2, keys=keys, sizes=(0, 0), seconds=60, timeout=SECONDS)
    process = context.Process(target=work, args=(Share(plan, 0), their_orders, their_results), daemon=True)
    process.start()
    their_orders.close()

    def receive() -> Any:
        assert results.poll(SECONDS)
        return results.recv()

    try:
        wait_until(lambda: unread(results.fileno()) == told * MESSAGE_BYTES, "the pipe is full")
        # Each of its writers has one more to tell.
        wait_until(lambda: node.stats().entries == (told + WRITERS) * KEYS, "all of it waits")
        their_results.close()
        filled = 0
        while isinstance(message := receive(), Filling):
            filled += message.entries
        assert (filled, message) == (keys, Ready(0, ""))
        orders.send(GO)
        assert isinstance(receive(), Interval)
        orders.send(STOP)
        while not (interval := receive()).is_last:
            pass
        assert interval.failed.total() == 0
        process.join(SECONDS)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        for pipe in (orders, results, their_results):
            pipe.close()


def unread(descriptor: int) -> int:
    """Bytes in a pipe."""
    found = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, found)
    return found[0]
