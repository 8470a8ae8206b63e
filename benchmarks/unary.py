"""A unary Get beside a method that does nothing, under the load of ghz.

    python -m benchmarks.unary [--rounds 5] [--seconds 3] [--callers 32]

Both servers are processes of their own with the same event loop, the same messages and a value of 100 bytes;
what `Get` takes beyond the other one is the node's. They take turns; the ratios are those of a round, and the
median of them is printed, with the goal that it is held against. Needs ghz on the PATH, which is built with
`go install github.com/bojand/ghz/cmd/ghz@latest`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import uvloop

from benchmarks.failover_load import say
from benchmarks.peer_servers import cacheservice, free_ports, program, running
from cacheservice.client import SyncClient
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.cache_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server

GOAL = 0.85
KEY, VALUE = "k", b"x" * 100
_SERVICE = pb.DESCRIPTOR.services_by_name["CacheService"].full_name
_CONNECTIONS = 4
_PROTOS = Path(__file__).resolve().parents[1] / "proto"
_PROTO = _PROTOS / "cacheservice" / "v1" / "cache.proto"


class Empty(CacheServiceServicer):
    """Answers every Get alike."""

    async def Get(self, request: Any, context: Any) -> pb.GetResponse:  # noqa: ARG002, N802
        return pb.GetResponse(outcome=pb.GET_OUTCOME_HIT, value=VALUE)


async def serve(address: str) -> None:
    server = grpc.aio.server()
    add_CacheServiceServicer_to_server(Empty(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


@contextmanager
def empty() -> Iterator[str]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with running([sys.executable, "-m", "benchmarks.unary", "--serve", address], address):
        yield address


def load(address: str, callers: int, seconds: float) -> tuple[float, float]:
    """Answers a second, and their 99th percentile in ms."""
    command = [
        *(program("ghz"), "--insecure", "--proto", str(_PROTO), "--import-paths", str(_PROTOS)),
        *("--call", f"{_SERVICE}.Get", "--data", json.dumps({"key": KEY})),
        *("--concurrency", str(callers), "--connections", str(_CONNECTIONS)),
        *("--duration", f"{seconds}s", "--duration-stop", "wait", "--format", "json", address),
    ]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    [p99] = [each["latency"] / 1e6 for each in report["latencyDistribution"] if each["percentage"] == 99]
    return report["rps"], p99


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve))
        return
    with cacheservice() as [node], empty() as nothing:
        with SyncClient(node) as cache:
            cache.set(KEY, VALUE)
        for address in (node, nothing):
            load(address, options.callers, 1.0)
        rounds = []
        for _ in range(options.rounds):
            (ours, our_p99), (bare, bare_p99) = (
                load(address, options.callers, options.seconds) for address in (node, nothing)
            )
            rounds.append(ours / bare)
            say(f"Get {ours:,.0f}/s, p99 {our_p99:.1f} ms; empty {bare:,.0f}/s, p99 {bare_p99:.1f} ms")
    ratio = median(rounds)
    print(f"{ratio:.2f} x an empty method  (goal {GOAL}): {'ok' if ratio >= GOAL else 'FAIL'}")


if __name__ == "__main__":
    main()
