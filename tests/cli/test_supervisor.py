"""The supervisor, with tiny processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from cacheservice.cli.supervisor import HOPELESS, Program, Supervisor

SECONDS = 20.0
FIRST_PAUSE = 0.001

OBEDIENT = "import sys; sys.stdin.read()"
"""Ends by SIGTERM, or with its parent."""


def program(code: str, name: str = "p") -> Program:
    return Program(name, (sys.executable, "-c", code), dict(os.environ))


class Runs:
    """What a program leaves behind: a line for each of its runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def noting(self, rest: str, says: str = "print(flush=True)") -> str:
        """A program that notes its run, says that it has started well, and does the rest."""
        note = f"open({str(self.path)!r}, 'a').write(f'{{os.getpid()}}\\n')"
        return f"import os, sys\n{says}\n{note}\n{rest}"

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    async def until(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self.pids) < count:
                await asyncio.sleep(0.01)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


Start = Callable[[Supervisor], asyncio.Task[int]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Runs supervisors; they are stopped with the test."""
    running: list[tuple[Supervisor, asyncio.Task[int]]] = []

    def run(supervisor: Supervisor) -> asyncio.Task[int]:
        work: Coroutine[None, None, int] = supervisor.run()
        running.append((supervisor, asyncio.create_task(work)))
        return running[-1][1]

    yield run
    for supervisor, task in running:
        supervisor.stop()
        await task


def supervisor_of(*programs: Program, stop_seconds: float = SECONDS, settled: float = 0) -> Supervisor:
    return Supervisor(programs, stop_seconds, first_pause_seconds=FIRST_PAUSE, settled_seconds=settled)


def pauses_of(log: pytest.LogCaptureFixture) -> Iterator[float]:
    for record in log.records:
        if "started anew" in record.msg and isinstance(record.args, tuple):
            yield record.args[-1]  # type: ignore[misc]


async def ended(task: asyncio.Task[int]) -> int:
    async with asyncio.timeout(SECONDS):
        return await asyncio.shield(task)


async def test_all_are_told_to_stop(start: Start, tmp_path: Path) -> None:
    both = [Runs(tmp_path / name) for name in ("a", "b")]
    supervisor = supervisor_of(*(program(runs.noting(OBEDIENT)) for runs in both))
    task = start(supervisor)
    for runs in both:
        await runs.until(1)
    supervisor.stop()
    assert await ended(task) == 0
    assert [len(runs.pids) for runs in both] == [1, 1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_one_that_ends_is_started_anew_and_the_other_goes_on(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    victim, other = Runs(tmp_path / "victim"), Runs(tmp_path / "other")
    supervisor = supervisor_of(program(victim.noting(OBEDIENT)), program(other.noting(OBEDIENT)))
    task = start(supervisor)
    await other.until(1)
    for count in (1, 2):
        await victim.until(count)
        os.kill(victim.pids[-1], number)
    await victim.until(3)
    supervisor.stop()
    assert await ended(task) == 0
    assert (len(set(victim.pids)), len(other.pids)) == (3, 1)


async def test_one_that_fails_after_a_good_start_is_started_again_and_again(start: Start, runs: Runs) -> None:
    start(supervisor_of(program(runs.noting("sys.exit(1)"))))
    await runs.until(4)


@pytest.mark.parametrize("has_run_for_a_while", [False, True])
async def test_pauses_grow_unless_it_has_run_for_a_while(
    start: Start, runs: Runs, caplog: pytest.LogCaptureFixture, has_run_for_a_while: bool
) -> None:
    killed = program(runs.noting("os.kill(os.getpid(), 9)"))
    start(supervisor_of(killed, settled=0 if has_run_for_a_while else SECONDS))
    await runs.until(6)
    pauses = list(pauses_of(caplog))[:5]
    if has_run_for_a_while:
        assert max(pauses) <= FIRST_PAUSE
    else:
        assert pauses == sorted(pauses)
        assert 8 * FIRST_PAUSE <= pauses[-1] <= 16 * FIRST_PAUSE


async def test_one_that_fails_at_its_first_start_ends_all(start: Start, runs: Runs, tmp_path: Path) -> None:
    other = Runs(tmp_path / "other")
    fails = f"while not os.path.exists({str(other.path)!r}): pass\nsys.exit(3)"
    failing = program(runs.noting(fails, says=""))
    task = start(supervisor_of(failing, program(other.noting(OBEDIENT))))
    assert await ended(task) == 1
    assert (len(runs.pids), len(other.pids)) == (1, 1)
    with pytest.raises(ProcessLookupError):
        os.kill(other.pids[0], 0)


async def test_one_that_is_hopeless_ends_all_at_any_time(start: Start, runs: Runs) -> None:
    again = (
        f"os.kill(os.getpid(), 9) if len(open({str(runs.path)!r}).readlines()) < 3 else sys.exit({HOPELESS})"
    )
    task = start(supervisor_of(program(runs.noting(again)), program(OBEDIENT)))
    assert await ended(task) == 1
    assert len(runs.pids) == 3


async def test_what_cannot_be_started_ends_all(start: Start) -> None:
    missing = Program("p", ("/no/such/program",), {})
    assert await ended(start(supervisor_of(missing, program(OBEDIENT)))) == 1


async def test_one_that_does_not_stop_is_killed(start: Start, runs: Runs) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    supervisor = supervisor_of(program(stubborn + runs.noting(OBEDIENT)), stop_seconds=0.1)
    task = start(supervisor)
    await runs.until(1)
    supervisor.stop()
    assert await ended(task) == 1


async def test_one_that_waits_for_its_next_start_is_not_started(
    start: Start, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(
        [program(runs.noting("os.kill(os.getpid(), 9)"))], SECONDS, first_pause_seconds=2 * SECONDS
    )
    task = start(supervisor)
    async with asyncio.timeout(SECONDS):
        while not list(pauses_of(caplog)):
            await asyncio.sleep(0.01)
    supervisor.stop()
    assert await ended(task) == 0
    assert len(runs.pids) == 1


async def test_it_is_not_started_either_when_the_wait_ends_as_all_are_told_to_stop(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()

    class StopsAsTheWaitEnds(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "started anew" in record.msg:
                # In the next round the wait is over, and before the one after that begins all are stopped.
                loop.call_soon(loop.call_soon, supervisor.stop)

    killed = program("import os; os.kill(os.getpid(), 9)")
    supervisor = Supervisor([killed], SECONDS, first_pause_seconds=0)
    log, handler = logging.getLogger("cacheservice.cli.supervisor"), StopsAsTheWaitEnds()
    caplog.set_level(logging.INFO)
    log.addHandler(handler)
    try:
        assert await ended(start(supervisor)) == 0
    finally:
        log.removeHandler(handler)
    assert len([record for record in caplog.records if record.msg.startswith("started")]) == 1


async def test_orders_come_on_stdin(start: Start, runs: Runs) -> None:
    code = f"import sys; open({str(runs.path)!r}, 'w').write(sys.stdin.readline())\n{OBEDIENT}"
    supervisor = supervisor_of(Program("p", (sys.executable, "-c", code), dict(os.environ), b"17\n"))
    task = start(supervisor)
    await runs.until(1)
    assert runs.pids == [17]
    supervisor.stop()
    assert await ended(task) == 0
