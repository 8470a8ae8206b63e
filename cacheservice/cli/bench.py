"""bench: puts a load on a running cluster, and measures what it takes."""

from __future__ import annotations

import importlib.util
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from cacheservice.cli.bench_output import description_of, figures_of, print_report, warnings_of
from cacheservice.cli.connecting import chosen_tls
from cacheservice.cli.members import topology_of
from cacheservice.cli.output import DEFAULT_TARGET, Json, Target, fail, print_json, run, split_targets
from cacheservice.cli.trace import read_trace
from cacheservice.client.client import MAX_TIMEOUT_SECONDS
from cacheservice.limits import MAX_BATCH, MAX_KEY_BYTES, MAX_TTL_SECONDS
from cacheservice.loadgen.operations import entry_count
from cacheservice.loadgen.plan import MAX_VALUE_BYTES, Plan
from cacheservice.loadgen.processes import ProcessEnded, Progress, generate
from cacheservice.loadgen.report import Report
from cacheservice.loadgen.trace import Trace

_CALLERS, _OPEN_CALLERS = 100, 1_000
_KEYS = 100_000
_ALPHA = 0.99
_MAX_SECONDS = 86_400
_NUMBER_CHARACTERS = 20
"""That keys may have after their prefix."""


class Distribution(StrEnum):
    uniform = "uniform"
    zipf = "zipf"


class Routing(StrEnum):
    direct = "direct"
    proxy = "proxy"


def bench(
    target: Target = DEFAULT_TARGET,
    callers: Annotated[
        int | None,
        typer.Option(
            "--callers",
            min=1,
            max=100_000,
            help=f"Operations in flight at most. [default: {_CALLERS}, or {_OPEN_CALLERS:,} with --rate]",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            min=0.1,
            max=10_000_000,
            help="Open loop: so many operations a second are due, whatever the cluster does, and latency "
            "counts from then. Without it each caller does one operation after the other.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=_MAX_SECONDS, help="How long to measure.")
    ] = 10,
    warm_up: Annotated[
        float, typer.Option("--warm-up", min=0, max=_MAX_SECONDS, help="Seconds of load before that.")
    ] = 1,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=64, help="Client processes that share the load.")
    ] = 1,
    keys: Annotated[
        int | None,
        typer.Option("--keys", min=1, max=1_000_000_000, help=f"How many keys. [default: {_KEYS:,}]"),
    ] = None,
    distribution: Annotated[
        Distribution | None,
        typer.Option("--distribution", help="How likely each key is. [default: uniform]"),
    ] = None,
    zipf_alpha: Annotated[
        float | None,
        typer.Option("--zipf-alpha", min=0.01, max=10, help=f"Zipf's exponent. [default: {_ALPHA:g}]"),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            exists=True,
            dir_okay=False,
            readable=True,
            help="An access log, again and again, in place of keys and operations that are drawn.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=10_000_000, help="Requests of the log that are used.")
    ] = 1_000_000,
    mix: Annotated[
        str | None,
        typer.Option("--mix", help="GET:SET or GET:SET:DELETE, relative to each other. [default: 100:0]"),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, max=MAX_BATCH, help="Keys of an operation; get_many and so on above 1."
        ),
    ] = 1,
    size: Annotated[
        str, typer.Option("--size", help="Bytes of a value, or LEAST-MOST, of which all are equally likely.")
    ] = "100",
    ttl: Annotated[
        float,
        typer.Option(
            "--ttl", min=0, max=MAX_TTL_SECONDS, help="Seconds that what is written lives; 0 as for set."
        ),
    ] = 3_600,
    get_or_load: Annotated[
        bool, typer.Option("--get-or-load", help="get_or_load in place of get: a miss is written.")
    ] = False,
    fill: Annotated[bool, typer.Option("--fill/--no-fill", help="Write all keys first.")] = True,
    prefix: Annotated[str, typer.Option("--prefix", help="What all keys begin with.")] = "bench:",
    seed: Annotated[int, typer.Option("--seed", help="Of all that is drawn.")] = 1,
    routing: Annotated[
        Routing, typer.Option("--routing", help="Ask the owners of the keys, or the targets alone.")
    ] = Routing.direct,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.001, max=MAX_TIMEOUT_SECONDS, help="Seconds that an operation may take."
        ),
    ] = 1,
    plot: Annotated[
        Path | None, typer.Option("--plot", dir_okay=False, help="Draw latencies and throughput as a PNG.")
    ] = None,
    json: Json = False,
) -> None:
    """Put a load on a cluster and measure it, for --seconds or until Ctrl-C.

    It writes entries of its own, which begin with --prefix. The exit code is 1 when no operation succeeded.
    """
    if trace is not None:
        _refuse("--trace", keys=keys, distribution=distribution, zipf_alpha=zipf_alpha, mix=mix)
        if batch > 1:
            _bad("--batch", "a log has operations of one key: must be 1 with --trace")
    if zipf_alpha is not None and distribution is not Distribution.zipf:
        _bad("--zipf-alpha", "is for --distribution zipf alone")
    for name, value in (("--rate", rate), ("--seconds", seconds), ("--warm-up", warm_up), ("--ttl", ttl)):
        if value is not None and not math.isfinite(value):
            _bad(name, f"{value} is no finite number")
    if processes > (callers := callers or (_CALLERS if rate is None else _OPEN_CALLERS)):
        _bad("--processes", f"{processes} processes need as many callers, not {callers}")
    _check_prefix(prefix)
    if plot is not None:
        _check_plot(plot)
    plan = Plan(
        targets=tuple(split_targets(target)),
        callers=callers,
        rate=rate,
        seconds=seconds,
        warm_up=warm_up,
        processes=processes,
        keys=keys or _KEYS,
        alpha=(zipf_alpha or _ALPHA) if distribution is Distribution.zipf else None,
        trace=None if trace is None else _read(trace, limit),
        mix=_mix_of(mix or "100:0"),
        batch=batch,
        sizes=_sizes_of(size),
        ttl=ttl,
        get_or_load=get_or_load,
        fill=fill,
        seed=seed,
        prefix=prefix,
        routing=_routing_of(routing),
        tls=chosen_tls(),
        timeout=timeout,
    )
    run(topology_of(target))
    try:
        with _Display(plan, is_shown=not json) as display:
            progress, report = generate(plan, display.show)
    except ProcessEnded as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped", code=130)
    _finish(plan, progress, report, plot, json)


def _finish(plan: Plan, progress: Progress, report: Report, plot: Path | None, json: bool) -> None:
    if not report.count:
        if progress.was_stopped:
            fail("stopped before anything was measured", code=130)
        fail("no operation was done in that time")
    if json:
        print_json(figures_of(plan, progress, report))
    else:
        print_report(plan, report)
        for warning in warnings_of(plan, progress, report):
            print(f"warning: {warning}", file=sys.stderr)
    if plot is not None:
        from cacheservice.loadgen.plot import draw

        draw(report, description_of(plan), plot)
    if report.failed.total() == report.count:
        [(reason, _)] = report.errors.most_common(1)
        fail(f"no operation succeeded: {reason}: {report.messages[reason]}")


class _Display:
    """A line on the terminal that tells how far it is."""

    def __init__(self, plan: Plan, *, is_shown: bool) -> None:
        console = Console(stderr=True)
        self._plan = plan
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            console=console,
            disable=not (is_shown and console.is_terminal),
            transient=True,
            refresh_per_second=4,
        )
        self._entries = entry_count(plan)
        self._task = self._bar.add_task("fill", total=self._entries, told="")

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress, report: Report) -> None:
        if not progress.is_loading:
            self._bar.update(self._task, completed=progress.filled, told=f"{progress.filled:,} entries")
        elif not report.series:
            self._bar.update(
                self._task, description="warm-up", completed=0, total=self._plan.seconds, told=""
            )
        else:
            last = report.series[-1]
            told = f"{last.rate:,.0f} operations/s, p50 {last.p50:.2f} ms, p99 {last.p99:.2f} ms"
            if report.failed:
                told += f", {report.failed.total():,} failed"
            self._bar.update(self._task, description="bench", completed=last.ended, told=told)


def _bad(option: str, problem: str) -> NoReturn:
    raise typer.BadParameter(problem, param_hint=option)


def _refuse(option: str, **others: object) -> None:
    for name, value in others.items():
        if value is not None:
            _bad(f"--{name.replace('_', '-')}", f"{option} tells that already")


def _check_prefix(prefix: str) -> None:
    most = MAX_KEY_BYTES - _NUMBER_CHARACTERS
    try:
        length = len(prefix.encode())
    except UnicodeEncodeError:
        _bad("--prefix", "must be text that UTF-8 can express")
    if length > most:
        _bad("--prefix", f"must be at most {most} bytes, not {length}")


def _check_plot(path: Path) -> None:
    if path.suffix.lower() != ".png":
        _bad("--plot", f"{str(path)!r} does not end with .png")
    if not path.absolute().parent.is_dir():
        _bad("--plot", f"there is no folder {str(path.parent)!r}")
    if importlib.util.find_spec("matplotlib") is None:
        fail("--plot needs matplotlib: pip install 'cacheservice[benchmark]'", code=2)


def _read(path: Path, limit: int) -> Trace:
    try:
        trace = Trace.of(read_trace(path, limit), MAX_VALUE_BYTES)
    except ValueError as error:
        fail(f"--trace: {error}", code=2)
    if not len(trace):
        fail(f"--trace: {path} holds no requests", code=2)
    return trace


def _mix_of(text: str) -> tuple[float, float, float]:
    try:
        weights = [float(part) for part in text.split(":")]
    except ValueError:
        weights = []
    in_bounds = all(0 <= weight <= 1e9 for weight in weights) and any(weights)
    if not (2 <= len(weights) <= 3 and in_bounds):
        _bad(
            "--mix", f"{text!r} is not GET:SET or GET:SET:DELETE, of numbers from 0 to 1e9 that are not all 0"
        )
    gets, sets, deletes = [*weights, 0.0][:3]
    return gets, sets, deletes


def _sizes_of(text: str) -> tuple[int, int]:
    least, dash, most = text.partition("-")
    try:
        sizes = int(least), int(most if dash else least)
    except ValueError:
        sizes = 1, 0
    if not 0 <= sizes[0] <= sizes[1] <= MAX_VALUE_BYTES:
        _bad("--size", f"{text!r} is not BYTES or LEAST-MOST, from 0 to {MAX_VALUE_BYTES}")
    return sizes


def _routing_of(routing: Routing) -> Literal["direct", "proxy"]:
    return "direct" if routing is Routing.direct else "proxy"
