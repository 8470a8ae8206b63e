"""Where values come from in tests of several processes: who connects by TCP is sent the value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.processes import DEADLINE_SECONDS


class Origin:
    """Counts the loads, and answers each, with its number, once it may."""

    def __init__(self) -> None:
        self.loads = 0
        self.may_answer = asyncio.Event()
        self.answer: str | None = None
        """In place of the number: empty when there is no such value, or an error after a "!"."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """On the port that is given; answers everybody in the end."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            try:
                yield server.sockets[0].getsockname()[1]
            finally:
                self.may_answer.set()

    async def until_loads(self, count: int) -> None:
        """Waits until so many have begun."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.loads < count:
                await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.loads += 1
        value = f"load {self.loads}"
        await self.may_answer.wait()
        writer.write((value if self.answer is None else self.answer).encode())
        writer.close()
        await writer.wait_closed()


async def load_from(port: int) -> bytes | None:
    """What the Origin at the port answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    value = await reader.read()
    writer.close()
    await writer.wait_closed()
    if value.startswith(b"!"):
        raise OSError(value[1:].decode())
    return value or None
