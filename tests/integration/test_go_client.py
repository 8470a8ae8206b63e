"""The contract from another language: stubs as a Go user generates them, and a program that uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from cacheservice.ring import Ring, RingMember
from cacheservice.v1.cache_pb2 import DeleteRequest, GetRequest
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2 import Topology
from tests.integration.processes import DEADLINE_SECONDS, ClusterProcesses

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
PROTO_PYTHON = ROOT / ".venv-proto" / "bin" / "python"

KEY = "go:greeting"
BUILD_SECONDS = 600
"""For a machine that has to fetch and compile gRPC first."""


@pytest.fixture
def program(tool: Callable[[str], str], tmp_path: Path) -> Path:
    """The Go program, built from a copy in which the stubs are generated."""
    plugins = {Path(tool(name)).parent for name in ("protoc-gen-go", "protoc-gen-go-grpc")}
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    assert PROTO_PYTHON.exists(), "protoc is missing: run `make unit`"
    folder = tmp_path / "go_client"
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


@pytest.mark.slow
@pytest.mark.timeout(2 * BUILD_SECONDS)
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


def _nodes_of(key: str, topology: Topology) -> tuple[str, ...]:
    members = [RingMember(member.node_id, member.zone, member.weight) for member in topology.members]
    return Ring(members, topology.virtual_nodes).owners(key, len(members))


def _output(command: list[str], folder: Path, environment: dict[str, str] | None, seconds: float) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout
