"""What an origin notices when a key that is read 28,000 times a second expires.

    python -m benchmarks.stampede [--rate 28000] [--processes 2] [--seconds 12] [--ttl 2] [--picture FILE]

An origin that takes 5,000 queries a second, a cluster of three nodes, and readers of one key, each in
processes of their own; first with the cache-aside that one writes by hand, then with get_or_load. Prints what
was seen, and draws it (docs/stampede.png).
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import uvloop

from benchmarks.failover_load import print_table, say
from benchmarks.stampede_plot import PICTURE, draw
from benchmarks.stampede_run import VARIANTS, Load, Result, run


def rows(result: Result, load: Load) -> dict[str, str]:
    expiries = result.by_expiry(load.ttl)
    return {
        "reads a second": f"{result.rate:,.0f}",
        "expiries": f"{len(expiries)}",
        "origin queries": f"{len(result.queries):,}",
        "  per expiry, mean": f"{mean(expiries):,.1f}",
        "  per expiry, most": f"{max(expiries):,}",
        "  in 0.1 s, most": f"{max(result.by_window()):,}",
        "p50": f"{result.latency_ms(0.5):,.1f} ms",
        "p99": f"{result.latency_ms(0.99):,.1f} ms",
        "p99.9": f"{result.latency_ms(0.999):,.1f} ms",
        "slowest": f"{result.latency_ms(1):,.1f} ms",
        "failed reads": f"{result.failed.total():,}",
        **{f"  {kind}": f"{count:,}" for kind, count in result.failed.most_common()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=Load.rate, help="reads a second, of all processes")
    parser.add_argument("--processes", type=int, default=Load.processes, help="of readers")
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="of each variant")
    parser.add_argument("--ttl", type=float, default=Load.ttl, help="of the key, in seconds")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to draw it")
    options = parser.parse_args()
    load = Load(options.rate, options.processes, options.seconds, options.ttl)
    results: dict[str, Result] = {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for variant in VARIANTS:
            with TemporaryDirectory() as folder:
                results[variant.name] = runner.run(run(variant, load, Path(folder)))
            say(f"{variant.name}: done, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print_table({name: rows(result, load) for name, result in results.items()})
    draw(results, options.picture)


if __name__ == "__main__":
    main()
