"""The processes that generate a load, seen from the one that has started them."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType

from cacheservice.loadgen.interval import Interval
from cacheservice.loadgen.machine import processors
from cacheservice.loadgen.plan import Plan, Share
from cacheservice.loadgen.report import Report
from cacheservice.loadgen.worker import GO, STOP, Filling, Ready, work

_POLL_SECONDS = 0.1
_END_SECONDS = 5.0


class ProcessEnded(Exception):
    """A process of the generator ended early."""


@dataclass(slots=True)
class Progress:
    """What a load has come to."""

    filled: int = 0
    not_filled: int = 0
    message: str = ""
    """Why the first entry could not be written."""
    is_loading: bool = False
    was_stopped: bool = False
    machine_share: float | None = None
    """The part of this machine's processors that was busy while the load went on, where that is known."""


def generate(plan: Plan, show: Callable[[Progress, Report], None]) -> tuple[Progress, Report]:
    """Puts the load on the cluster, showing from time to time how far it is.

    Ctrl-C ends it early; after the second one it is a KeyboardInterrupt. ProcessEnded when one ends early.
    """
    progress, report = Progress(), Report(plan.processes)
    with _on_interrupt() as interrupted, _started(plan) as pipes:
        running = {pipe.results: index for index, pipe in enumerate(pipes)}
        getting_ready = set(running)
        machine = None
        while running:
            if interrupted() and not progress.was_stopped:
                progress.was_stopped = True
                _tell(pipes, STOP)
            readable = wait(list(running), _POLL_SECONDS)
            for connection in [each for each in running if each in readable]:
                message = _receive(connection)
                if isinstance(message, Filling):
                    progress.filled += message.entries
                elif isinstance(message, Ready):
                    progress.not_filled += message.not_filled
                    progress.message = progress.message or message.message
                    getting_ready.discard(connection)
                else:
                    report.add(running[connection], message)
                    if message.is_last:
                        del running[connection]
            if not getting_ready and not progress.is_loading:
                progress.is_loading = True
                machine = _Machine()
                _tell(pipes, GO)
            show(progress, report)
        progress.machine_share = machine.share() if machine else None
    return progress, report


@dataclass(frozen=True, slots=True)
class _Pipes:
    """To and from a process."""

    orders: Connection
    results: Connection

    def close(self) -> None:
        self.orders.close()
        self.results.close()


class _Machine:
    """How busy this machine is from now on."""

    def __init__(self) -> None:
        self._before = processors()

    def share(self) -> float | None:
        now = processors()
        if self._before is None or now is None or now.total <= self._before.total:
            return None
        return (now.busy - self._before.busy) / (now.total - self._before.total)


@contextmanager
def _on_interrupt() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed."""
    count = 0

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _started(plan: Plan) -> Iterator[list[_Pipes]]:
    """The pipes to the processes, which end with this at the latest."""
    context = multiprocessing.get_context("spawn")
    pipes: list[_Pipes] = []
    processes = []
    try:
        # What they inherit: Ctrl-C reaches the whole terminal, and they are to end when they are told to.
        noting = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for index in range(plan.processes):
                their_orders, orders = context.Pipe(duplex=False)
                results, their_results = context.Pipe(duplex=False)
                pipes.append(_Pipes(orders, results))
                with their_orders, their_results:
                    process = context.Process(
                        target=work, args=(Share(plan, index), their_orders, their_results), daemon=True
                    )
                    process.start()
                processes.append(process)
        finally:
            signal.signal(signal.SIGINT, noting)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        deadline = time.monotonic() + _END_SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _tell(pipes: list[_Pipes], order: str) -> None:
    for pipe in pipes:
        with suppress(OSError):
            pipe.orders.send(order)


def _receive(connection: Connection) -> Filling | Ready | Interval:
    try:
        message: Filling | Ready | Interval = connection.recv()
    except (EOFError, OSError):
        raise ProcessEnded("a process of the load generator ended early") from None
    return message
