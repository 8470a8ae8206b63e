"""Nodes as real processes that are killed, stopped and started anew, each time at another address."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import grpc

from benchmarks.failover_load import decoded, encoded, say, until
from cacheservice import Client
from cacheservice.client.channel import NodeStubs
from cacheservice.client.placement import is_in_ring
from cacheservice.ring import Ring, RingMember
from cacheservice.v1.admin_pb2 import StatsRequest, StatsResponse
from cacheservice.v1.cluster_pb2 import DescribeRequest
from tests.integration.processes import NodeProcess

COPIES = 2
_POLL_SECONDS = 0.2
_STATS_TIMEOUT_SECONDS = 1.0
_HANDED_OFF = re.compile(r"handed off (\d+) entries")


class OurCache:
    """Counters in a cluster of nodes; a write is acknowledged when two nodes have it."""

    def __init__(self, client: Client, min_replicas: int) -> None:
        self._client = client
        self._min_replicas = min_replicas

    async def read(self, key: str) -> int | None:
        return decoded(await self._client.get(key))

    async def write(self, key: str, counter: int) -> bool:
        result = await self._client.set(key, encoded(counter), min_replicas=self._min_replicas)
        return result.replicas >= COPIES


class RunningNode:
    """A node that is ready, and the stubs to ask it for its figures."""

    def __init__(self, process: NodeProcess) -> None:
        self.process = process
        self.address = process.address
        self.stubs = NodeStubs(self.address)

    async def stats(self) -> StatsResponse | None:
        """Its figures, if it answers."""
        try:
            return await self.stubs.admin.Stats(StatsRequest(), timeout=_STATS_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError:
            return None

    async def in_ring(self) -> set[str]:
        """The ids of the nodes that it has in its ring."""
        response = await self.stubs.cluster.Describe(DescribeRequest(), timeout=_STATS_TIMEOUT_SECONDS)
        return {member.node_id for member in response.topology.members if is_in_ring(member)}


class Nodes:
    """The nodes of one cluster by id; all processes end with the block."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self._processes: list[NodeProcess] = []
        self._running: dict[str, RunningNode] = {}
        self._killed = ""
        self._handed_off_by_stopped = 0

    async def __aenter__(self) -> Nodes:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.process.poll() is None:
                process.kill()
        for node in self._running.values():
            await node.stubs.close()
        self._show_errors()

    @property
    def ids(self) -> list[str]:
        return list(self._running)

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self._running.values()]

    def __getitem__(self, node_id: str) -> RunningNode:
        return self._running[node_id]

    async def form(self, size: int) -> None:
        """Starts nodes n1, n2, ... and waits until they all have the same ring."""
        await self.start("n1")
        await self.start(*(f"n{number}" for number in range(2, size + 1)))

        async def is_whole() -> bool:
            views = [await node.in_ring() for node in self._running.values()]
            return all(view == set(self._running) for view in views)

        await until(is_whole, "all nodes have the same ring")

    async def start(self, *node_ids: str) -> None:
        """Starts the nodes at once, and waits until they are ready."""
        seeds = ("--seeds", ",".join(self.addresses)) if self._running else ()
        started = []
        for node_id in node_ids:
            folder = self._folder / str(len(self._processes))
            folder.mkdir(parents=True)
            started.append(NodeProcess(folder, node_id, *self._flags, *seeds))
            self._processes.append(started[-1])
        await asyncio.gather(*(asyncio.to_thread(process.wait_ready) for process in started))
        self._running |= {process.node_id: RunningNode(process) for process in started}

    async def stop(self, node_id: str) -> None:
        """Asks the node to stop, waits until it has, and remembers what it handed off."""
        node = self._running.pop(node_id)
        handed_off = _handed_off(await node.stats())
        node.process.signal(signal.SIGTERM)
        while node.process.process.poll() is None:
            handed_off = max(handed_off, _handed_off(await node.stats()))
            await asyncio.sleep(_POLL_SECONDS)
        logged = [int(entries) for entries in _HANDED_OFF.findall(node.process.log.read_text())]
        self._handed_off_by_stopped += max([handed_off, *logged])
        await node.stubs.close()

    async def kill(self, turn: int) -> str:
        self._killed = f"n{turn % (len(self._running)) + 1}"
        node = self._running.pop(self._killed)
        await asyncio.to_thread(node.process.kill)
        await node.stubs.close()
        return f"killed {self._killed}"

    async def restart(self) -> str:
        """Starts what was killed last."""
        began = time.perf_counter()
        await self.start(self._killed)
        seconds = time.perf_counter() - began
        return f"started {self._killed} again at {self[self._killed].address}, ready after {seconds:.1f} s"

    async def handed_off(self) -> int:
        """Entries that nodes sent to others because the ring changed; of a killed node nothing."""
        figures = [_handed_off(await node.stats()) for node in self._running.values()]
        return self._handed_off_by_stopped + sum(figures)

    def _show_errors(self) -> None:
        for process in self._processes:
            lines = process.log.read_text().splitlines()
            for line in [line for line in lines if " ERROR " in line or "Error: " in line][:3]:
                say(f"log of {process.node_id}: {line}")


def _handed_off(stats: StatsResponse | None) -> int:
    return int(getattr(stats, "handed_off", 0))


def newly_owned(keys: Iterable[str], before: Iterable[str], after: Iterable[str]) -> int:
    """Entries that have to move when the ring of the nodes `before` becomes that of `after`, at the least."""
    old, new = (Ring(map(RingMember, node_ids)) for node_ids in (before, after))
    return sum(len(set(new.owners(key, COPIES)) - set(old.owners(key, COPIES))) for key in keys)
