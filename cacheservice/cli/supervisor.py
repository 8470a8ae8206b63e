"""Keeps processes running: starts each anew when it ends, and stops all of them together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cacheservice.client.channel import Backoff

_log = logging.getLogger(__name__)

HOPELESS = os.EX_CONFIG
"""The exit code of a process that would end again in the same way."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_SETTLED_SECONDS = 10.0
"""What has run for so long ends for a new reason."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process to be run. It is given `orders` on stdin, which is closed when the parent ends, however that
    comes about: it is to end then, too. By a line on stdout, and no more, it says that it has started well.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    orders: bytes = b""


class Supervisor:
    """Runs the programs until `stop` is called or it is of no use.

    Who ends is started anew after a pause, which grows to ten seconds while it ends again and again. All are
    stopped when one ends as HOPELESS, or fails before it has ever started well: what is wrong then is the
    address, the settings or the installation.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        stop_seconds: float,
        *,
        first_pause_seconds: float = _FIRST_PAUSE_SECONDS,
        settled_seconds: float = _SETTLED_SECONDS,
    ) -> None:
        """Who has not ended `stop_seconds` after SIGTERM is killed."""
        self._programs = programs
        self._stop_seconds = stop_seconds
        self._first_pause_seconds = first_pause_seconds
        self._settled_seconds = settled_seconds
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> int:
        """Returns when all have ended: 0 when they were told to and did so in order, else 1."""
        endings = await asyncio.gather(*map(self._keep, self._programs))
        return 0 if all(endings) else 1

    async def _keep(self, program: Program) -> bool:
        """Whether the program ran until it was told to stop, and did so in order."""
        backoff = Backoff(self._first_pause_seconds, _LONGEST_PAUSE_SECONDS)
        has_started = False
        while True:
            began_at = asyncio.get_running_loop().time()
            code, has_said_so = await self._run(program)
            has_started |= has_said_so
            if self._stopped.is_set():
                return code in (0, -signal.SIGTERM)
            if asyncio.get_running_loop().time() - began_at >= self._settled_seconds:
                backoff.reset()
            if code == HOPELESS or (code > 0 and not has_started):
                _log.error("%s ended %s; stopping", program.name, _ending(code))
                self.stop()
                return False
            pause = backoff.next()
            _log.warning("%s ended %s; it is started anew in %.1f s", program.name, _ending(code), pause)
            if await self._is_told_to_stop_within(pause):
                return True

    async def _run(self, program: Program) -> tuple[int, bool]:
        """The exit code, negative for a signal, and whether it had started well."""
        try:
            process = await asyncio.create_subprocess_exec(
                *program.command,
                stdin=PIPE,
                stdout=PIPE,
                env=program.environment,
                # Ctrl-C is for the parent, which passes it on.
                process_group=0,
            )
        except OSError as error:
            _log.error("%s cannot be started: %s", program.name, error)
            return 1, False
        _log.info("started %s, pid %d", program.name, process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(program.orders)
        ended = asyncio.create_task(process.wait())
        told = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(process, program.name, ended)
            return await ended, bool(await process.stdout.read())
        finally:
            told.cancel()

    async def _end(self, process: Process, name: str, ended: Awaitable[int]) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._stop_seconds):
                await asyncio.shield(ended)
        except TimeoutError:
            _log.error("%s has not ended within %g s, and is killed", name, self._stop_seconds)
            with suppress(ProcessLookupError):
                process.kill()

    async def _is_told_to_stop_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopped.wait()
        except TimeoutError:
            # It may have been told to in the very moment that the time was over.
            return self._stopped.is_set()


def _ending(code: int) -> str:
    return f"with code {code}" if code >= 0 else f"by signal {-code} ({signal.strsignal(-code)})"
