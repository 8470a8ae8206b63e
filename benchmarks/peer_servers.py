"""The servers that are measured beside each other: real processes on this machine."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.impossible import BenchmarkImpossible

START_SECONDS = 60.0


@contextmanager
def cacheservice(nodes: int = 1, *, max_memory: str = "512MiB") -> Iterator[list[str]]:
    """A cluster of nodes, each replicating to one other; their addresses."""
    ports = free_ports(nodes)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        for number, address in enumerate(addresses):
            command = [
                *(sys.executable, "-m", "cacheservice", "serve", "--node-id", f"n{number}"),
                *("--listen", address, "--max-memory", max_memory),
                *(["--seeds", addresses[0]] if number else []),
            ]
            stack.enter_context(running(command, address, ready_line="ready"))
        yield addresses


@contextmanager
def redis(*, port: int | None = None, options: Sequence[str] = ()) -> Iterator[str]:
    """A redis-server without persistence; its address."""
    port = port or free_ports(1)[0]
    with TemporaryDirectory() as folder:
        command = [
            *(program("redis-server"), "--port", str(port), "--save", "", "--appendonly", "no"),
            *("--bind", "127.0.0.1", "--dir", folder, *options),
        ]
        with running(command, f"127.0.0.1:{port}"):
            yield f"127.0.0.1:{port}"


@contextmanager
def redis_cluster() -> Iterator[list[str]]:
    """Three masters with a replica each; the addresses of all six."""
    with ExitStack() as stack:
        addresses = [stack.enter_context(redis(options=("--cluster-enabled", "yes"))) for _ in range(6)]
        _run(
            program("redis-cli"),
            "--cluster",
            "create",
            *addresses,
            "--cluster-replicas",
            "1",
            "--cluster-yes",
        )
        for address in addresses:
            _wait(partial(_is_formed, address), address)
        yield addresses


@contextmanager
def nutcracker(server: str) -> Iterator[str]:
    """twemproxy in front of the redis-server; its address."""
    [port, stats_port] = free_ports(2)
    with TemporaryDirectory() as folder:
        settings = Path(folder, "nutcracker.yml")
        settings.write_text(
            f"pool:\n  listen: 127.0.0.1:{port}\n  redis: true\n  distribution: ketama\n"
            f"  servers:\n   - {server}:1\n"
        )
        command = [program("nutcracker"), "-c", str(settings), "-s", str(stats_port), "-m", "16384"]
        with running(command, f"127.0.0.1:{port}"):
            yield f"127.0.0.1:{port}"


@contextmanager
def memcached() -> Iterator[str]:
    [port] = free_ports(1)
    command = [
        program("memcached"),
        "-p",
        str(port),
        "-l",
        "127.0.0.1",
        "-m",
        "512",
        "-t",
        "1",
        "-u",
        "root",
    ]
    with running(command, f"127.0.0.1:{port}"):
        yield f"127.0.0.1:{port}"


@contextmanager
def running(command: Sequence[str], address: str, ready_line: str = "") -> Iterator[None]:
    log = subprocess.PIPE if ready_line else subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True)
    try:
        if process.stderr is not None:
            while f" {ready_line} " not in (line := process.stderr.readline()):
                if not line:
                    raise BenchmarkImpossible(f"{command[0]} ended before it was ready")
        _wait(lambda: _answers(address), address)
        yield
    finally:
        process.terminate()
        process.wait(timeout=START_SECONDS)
        if process.stderr is not None:
            process.stderr.close()


def _wait(is_ready: Callable[[], bool], address: str) -> None:
    until = time.monotonic() + START_SECONDS
    while not is_ready():
        if time.monotonic() > until:
            raise BenchmarkImpossible(f"nothing answers at {address}")
        time.sleep(0.05)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _is_formed(address: str) -> bool:
    port = address.rpartition(":")[2]
    command = [program("redis-cli"), "-p", port, "cluster", "info"]
    return b"cluster_state:ok" in subprocess.run(command, check=True, capture_output=True).stdout


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BenchmarkImpossible(f"{name} is not installed")
    return path


def free_ports(count: int) -> list[int]:
    """Below the range from which the system itself takes ports for outgoing connections."""
    found: list[int] = []
    for port in range(17_000, 27_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _TAKEN:
            _TAKEN.add(port)
            found.append(port)
        if len(found) == count:
            return found
    raise BenchmarkImpossible("no free ports")


_TAKEN: set[int] = set()
