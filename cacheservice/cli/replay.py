"""replay: an access log, cache-aside, through a cluster and against a real database."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cacheservice.cli.connecting import open_client
from cacheservice.cli.origin import SqliteOrigin, value_of
from cacheservice.cli.output import DEFAULT_TARGET, Json, Target, fail, print_json, print_table, split_targets
from cacheservice.cli.simulate import Limit, Trace
from cacheservice.cli.trace import Request, read_trace
from cacheservice.client import Client
from cacheservice.errors import CacheServiceError

_SCHEME = "sqlite:"
_TIMEOUT_SECONDS = 5.0
_SHOWN_ERRORS = 5


@dataclass(slots=True)
class Report:
    """What a replay saw. Latencies in seconds, of every request with its fill."""

    gets: int = 0
    hits: int = 0
    writes: int = 0
    failed: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    latencies: array[float] = field(default_factory=lambda: array("d"))

    def failed_with(self, error: CacheServiceError) -> None:
        self.failed += 1
        text = f"{error.reason}: {error.message}"
        if len(self.errors) < _SHOWN_ERRORS and text not in self.errors:
            self.errors.append(text)


def replay(
    trace: Trace,
    origin: Annotated[
        str,
        typer.Option(
            "--origin",
            help="The database of record, sqlite:PATH. Its table cacheservice_replay is made anew.",
        ),
    ],
    target: Target = DEFAULT_TARGET,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=10_000, help="Requests in flight.")
    ] = 64,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Replay an access log cache-aside: get, and on a miss load from the database and set.

    Each run has keys of its own, so that it starts cold. The exit code is 1 when a request failed or a value
    was wrong.
    """
    if not origin.startswith(_SCHEME) or origin == _SCHEME:
        raise typer.BadParameter(f"{origin!r} is not sqlite:PATH", param_hint="--origin")
    try:
        uvloop.run(
            _replay(
                split_targets(target), trace, Path(origin.removeprefix(_SCHEME)), concurrency, limit, json
            )
        )
    except ValueError as error:
        fail(str(error))
    except sqlite3.Error as error:
        fail(f"{origin}: {error}")


async def _replay(
    targets: list[str], trace: Path, database: Path, concurrency: int, limit: int | None, as_json: bool
) -> None:
    run = f"replay-{secrets.token_hex(4)}"
    first_sizes: dict[str, int | None] = {}
    total = 0
    for request in read_trace(trace, limit):
        first_sizes.setdefault(f"{run}:{request.key}", request.size)
        total += 1
    if not total:
        raise ValueError(f"{trace} holds no requests")
    source = SqliteOrigin(database)
    try:
        await source.fill(first_sizes.items())
        report = Report()
        started = time.perf_counter()
        async with open_client(targets, timeout=_TIMEOUT_SECONDS) as cache:
            own = (request._replace(key=f"{run}:{request.key}") for request in read_trace(trace, limit))
            requests = _with_progress(own, total, show=not as_json)
            await asyncio.gather(
                *(_worker(cache, source, requests, first_sizes, report) for _ in range(concurrency))
            )
        seconds = time.perf_counter() - started
    finally:
        await source.close()
    _print(report, source.queries, seconds, as_json)
    if report.failed or report.wrong:
        fail(f"{report.failed:,} requests failed, {report.wrong:,} values were wrong")


async def _worker(
    cache: Client,
    origin: SqliteOrigin,
    requests: Iterator[Request],
    first_sizes: dict[str, int | None],
    report: Report,
) -> None:
    for request in requests:
        started = time.perf_counter()
        try:
            await _perform(cache, origin, request, first_sizes, report)
        except CacheServiceError as error:
            report.failed_with(error)
        report.latencies.append(time.perf_counter() - started)


async def _perform(
    cache: Client,
    origin: SqliteOrigin,
    request: Request,
    first_sizes: dict[str, int | None],
    report: Report,
) -> None:
    key, ttl = request.key, request.ttl
    expected = value_of(key, first_sizes[key])
    match request.op:
        case "set":
            report.writes += 1
            await origin.store(key, expected)
            await cache.set(key, expected, ttl)
        case "delete":
            report.writes += 1
            await origin.remove(key)
            await cache.delete(key)
        case _:
            report.gets += 1
            value = await cache.get(key)
            if value is not None:
                report.hits += 1
                report.wrong += value != expected
                return
            value = await origin.load(key)
            if value is not None:
                await cache.set(key, value, ttl)


def _with_progress(requests: Iterable[Request], total: int, *, show: bool) -> Iterator[Request]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (show and console.is_terminal),
        refresh_per_second=4,
    ) as progress:
        task = progress.add_task("replay", total=total)
        for done, request in enumerate(requests, 1):
            yield request
            if done % 256 == 0 or done == total:
                progress.update(task, completed=done)


def _print(report: Report, origin_queries: int, seconds: float, as_json: bool) -> None:
    latencies = sorted(report.latencies)
    requests = len(latencies)
    milliseconds = {
        f"p{percent:g}_ms": round(latencies[min(requests - 1, int(requests * percent / 100))] * 1_000, 3)
        for percent in (50, 99, 99.9)
        if requests
    }
    figures = {
        "requests": requests,
        "gets": report.gets,
        "hits": report.hits,
        "hit_ratio": round(report.hits / report.gets, 6) if report.gets else None,
        "origin_queries": origin_queries,
        "failed": report.failed,
        "wrong_values": report.wrong,
        "seconds": round(seconds, 3),
        "requests_per_second": round(requests / seconds, 1),
        **milliseconds,
    }
    if as_json:
        print_json({**figures, "errors": report.errors})
    else:
        print_table(("", ""), list(figures.items()))
        for error in report.errors:
            print(f"failed: {error}", file=sys.stderr)
