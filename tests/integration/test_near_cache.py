"""Near caches while nodes are killed or stand still: nothing old is served for longer than the bound."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import pytest

from cacheservice.client import Client, NearCache, SyncClient
from cacheservice.client.near_watch import LIVE_SECONDS
from cacheservice.errors import CacheServiceError
from tests.integration.processes import ClusterProcesses

NAMES = ("n1", "n2", "n3")
KEYS = [f"near:{number}" for number in range(60)]
DEADLINE_SECONDS = 30

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterProcesses]:
    made = ClusterProcesses(tmp_path, len(NAMES))
    yield made
    made.stop()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


class Values:
    """What was written to each key, and acknowledged when."""

    def __init__(self, writer: Client, reader: Client) -> None:
        self._writer = writer
        self._reader = reader
        self._acknowledged: dict[str, list[tuple[float, int]]] = {key: [] for key in KEYS}
        self.written = 0
        self.copies = 0

    async def write(self, key: str) -> None:
        """Until it is acknowledged."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                self.written += 1
                try:
                    await self._writer.set(key, b"%d" % self.written)
                except CacheServiceError:
                    continue
                self._acknowledged[key].append((time.monotonic(), self.written))
                return

    async def check(self) -> None:
        """Reads all keys; none may have a value that was overwritten too long before."""
        near: Any = self._reader._near
        self.copies = sum(near.get(key) is not None for key in KEYS)
        asked_at = time.monotonic()
        try:
            found = await self._reader.get_many(KEYS)
        except CacheServiceError:
            return
        for key, value in found.items():
            known = [number for at, number in self._acknowledged[key] if at < asked_at - LIVE_SECONDS]
            assert int(value) >= max(known, default=0), key

    async def go_on(self, seconds: float) -> None:
        """Writes and reads for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.write(KEYS[self.written % len(KEYS)])
            await self.check()

    async def all_are_kept(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.copies < len(KEYS):
                await self.check()


@pytest.mark.parametrize("routing", ["direct", "proxy"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_nothing_old_is_served_when_a_node_fails(
    cluster: ClusterProcesses,
    stack: AsyncExitStack,
    routing: Literal["direct", "proxy"],
    fault: signal.Signals,
) -> None:
    writer = await stack.enter_async_context(Client(cluster.addresses, timeout=5))
    reader = await stack.enter_async_context(
        Client(cluster["n1"].address, timeout=5, routing=routing, near_cache=NearCache())
    )
    values = Values(writer, reader)
    for key in KEYS:
        await values.write(key)
    await values.all_are_kept()
    cluster["n2"].signal(fault)
    await values.go_on(2 * LIVE_SECONDS)
    if fault == signal.SIGSTOP:
        cluster["n2"].signal(signal.SIGCONT)
    else:
        cluster["n2"].process.wait()
    await values.go_on(LIVE_SECONDS)
    await values.all_are_kept()


async def test_nothing_old_is_served_after_the_reader_itself_stood_still(
    cluster: ClusterProcesses, stack: AsyncExitStack
) -> None:
    """What its streams have for it then begins with what happened first."""
    reader = await stack.enter_async_context(Client(cluster.addresses, timeout=5, near_cache=NearCache()))
    values = Values(reader, reader)
    for key in KEYS:
        await values.write(key)
    await values.all_are_kept()
    with SyncClient(cluster.addresses, timeout=5) as other:
        time.sleep(1.5 * LIVE_SECONDS)  # noqa: ASYNC251
        for key in KEYS:
            other.set(key, b"0")
        time.sleep(1.5 * LIVE_SECONDS)  # noqa: ASYNC251
    near: Any = reader._near
    for _ in range(1_000):
        assert all(near.get(key) in (None, b"0") for key in KEYS)
        await asyncio.sleep(0)
    assert await reader.get_many(KEYS) == dict.fromkeys(KEYS, b"0")
