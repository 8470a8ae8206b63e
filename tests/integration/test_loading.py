"""A thousand callers in twenty processes that want one missing value: it is loaded once."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from cacheservice.client import Client
from cacheservice.client.client import Routing
from cacheservice.ring import Ring, RingMember
from tests.integration.loading_client import CALLERS, TIMEOUT, Order
from tests.integration.origin import Origin
from tests.integration.processes import ClusterProcesses, NodeProcess

PROCESSES = 20
ALL = PROCESSES * CALLERS
DEADLINE_SECONDS = 60.0
"""For so many processes to start, or to answer, on a busy machine. Each caller gives up after ten seconds."""

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


class Callers:
    """Those of all processes."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes

    @asynccontextmanager
    async def connected(
        self, origin: Origin, targets: Sequence[str], routing: Routing = "direct"
    ) -> AsyncIterator[None]:
        """With clients of those nodes, which load from that origin."""
        async with origin.listening() as port:
            order = Order(targets=list(targets), routing=routing, origin_port=port)
            self._tell(json.dumps(order))
            assert set(await self._lines()) == {"ready\n"}
            try:
                yield
            finally:
                self._tell("")

    def want(self, key: str) -> asyncio.Task[Counter[str]]:
        """Has all read the key at once; how many were given which value, or which error."""
        self._tell(key)
        return asyncio.create_task(self._outcomes())

    async def _outcomes(self) -> Counter[str]:
        return sum((Counter(json.loads(line)) for line in await self._lines()), Counter())

    def _tell(self, line: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n".encode())

    async def _lines(self) -> list[str]:
        """The next of each process."""

        async def line(process: Process) -> str:
            assert process.stdout is not None
            return (await process.stdout.readline()).decode()

        async with asyncio.timeout(DEADLINE_SECONDS):
            return await asyncio.gather(*map(line, self._processes))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callers() -> AsyncIterator[Callers]:
    command = (sys.executable, "-m", "tests.integration.loading_client")
    starts = (asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(PROCESSES))
    processes = await asyncio.gather(*starts)
    yield Callers(processes)
    for process in processes:
        process.kill()
        await process.communicate()


@pytest_asyncio.fixture(loop_scope="module")
async def origin() -> Origin:
    return Origin()


@pytest.fixture
def cluster(own_cluster: ClusterProcesses) -> Iterator[ClusterProcesses]:
    yield own_cluster
    # Those that are left would try to hand their entries over to the one that is dead.
    own_cluster.kill()


def owner_of(key: str, cluster: ClusterProcesses) -> NodeProcess:
    """The node that gives the lease of the key."""
    [owner] = Ring(RingMember(node.node_id) for node in cluster.nodes).owners(key, 1)
    return cluster[owner]


@pytest.mark.parametrize("routing", ["direct", "proxy"])
async def test_a_missing_value_is_loaded_once_by_all_processes(
    shared_cluster: ClusterProcesses, callers: Callers, origin: Origin, routing: Routing
) -> None:
    key = f"loading:{routing}"
    targets = shared_cluster.addresses if routing == "direct" else shared_cluster.addresses[:1]
    origin.may_answer.set()
    async with callers.connected(origin, targets, routing):
        assert await callers.want(key) == {"load 1": ALL}
        assert await callers.want(key) == {"load 1": ALL}
    assert origin.loads == 1
    async with Client(targets, routing=routing, timeout=TIMEOUT) as cache:
        await cache.delete(key)


async def test_when_the_owner_dies_during_the_load_one_more_loads_and_nobody_hangs(
    cluster: ClusterProcesses, callers: Callers, origin: Origin
) -> None:
    async with callers.connected(origin, cluster.addresses):
        outcomes = callers.want("user:1")
        await origin.until_loads(1)
        owner_of("user:1", cluster).kill()
        await origin.until_loads(2)
        origin.may_answer.set()
        found = await outcomes
        assert found.total() == ALL
        assert set(found) == {"load 1", "load 2"}
        assert await callers.want("user:1") == {"load 2": ALL}
    assert origin.loads == 2


@pytest.mark.parametrize("loads", [1, 2])
async def test_what_was_loaded_with_the_lease_of_a_dead_owner_does_not_replace_what_is_newer(
    cluster: ClusterProcesses, callers: Callers, origin: Origin, loads: int
) -> None:
    """The newer value is written at once, or when others load as well."""
    async with (
        callers.connected(origin, cluster.addresses),
        Client(cluster.addresses, timeout=TIMEOUT) as writer,
    ):
        outcomes = callers.want("user:1")
        await origin.until_loads(1)
        owner_of("user:1", cluster).kill()
        await origin.until_loads(loads)
        await writer.set("user:1", b"newer")
        origin.may_answer.set()
        found = await outcomes
        assert found.total() == ALL
        assert set(found) <= {"load 1", "load 2", "newer"}
        assert await callers.want("user:1") == {"newer": ALL}
    assert origin.loads <= 2
    for node in cluster.running:
        found_there = node.found(["user:1"])["user:1"]
        assert isinstance(found_there, tuple)
        assert found_there[1] == b"newer"
