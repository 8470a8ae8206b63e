"""Three real nodes: what a client sees while one of them is killed, hangs, stops or comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random

import pytest

from cacheservice.client import Client
from cacheservice.errors import CacheServiceError
from tests.integration.processes import ClusterProcesses, NodeProcess, free_port, wait_until

TIMEOUT = 5.0


class Load:
    """Writers and readers at work until told to stop; what they were promised, and what failed."""

    def __init__(self, addresses: list[str]) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self.failures: list[str] = []
        self.operations = 0
        self._addresses = addresses
        self._stopped = asyncio.Event()

    async def run(self, workers: int = 8) -> None:
        async with Client(self._addresses, timeout=TIMEOUT) as cache:
            await asyncio.gather(*(self._work(cache, number) for number in range(workers)))

    def stop(self) -> None:
        self._stopped.set()

    async def until(self, operations: int) -> None:
        """Waits until this many more operations are done."""
        goal = self.operations + operations
        async with asyncio.timeout(60):
            while self.operations < goal:
                await asyncio.sleep(0.01)

    async def _work(self, cache: Client, number: int) -> None:
        random = Random(number)
        written = 0
        while not self._stopped.is_set():
            key, value = f"w{number}:{written}", f"{number}-{written}".encode()
            try:
                stored = await cache.set(key, value)
                if stored.replicas >= 2:
                    self.acknowledged[key] = value
                written += 1
                asked = f"w{number}:{random.randrange(written)}"
                found = await cache.lookup(asked)
                if asked in self.acknowledged and found.value != self.acknowledged[asked]:
                    self.failures.append(f"{asked}: {found}")
            except CacheServiceError as error:
                self.failures.append(f"{key}: {error!r}")
            self.operations += 2

    async def lost(self) -> list[str]:
        """The acknowledged writes that cannot be read any longer."""
        async with Client(self._addresses, timeout=TIMEOUT) as cache:
            found = await cache.get_many(self.acknowledged)
        return [key for key, value in self.acknowledged.items() if found.get(key) != value]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_losing_a_node_under_load(own_cluster: ClusterProcesses, fault: signal.Signals) -> None:
    load = Load(own_cluster.addresses)
    running = asyncio.create_task(load.run())
    await load.until(400)
    victim = own_cluster.nodes[1]
    victim.signal(fault)
    await load.until(400)
    rest = {"n1", "n3"}
    for node in (own_cluster.nodes[0], own_cluster.nodes[2]):
        await asyncio.to_thread(wait_until, lambda node=node: node.alive() == rest, "the rest agree")  # type: ignore[misc]
    await load.until(400)
    load.stop()
    await running
    assert load.failures == []
    assert len(load.acknowledged) > 100
    assert await load.lost() == []


def test_a_node_that_comes_back_elsewhere_is_taken_in(own_cluster: ClusterProcesses, tmp_path: Path) -> None:
    first, victim, last = own_cluster.nodes
    old_address = victim.address
    victim.kill()
    folder = tmp_path / "again"
    folder.mkdir()
    again = NodeProcess(folder, "n2", "--seeds", first.address, listen=f"127.0.0.1:{free_port()}")
    try:
        for node in (first, last):
            wait_until(lambda node=node: node.address_of("n2") == again.address, "n2 is back")  # type: ignore[misc]
            wait_until(lambda node=node: node.alive() == {"n1", "n2", "n3"}, "all are alive")  # type: ignore[misc]
        assert again.address != old_address
    finally:
        again.stop()


def test_members_can_be_watched(own_cluster: ClusterProcesses) -> None:
    first, _, victim = own_cluster.nodes
    command = [sys.executable, "-m", "cacheservice", "members", "--watch", "--target", first.address]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, text=True, env=buffered)
    with start([*command, "--json"]) as as_json, start(command) as as_text:
        try:
            assert as_json.stdout is not None
            assert as_text.stdout is not None
            shown = "".join(iter(as_json.stdout.readline, "}\n")) + "}"
            assert {member["state"] for member in json.loads(shown)["members"]} == {"alive"}
            assert [as_text.stdout.readline().split()[0] for _ in range(4)] == ["node_id", "n1", "n2", "n3"]
            victim.kill()
            changes = [json.loads(as_json.stdout.readline()) for _ in range(2)]
            lines = [as_text.stdout.readline() for _ in range(2)]
            as_json.send_signal(signal.SIGINT)
            as_text.send_signal(signal.SIGINT)
            assert (as_json.wait(10), as_text.wait(10)) == (0, 0)
        finally:
            as_json.kill()
            as_text.kill()
    assert [(change["before"], change["state"]) for change in changes] == [
        ("alive", "suspect"),
        ("suspect", "dead"),
    ]
    assert all("n1: n3 at" in line and "silent to n1, n2" in line for line in lines)


def test_a_stopped_node_leaves_and_is_not_taken_for_dead(own_cluster: ClusterProcesses) -> None:
    assert own_cluster.nodes[2].stop() == 0
    first = own_cluster.nodes[0]
    wait_until(lambda: first.alive() == {"n1", "n2"}, "n3 has left")
    log = first.log.read_text()
    assert "member n3" in log
    assert "-> left (" in log
    assert "-> dead" not in log


def test_sigint_stops_as_well_and_impatience_does_no_harm(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, "n1")
    node.wait_ready()
    node.signal(signal.SIGINT)
    wait_until(lambda: "stopping" in node.log.read_text(), "it is stopping")
    while node.process.poll() is None:
        node.signal(signal.SIGTERM)
    assert node.wait() == 0


def test_nodes_of_different_clusters_never_mix(tmp_path: Path) -> None:
    one = NodeProcess(tmp_path, "a1", "--cluster-id", "one")
    seeds = ("--seeds", one.address, "--join-timeout-seconds", "0.5")
    other = NodeProcess(tmp_path, "b1", "--cluster-id", "other", *seeds)
    try:
        assert other.alive() == {"b1"}
        assert one.alive() == {"a1"}
        assert "no seed has answered" in other.log.read_text()
    finally:
        assert (one.stop(), other.stop()) == (0, 0)


@pytest.mark.parametrize("flag", ["--vnodes", "--replication-factor"])
def test_a_node_that_would_place_keys_elsewhere_is_refused_and_told_why(tmp_path: Path, flag: str) -> None:
    one = NodeProcess(tmp_path, "a1")
    seeds = ("--seeds", one.address, "--join-timeout-seconds", "0.5")
    other = NodeProcess(tmp_path, "a2", flag, "3", *seeds)
    try:
        assert other.alive() == {"a2"}
        assert one.alive() == {"a1"}
        assert "this cluster has 256 virtual nodes and replication factor 2, not" in other.log.read_text()
    finally:
        assert (one.stop(), other.stop()) == (0, 0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 64,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"\x16\x03\x01\x02\x00\x01\x00",
        Random(1).randbytes(4096),
    ],
    ids=["zeros", "http1", "broken http2", "tls", "random"],
)
async def test_garbage_on_the_port_ends_that_connection_alone(
    shared_cluster: ClusterProcesses, garbage: bytes
) -> None:
    host, _, port = shared_cluster.nodes[0].address.partition(":")
    async with Client(shared_cluster.nodes[0].address, timeout=TIMEOUT) as cache:
        await cache.set("before", b"v")
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(30)
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        assert await cache.get("before") == b"v"


async def test_a_client_that_hangs_up_in_mid_batch(shared_cluster: ClusterProcesses) -> None:
    """The process is killed while its batches are on their way."""
    program = (
        "import grpc, sys\n"
        "from cacheservice.v1 import cache_pb2 as pb\n"
        "from cacheservice.v1.cache_pb2_grpc import CacheServiceStub\n"
        "stub = CacheServiceStub(grpc.insecure_channel(sys.argv[1]))\n"
        "requests = [pb.SetRequest(key=f'hung-{n}', value=bytes(300)) for n in range(10_000)]\n"
        "calls = [stub.BatchSet.future(pb.BatchSetRequest(requests=requests)) for _ in range(3)]\n"
        "print('sent', flush=True)\n"
        "[call.result() for call in calls]\n"
    )
    address = shared_cluster.nodes[0].address
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, address, stdout=pipe)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"sent\n"
    child.kill()
    await child.communicate()
    async with Client(address, timeout=TIMEOUT) as cache:
        await cache.set("after", b"v")
        assert await cache.get("after") == b"v"


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cacheservice", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_replay_while_a_node_is_killed(own_cluster: ClusterProcesses, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    random = Random(3)
    log.write_text("".join(f"{int(random.paretovariate(0.9)) % 2_000},100\n" for _ in range(12_000)))
    origin = tmp_path / "origin.db"
    targets = ",".join(own_cluster.addresses)
    replay = subprocess.Popen(
        [
            *(sys.executable, "-m", "cacheservice", "replay", "--target", targets),
            *("--trace", str(log), "--origin", f"sqlite:{origin}", "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: all(node.stats().sets > 100 for node in own_cluster.nodes), "the replay has begun")
    assert replay.poll() is None
    own_cluster.nodes[1].kill()
    out, err = replay.communicate(timeout=110)
    assert replay.returncode == 0, err
    figures = json.loads(out)
    assert (figures["requests"], figures["failed"], figures["wrong_values"]) == (12_000, 0, 0), out
    assert figures["hits"] + figures["origin_queries"] == figures["gets"] == 12_000
    assert 0.5 < figures["hit_ratio"] < 1


def test_commands(shared_cluster: ClusterProcesses) -> None:
    target = ("--target", shared_cluster.nodes[0].address)
    assert cli("set", "cli:a", "hello", "--ttl", "60", *target).stdout.startswith("stored on 2 nodes")
    assert cli("get", "cli:a", *target).stdout == "hello"
    found = json.loads(cli("get", "cli:a", "--json", *target).stdout)
    assert (found["outcome"], found["value"]) == ("hit", "hello")
    assert cli("touch", "cli:a", "600", *target).stdout == "touched\n"
    assert json.loads(cli("get", "cli:a", "--json", *target).stdout)["ttl_seconds"] > 500
    assert cli("incr", "cli:n", "5", *target).stdout == "5\n"
    assert json.loads(cli("incr", "cli:n", "--json", *target).stdout) == {"value": 6}
    assert "not stored: the entry has version" in cli("set", "cli:a", "x", "--if-absent", *target).stdout
    assert cli("delete", "cli:a", *target).stdout == "deleted\n"
    assert cli("delete", "cli:a", *target).stdout == "not found\n"
    missing = cli("get", "cli:a", *target)
    assert (missing.returncode, missing.stdout) == (0, "")
    assert "no entry" in missing.stderr
    members = json.loads(cli("members", "--json", *target).stdout)["members"]
    assert [(m["node_id"], m["address"], m["state"]) for m in members] == [
        (node.node_id, node.address, "alive") for node in shared_cluster.nodes
    ]
    ring = json.loads(cli("ring", "--key", "cli:a", "--json", *target).stdout)
    assert sum(node["share"] for node in ring["nodes"]) == pytest.approx(1)
    assert len(ring["owners"]) == 2
    stats = json.loads(cli("stats", "--json", *target).stdout)
    assert [node["node_id"] for node in stats["nodes"]] == ["n1", "n2", "n3"]
    assert "n1" in cli("stats", *target).stdout
    assert "owner" in cli("ring", "--key", "cli:a", *target).stdout
    assert "alive" in cli("members", *target).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["get", ""], 1, "key must be 1 to 1024 bytes"),
        (["set", "k", "v", "--ttl", "nan"], 1, "ttl must be"),
        (["get", "k", "--target", "127.0.0.1:1"], 1, "UNAVAILABLE"),
        (["set", "k", "v", "--if-absent", "--if-present"], 2, "only one"),
        (["serve", "--max-memory", "3"], 2, "max_memory"),
        (["serve", "--listen", "0.0.0.0:0"], 2, "advertise"),
        (["nonsense"], 2, "nonsense"),
        (["get", "k", "--target", "localhost"], 2, "HOST:PORT"),
        (["incr", "k", "99999999999999999999"], 1, "delta"),
        (["set", "k", "v", "--if-version", "-1"], 1, "if_version"),
        (["get", b"\xff".decode(errors="surrogateescape")], 1, "UTF-8"),
        (["serve", "--config", __file__], 2, ""),
        (["serve", "--listen", "a..b:0"], 1, "cannot listen"),
        (["replay", "--trace", "TRACE", "--origin", "sqlite:/"], 1, "sqlite:/"),
        (["replay", "--trace", "TRACE", "--origin", f"sqlite:{__file__}"], 1, "not a database"),
        (["simulate", "--trace", __file__, "--max-entries", "5"], 1, "line 1"),
    ],
)
def test_failing_commands(
    shared_cluster: ClusterProcesses, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("a\n")
    arguments = [str(log) if argument == "TRACE" else argument for argument in arguments]
    if arguments[0] in ("get", "set", "incr", "replay") and "--target" not in arguments:
        arguments += ["--target", shared_cluster.nodes[0].address]
    result = cli(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_an_error(shared_cluster: ClusterProcesses) -> None:
    result = cli("serve", "--listen", shared_cluster.nodes[0].address)
    assert result.returncode == 1
    assert "Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_cluster_on_the_same_ports_does_not_pass_for_the_first(
    shared_cluster: ClusterProcesses,
) -> None:
    port = shared_cluster.nodes[0].address.rpartition(":")[2]
    result = cli("cluster", "--nodes", "1", "--base-port", port)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Address already in use" in result.stderr


def test_binary_values_go_through_pipes_unchanged(shared_cluster: ClusterProcesses) -> None:
    target = ("--target", shared_cluster.nodes[0].address)
    command = [sys.executable, "-m", "cacheservice"]
    value = bytes(range(256))
    subprocess.run(
        [*command, "set", "cli:binary", "-", *target], input=value, check=True, capture_output=True
    )
    found = subprocess.run([*command, "get", "cli:binary", *target], check=True, capture_output=True)
    assert found.stdout == value


def test_version_and_help() -> None:
    assert cli("--version").stdout == f"{version('cacheservice')}\n"
    assert "Replay an access log" in cli("-h").stdout


def test_of_two_processes_of_one_name_the_first_gives_way(tmp_path: Path) -> None:
    one = NodeProcess(tmp_path, "same")
    folder = tmp_path / "other"
    folder.mkdir()
    seeds = ("--seeds", one.address, "--join-timeout-seconds", "0.5")
    other = NodeProcess(folder, "same", *seeds)
    try:
        other.wait_ready()
        assert one.wait() == 1
        assert f"at {other.address}, has the id 'same'" in one.log.read_text()
        assert other.alive() == {"same"}
    finally:
        one.stop()
        other.stop()


def test_the_embedded_cluster(tmp_path: Path) -> None:
    base = free_port(2)
    command = [sys.executable, "-m", "cacheservice", "cluster", "--nodes", "2", "--base-port", str(base)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    try:
        lines = []
        for line in child.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        assert [line.partition(" at ")[0] for line in sorted(lines[:2])] == ["n1 ready", "n2 ready"]
        assert any("grpcurl -plaintext" in line for line in lines)
        wait_until(
            lambda: cli("members", "--target", f"127.0.0.1:{base}").stdout.count("alive") == 2, "both alive"
        )
    finally:
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0
        child.stdout.close()
    assert list(tmp_path.iterdir()) == []
