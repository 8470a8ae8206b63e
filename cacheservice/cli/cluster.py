"""cluster: several nodes as processes on this machine, for trying it out."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from cacheservice.cli.output import counted, fail
from cacheservice.client import Client
from cacheservice.config import ENV_PREFIX
from cacheservice.errors import CacheServiceError
from cacheservice.v1.cluster_pb2 import MEMBER_STATE_ALIVE

HOST = "127.0.0.1"

_READY_SECONDS = 30.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_SHOWN_LOG_LINES = 10


class Node:
    """One child process and where it logs."""

    def __init__(self, cluster_id: str, node_id: str, address: str, log: Path) -> None:
        self.cluster_id = cluster_id
        self.node_id = node_id
        self.address = address
        self.log = log
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, seeds: str, max_memory: str) -> None:
        with self.log.open("wb") as log:
            self.process = await _spawn(self, seeds, max_memory, log)

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.returncode

    def stop(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def wait(self) -> int:
        return 0 if self.process is None else await self.process.wait()

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_SHOWN_LOG_LINES:])


def cluster(
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=50, help="How many.")] = 3,
    base_port: Annotated[
        int, typer.Option("--base-port", min=1, max=65_000, help="The first node's port; the others follow.")
    ] = 7700,
    max_memory: Annotated[str, typer.Option("--max-memory", help="Of each node.")] = "64MiB",
) -> None:
    """Run several nodes on this machine until Ctrl-C. No configuration, nothing left behind."""
    with tempfile.TemporaryDirectory(prefix="cacheservice-") as folder:
        # Of its own, so that two clusters on one machine never mix, whatever their ports.
        cluster_id = f"local-{Path(folder).name.rpartition('-')[2]}"
        children = [
            Node(cluster_id, f"n{number}", f"{HOST}:{port}", Path(folder) / f"n{number}.log")
            for number, port in enumerate(range(base_port, base_port + nodes), 1)
        ]
        if not asyncio.run(_run(children, max_memory)):
            raise typer.Exit(1)


async def _run(nodes: list[Node], max_memory: str) -> bool:
    """Whether all nodes became ready, and stopped in order when told to."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    seeds = ",".join(node.address for node in nodes)
    try:
        for node in nodes:
            await node.start(seeds, max_memory)
        if not await _all_ready(nodes, stopped):
            return stopped.is_set()
        _print_welcome(nodes)
        watchers = [asyncio.create_task(_report_death(node, nodes, stopped)) for node in nodes]
        await stopped.wait()
        some_are_left = any(node.exit_code is None for node in nodes)
        print("\nstopping ...", flush=True)
        await _stop(nodes)
        await asyncio.gather(*watchers)
        return some_are_left
    finally:
        await _stop(nodes)


async def _spawn(node: Node, seeds: str, max_memory: str, log: BinaryIO) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheservice", "serve"),
        *("--node-id", node.node_id, "--listen", node.address, "--seeds", seeds),
        *("--cluster-id", node.cluster_id, "--max-memory", max_memory),
        env={name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )


async def _all_ready(nodes: list[Node], stopped: asyncio.Event) -> bool:
    """Waits until every node sees all of them, printing a line for each."""
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    waiting = list(nodes)
    while waiting and not stopped.is_set():
        for node in list(waiting):
            if node.exit_code is not None:
                print(
                    f"error: {node.node_id} ended with code {node.exit_code}:\n{node.last_words()}",
                    file=sys.stderr,
                )
                return False
            if await _sees(node, len(nodes)):
                print(f"{node.node_id} ready at {node.address}", flush=True)
                waiting.remove(node)
        if asyncio.get_running_loop().time() > deadline:
            names = ", ".join(node.node_id for node in waiting)
            print(
                f"error: not ready after {_READY_SECONDS:g} s: {names}\n{waiting[0].last_words()}",
                file=sys.stderr,
            )
            return False
        if waiting:
            await asyncio.sleep(_POLL_SECONDS)
    return not stopped.is_set()


def _complain(problem: str, node: Node) -> None:
    print(f"error: {problem}; the last of {node.log.name}:\n{node.last_words()}", file=sys.stderr)


async def _sees(node: Node, count: int) -> bool:
    async with Client(node.address, timeout=1.0) as client:
        try:
            topology = await client.nodes.topology()
        except CacheServiceError:
            return False
    alive = [member for member in topology.members if member.state == MEMBER_STATE_ALIVE]
    return topology.cluster_id == node.cluster_id and len(alive) == count


async def _report_death(node: Node, nodes: list[Node], stopped: asyncio.Event) -> None:
    code = await node.wait()
    if stopped.is_set():
        return
    left = [other.node_id for other in nodes if other.exit_code is None]
    print(f"{node.node_id} ended with code {code}; left: {', '.join(left) or 'none'}", flush=True)
    if not left:
        stopped.set()


async def _stop(nodes: list[Node]) -> None:
    for node in nodes:
        node.stop(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await asyncio.gather(*(node.wait() for node in nodes))
    except TimeoutError:
        for node in nodes:
            node.stop(signal.SIGKILL)
        await asyncio.gather(*(node.wait() for node in nodes))
        fail("some nodes had to be killed")


def _print_welcome(nodes: list[Node]) -> None:
    first, last = nodes[0].address, nodes[-1].address
    value = b64encode(b"Ada").decode()
    service = "cacheservice.v1.CacheService"
    command = _command()
    print(
        f"""
{counted(len(nodes), "node")} ready, logs in {nodes[0].log.parent}. Try (values are base64 in JSON):

  grpcurl -plaintext -d '{{"key": "user:1", "value": "{value}", "ttl_seconds": 60}}' {first} {service}/Set
  grpcurl -plaintext -d '{{"key": "user:1"}}' {last} {service}/Get
  grpcurl -plaintext {first} cacheservice.v1.ClusterService/Describe

  {command} get user:1 --target {last}
  {command} members --target {first}

Ctrl-C stops them.""",
        flush=True,
    )


def _command() -> str:
    """How to call this program from the shell that called it."""
    script = Path(sys.executable).parent / "cacheservice"
    return "cacheservice" if shutil.which("cacheservice") == str(script) else os.path.relpath(script)
