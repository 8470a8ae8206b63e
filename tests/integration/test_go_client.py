"""The contract from another language: stubs as a Go user generates them, and a program that uses them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cacheservice.client import Client
from cacheservice.errors import LoadFailed
from cacheservice.ring import Ring, RingMember
from cacheservice.v1.cache_pb2 import DeleteRequest, GetRequest
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2 import Topology
from tests.integration.origin import Origin, load_from
from tests.integration.processes import DEADLINE_SECONDS, ClusterProcesses, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
PROTO_PYTHON = ROOT / ".venv-proto" / "bin" / "python"

KEY = "go:greeting"
BUILD_SECONDS = 600
"""For a machine that has to fetch and compile gRPC first."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * BUILD_SECONDS)]


@pytest.fixture(scope="module")
def program(tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built from a copy in which the stubs are generated."""
    plugins = {Path(tool(name)).parent for name in ("protoc-gen-go", "protoc-gen-go-grpc")}
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    assert PROTO_PYTHON.exists(), "protoc is missing: run `make unit`"
    folder = tmp_path_factory.mktemp("go") / "go_client"
    shutil.copytree(Path(__file__).with_name("go_client"), folder)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, plugins), os.environ["PATH"]]),
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    for command in (
        [
            *(str(PROTO_PYTHON), "-m", "grpc_tools.protoc"),
            *("-I", str(PROTO), "--go_out=.", "--go-grpc_out=."),
            *sorted(map(str, PROTO.glob("cacheservice/v1/*.proto"))),
        ],
        ["go", "vet", "."],
        ["go", "build", "-o", "program", "."],
    ):
        _output(command, folder, environment, BUILD_SECONDS)
    return folder / "program"


def test_a_go_program_uses_the_cluster(program: Path, shared_cluster: ClusterProcesses) -> None:
    topology = shared_cluster.nodes[0].topology()
    owner, *others = _nodes_of(KEY, topology)
    address = {member.node_id: member.address for member in topology.members}
    output = _output(
        [str(program), *(address[node] for node in others)], program.parent, None, 2 * DEADLINE_SECONDS
    )
    summary = json.loads(output)
    version = summary.pop("version")
    assert summary == {
        "key": KEY,
        "outcome": "GET_OUTCOME_HIT",
        "value": "hello from Go",
        "replicas": 2,
        "served_by": owner,
        "hops": 1,
        "batch": ["value of go:one", "value of go:two", "value of go:three", "-"],
        "exchange": ["4", "5", "-"],
        "refused": {
            "code": "InvalidArgument",
            "message": "ttl_seconds must be a number from 0 to 315360000, got -1.0",
            "reason": "INVALID_ARGUMENT",
            "domain": "cacheservice",
            "field": "ttl_seconds",
        },
    }

    with grpc.insecure_channel(address[owner]) as channel:
        stub = CacheServiceStub(channel)
        read = stub.Get(GetRequest(key=KEY), timeout=DEADLINE_SECONDS)
        assert (read.value, read.version) == (b"hello from Go", version)
        stub.Delete(DeleteRequest(key=KEY), timeout=DEADLINE_SECONDS)


class GoCaller:
    """A process that wants a key, and loads it from the origin at the port if it is to."""

    def __init__(self, program: Path, address: str, key: str, origin_port: int) -> None:
        command = [str(program), "load", address, key, str(origin_port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> GoCaller:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=DEADLINE_SECONDS)

    async def outcome(self) -> str:
        """Its value or its error, once it has one."""
        assert self._process.stdout is not None
        return (await asyncio.to_thread(self._process.stdout.readline)).strip()


@pytest.fixture
async def cache(shared_cluster: ClusterProcesses) -> AsyncIterator[Client]:
    async with Client(shared_cluster.addresses, timeout=5) as cache:
        yield cache
        await cache.invalidate_prefix("go:")


async def one_waits(cluster: ClusterProcesses) -> None:
    """Until a caller waits for what another one loads."""

    def waits() -> bool:
        return any(node.stats().waiting for node in cluster.nodes)

    await asyncio.to_thread(wait_until, waits, "a caller waits")


@pytest.mark.parametrize("node", [0, 1, 2])
async def test_a_python_caller_waits_for_what_a_go_caller_loads(
    program: Path, shared_cluster: ClusterProcesses, cache: Client, node: int
) -> None:
    origin = Origin()
    async with origin.listening() as port:
        with GoCaller(program, shared_cluster.addresses[node], "go:a", port) as in_go:
            await origin.until_loads(1)
            in_python = asyncio.create_task(cache.get_or_load("go:a", lambda _: load_from(port)))
            await one_waits(shared_cluster)
            origin.may_answer.set()
            assert await in_python == b"load 1"
            assert await in_go.outcome() == "value: load 1"
    assert origin.loads == 1
    found = await cache.lookup("go:a")
    assert 0 < found.ttl <= 60


@pytest.mark.parametrize("node", [0, 1, 2])
async def test_a_go_caller_waits_for_what_a_python_caller_loads(
    program: Path, shared_cluster: ClusterProcesses, cache: Client, node: int
) -> None:
    origin = Origin()
    async with origin.listening() as port:
        in_python = asyncio.create_task(cache.get_or_load("go:b", lambda _: load_from(port)))
        await origin.until_loads(1)
        with GoCaller(program, shared_cluster.addresses[node], "go:b", port) as in_go:
            await one_waits(shared_cluster)
            origin.may_answer.set()
            assert await in_go.outcome() == "value: load 1"
        assert await in_python == b"load 1"
    assert origin.loads == 1


async def test_a_load_that_fails_in_one_language_is_told_in_the_other(
    program: Path, shared_cluster: ClusterProcesses, cache: Client
) -> None:
    origin = Origin()
    origin.answer = "!no database"
    async with origin.listening() as port:
        with GoCaller(program, shared_cluster.addresses[0], "go:c", port) as in_go:
            await origin.until_loads(1)
            in_python = asyncio.create_task(cache.get_or_load("go:c", lambda _: load_from(port)))
            await one_waits(shared_cluster)
            origin.may_answer.set()
            with pytest.raises(LoadFailed, match="'go:c' could not be loaded: no database"):
                await in_python
            assert await in_go.outcome() == "error: no database"
        assert origin.loads == 1

        origin.may_answer.clear()
        in_python = asyncio.create_task(cache.get_or_load("go:d", lambda _: load_from(port)))
        await origin.until_loads(2)
        with GoCaller(program, shared_cluster.addresses[0], "go:d", port) as in_go:
            await one_waits(shared_cluster)
            origin.may_answer.set()
            assert await in_go.outcome() == "error: go:d could not be loaded: OSError: no database"
        with pytest.raises(OSError, match="no database"):
            await in_python
    assert origin.loads == 2


async def test_that_there_is_no_value_is_known_in_both_languages(
    program: Path, shared_cluster: ClusterProcesses, cache: Client
) -> None:
    origin = Origin()
    origin.answer = ""
    async with origin.listening() as port:
        with GoCaller(program, shared_cluster.addresses[0], "go:e", port) as in_go:
            await origin.until_loads(1)
            in_python = asyncio.create_task(cache.get_or_load("go:e", lambda _: load_from(port)))
            await one_waits(shared_cluster)
            origin.may_answer.set()
            assert await in_python is None
            assert await in_go.outcome() == "error: there is no such value"
        assert origin.loads == 1
        assert await cache.get_or_load("go:f", lambda _: load_from(port), absent_ttl=60) is None
        with GoCaller(program, shared_cluster.addresses[0], "go:f", port) as in_go:
            assert await in_go.outcome() == "error: there is no such value"
    assert origin.loads == 2


async def test_a_go_caller_has_the_stale_value_and_loads_it_anew_beside(
    program: Path, shared_cluster: ClusterProcesses, cache: Client
) -> None:
    await cache.set("go:g", b"old", ttl=0.001, stale=600)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (await cache.lookup("go:g")).stale:
            await asyncio.sleep(0.01)
    origin = Origin()
    async with origin.listening() as port:
        with GoCaller(program, shared_cluster.addresses[0], "go:g", port) as in_go:
            assert await in_go.outcome() == "value: old"
            await origin.until_loads(1)
            origin.may_answer.set()
            async with asyncio.timeout(DEADLINE_SECONDS):
                while await cache.get("go:g") != b"load 1":
                    await asyncio.sleep(0.01)
    assert origin.loads == 1


async def test_a_go_caller_goes_on_with_the_old_value_when_its_load_fails(
    program: Path, shared_cluster: ClusterProcesses, cache: Client
) -> None:
    origin = Origin()
    origin.may_answer.set()
    async with origin.listening() as port:
        await cache.get_or_load("go:h", lambda _: load_from(port), ttl=0.001, stale_if_error=600)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await cache.lookup("go:h")).found:
                await asyncio.sleep(0.01)
        origin.answer = "!no database"
        with GoCaller(program, shared_cluster.addresses[0], "go:h", port) as in_go:
            assert await in_go.outcome() == "value: load 1"
    assert origin.loads == 2


@pytest.fixture
def five_nodes(tmp_path: Path) -> Iterator[ClusterProcesses]:
    cluster = ClusterProcesses(tmp_path, 5)
    yield cluster
    cluster.kill()


def test_a_load_in_go_does_not_notice_that_a_node_is_killed_and_started_anew(
    program: Path, five_nodes: ClusterProcesses
) -> None:
    """The program tries the next node when one is UNAVAILABLE, and nothing else."""
    with subprocess.Popen(
        [str(program), "exercise", *five_nodes.addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        try:
            operations = [load.stdout.readline() for _ in range(4)]
            five_nodes["n2"].kill()
            operations += [load.stdout.readline() for _ in range(4)]
            rest = {node.node_id for node in five_nodes.running}
            wait_until(lambda: all(node.in_ring() == rest for node in five_nodes.running), "n2 is dead")
            five_nodes.add("n2")
            five_nodes.wait_whole()
            operations += [load.stdout.readline() for _ in range(4)]
            output, _ = load.communicate("\n", timeout=DEADLINE_SECONDS)
        finally:
            load.kill()
    assert all(operations)
    report = json.loads(output.splitlines()[-1])
    assert (report["failures"], report["lost"]) == ([], [])
    assert report["acknowledged"] == 8 * 50


def _nodes_of(key: str, topology: Topology) -> tuple[str, ...]:
    members = [
        RingMember(member.node_id, member.zone, member.weight, member.host) for member in topology.members
    ]
    return Ring(members, topology.virtual_nodes).owners(key, len(members))


def _output(command: list[str], folder: Path, environment: dict[str, str] | None, seconds: float) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout
