"""Hedged reads, while the process of an owner is held up."""

from __future__ import annotations

import signal
from pathlib import Path

from cacheservice import Client
from cacheservice.client.hedging import MAX_SAVED, SHARE
from tests.integration.processes import ClusterProcesses

KEYS = [str(number) for number in range(round(2 * MAX_SAVED / SHARE))]


async def test_the_other_owner_answers_for_one_that_is_held_up(tmp_path: Path) -> None:
    processes = ClusterProcesses(tmp_path, 3)
    try:
        async with Client(processes.addresses, timeout=600, hedged_reads=True) as cache:
            await cache.set_many(dict.fromkeys(KEYS, b"v"))
            for key in KEYS:
                assert await cache.get(key) == b"v"
            owned = [key for key in KEYS[:100] if (await cache.lookup(key)).served_by == "n2"]
            processes["n2"].signal(signal.SIGSTOP)
            for key in owned[: int(MAX_SAVED / 2)]:
                assert await cache.get(key) == b"v"
            processes["n2"].signal(signal.SIGCONT)
    finally:
        processes.kill()
