"""What bench prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cacheservice.cli.output import counted, print_table
from cacheservice.loadgen.histogram import PERCENTILES, Histogram
from cacheservice.loadgen.operations import entry_count
from cacheservice.loadgen.plan import GET, Plan
from cacheservice.loadgen.processes import Progress
from cacheservice.loadgen.report import Report

_ALL_BUSY = 0.9
"""The part of a processor, or of all, from which on it is what limits a load."""
_BEHIND_SECONDS = 0.05
"""An open loop whose last operations wait for longer does not reach its rate."""


def description_of(plan: Plan) -> str:
    """The load in a line."""
    loop = "closed loop" if plan.rate is None else f"open loop, {plan.rate:,g} operations/s due"
    who = f"{counted(plan.callers, 'caller')} in {counted(plan.processes, 'process', 'processes')}"
    return f"{loop}, {who}; {_keys_of(plan)}; {_values_of(plan)}"


def print_report(plan: Plan, report: Report) -> None:
    """As text."""
    print(description_of(plan))
    print()
    columns = ("operation", "count", "failed", *(f"p{percent:g} ms" for percent in PERCENTILES), "max ms")
    rows = []
    for kind, histogram in sorted(report.histograms.items(), key=lambda item: -item[1].count):
        latencies = [_shown(latency) for latency in histogram.at(PERCENTILES).values()]
        rows.append([kind, histogram.count, report.failed[kind], *latencies, _shown(histogram.max)])
    print_table(columns, rows)
    print()
    keys = f", {report.rate * plan.batch:,.0f} keys/s" if plan.batch > 1 else ""
    print(f"{report.rate:,.0f} operations/s{keys} in {report.seconds:.2f} s")
    ratio = _hit_ratio(plan, report)
    if ratio is not None:
        print(f"{ratio:.2%} of what was read were hits")
    if plan.rate is not None:
        delays = _percentiles(report.start_delays)
        late = ", ".join(f"{name} {milliseconds:.3f} ms" for name, milliseconds in delays.items())
        print(f"begun late by {late}")
    for reason, count in report.errors.most_common():
        print(f"{counted(count, 'operation')} failed with {reason}: {report.messages[reason]}")


def figures_of(plan: Plan, progress: Progress, report: Report) -> dict[str, Any]:
    """The same and more, for programs. Latencies in milliseconds."""
    return {
        "load": description_of(plan),
        "was_stopped": progress.was_stopped,
        "seconds": round(report.seconds, 3),
        "operations_per_second": round(report.rate, 1),
        "keys_per_second": round(report.rate * plan.batch, 1),
        "hit_ratio": _hit_ratio(plan, report),
        "operations": {
            kind: {
                "count": histogram.count,
                "failed": report.failed[kind],
                "latency_ms": _percentiles(histogram),
            }
            for kind, histogram in report.histograms.items()
        },
        "start_delay_ms": _percentiles(report.start_delays) if plan.rate is not None else None,
        "not_started": report.not_started,
        "errors": dict(report.errors),
        "messages": report.messages,
        "not_filled": progress.not_filled,
        "process_cpu": round(report.process_share, 3),
        "machine_cpu": None if progress.machine_share is None else round(progress.machine_share, 3),
        "warnings": list(warnings_of(plan, progress, report)),
        "series": [
            {
                "second": round(second.ended, 3),
                "operations_per_second": round(second.rate, 1),
                "p50_ms": second.p50,
                "p99_ms": second.p99,
                "max_ms": second.max,
                "failed": second.failed,
            }
            for second in report.series
        ],
    }


def warnings_of(plan: Plan, progress: Progress, report: Report) -> Iterator[str]:
    """What to know before the figures are believed."""
    if progress.was_stopped:
        yield f"stopped after {report.seconds:.1f} of {plan.seconds:g} s"
    if progress.not_filled:
        yield (
            f"{progress.not_filled:,} of {entry_count(plan):,} entries could not be written first: "
            f"{progress.message}"
        )
    if plan.rate is not None and report.not_started > plan.rate * _BEHIND_SECONDS:
        yield (
            f"the rate was not reached: in the end {counted(report.not_started, 'operation')} "
            f"({report.not_started / plan.rate:.2f} s of load) were due and not begun"
        )
    if report.process_share >= _ALL_BUSY:
        yield (
            "the load generator was the limit, not the cluster: a client process took "
            f"{report.process_share:.0%} of a processor; with some to spare, more --processes do more"
        )
    elif progress.machine_share is not None and progress.machine_share >= _ALL_BUSY:
        yield (
            f"the processors of this machine were busy {progress.machine_share:.0%} of the time: whatever "
            "else runs here, nodes too, had to share them with the load generator"
        )


def _keys_of(plan: Plan) -> str:
    if plan.trace is not None:
        return f"{counted(len(plan.trace), 'request')} of a log, {counted(entry_count(plan), 'key')}"
    law = "uniform" if plan.alpha is None else f"zipf {plan.alpha:g}"
    batch = f", {plan.batch} at a time" if plan.batch > 1 else ""
    return f"{counted(plan.keys, 'key')}, {law}{batch}"


def _values_of(plan: Plan) -> str:
    least, most = plan.sizes
    return f"values of {least:,} bytes" if least == most else f"values of {least:,} to {most:,} bytes"


def _hit_ratio(plan: Plan, report: Report) -> float | None:
    """Of all keys that gets were answered for."""
    gets = report.histograms.get(GET)
    read = (gets.count - report.failed[GET]) * plan.batch if gets is not None else 0
    return round(1 - report.misses / read, 6) if read else None


def _percentiles(histogram: Histogram) -> dict[str, float]:
    found = histogram.at(PERCENTILES)
    return {f"p{percent:g}": latency for percent, latency in found.items()} | {"max": histogram.max}


def _shown(milliseconds: float) -> float:
    return round(milliseconds, 3)
