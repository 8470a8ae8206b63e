"""What `serve --workers 2` brings beside one worker, for two client processes at a time.

    python -m benchmarks.workers [--rounds 5] [--seconds 3]

Reads and 90:10, 100 callers in each client, 100,000 keys with values of 100 bytes. The two take turns; the
ratios are those of a round, and the median of them is printed. Two cores
are needed by one client and one worker already, so on a machine that has no more there is little to be had.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from statistics import median

from benchmarks.peer_servers import free_ports, running
from benchmarks.peers import run

CLIENTS = 2
CALLERS = 100
VALUE_BYTES = 100
WORKS = {"get": "get", "90:10": "mix"}


def serving(workers: int, stack: ExitStack) -> str:
    """The address of the first worker."""
    first = free_ports(1)[0]
    address = f"127.0.0.1:{first}"
    command = [
        *(sys.executable, "-m", "cacheservice", "serve", "--node-id", f"of-{workers}", "--listen", address),
        *("--workers", str(workers), "--cluster-id", f"of-{workers}"),
    ]
    stack.enter_context(running(command, address))
    return address


def rate(work: str, address: str, seconds: float) -> float:
    """Of all clients together."""
    arguments = ("cacheservice", work, address, str(CALLERS), str(VALUE_BYTES), str(seconds))
    command = (sys.executable, "-W", "ignore", "-m", "benchmarks.peer_clients", *arguments)
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(CLIENTS)]
    return sum(_rate(client.communicate()[0]) for client in clients)


def _rate(printed: str) -> float:
    return float(json.loads(printed.splitlines()[-1])["rate"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        addresses = {workers: serving(workers, stack) for workers in (1, 2)}
        for address in addresses.values():
            run("cacheservice", "fill", [address], 1, VALUE_BYTES, 0)
        for name, work in WORKS.items():
            seen = [
                {workers: rate(work, address, options.seconds) for workers, address in addresses.items()}
                for _ in range(options.rounds)
            ]
            one, two = (median(turn[workers] for turn in seen) for workers in (1, 2))
            ratio = median(turn[2] / turn[1] for turn in seen)
            print(f"{name:8} 1 worker {one:10,.0f}/s   2 workers {two:10,.0f}/s   ratio {ratio:.2f}")
    print(f"{os.cpu_count()} cores for {CLIENTS} clients and the workers")


if __name__ == "__main__":
    main()
