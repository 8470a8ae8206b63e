from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

import cachetools
import pytest
from typer.testing import CliRunner

from cacheservice.cli.main import app

TRACES = Path(os.environ.get("TRACES_DIR", Path(__file__).resolve().parents[3] / "shared" / "traces"))
"""Real access logs, which are not part of the project; where they are missing their tests are skipped."""


def simulate(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["simulate", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


@pytest.fixture
def log(tmp_path: Path) -> Path:
    random = Random(7)
    keys = [int(random.paretovariate(0.7)) % 3_000 for _ in range(30_000)]
    path = tmp_path / "log.csv"
    path.write_text("".join(f"{key}\n" for key in keys))
    return path


def test_counts_as_a_plain_cache_does(log: Path) -> None:
    model: cachetools.LRUCache[str, bool] = cachetools.LRUCache(200)
    hits = 0
    for key in log.read_text().splitlines():
        hits += model.get(key, False)
        model[key] = True
    figures = simulate("--trace", str(log), "--max-entries", "200")
    assert (figures["requests"], figures["hits"]) == (30_000, hits)
    assert figures["miss_ratio"] == pytest.approx(1 - hits / 30_000)
    assert figures["policy"] == "lru"


def test_limit_and_policy(log: Path) -> None:
    figures = simulate("--trace", str(log), "--max-entries", "200", "--limit", "100", "--policy", "fifo")
    assert (figures["requests"], figures["policy"]) == (100, "fifo")


def test_a_bound_in_bytes_evicts(log: Path) -> None:
    small = simulate("--trace", str(log), "--max-memory", "64KiB")
    large = simulate("--trace", str(log), "--max-memory", "4MiB")
    assert small["evictions"] > large["evictions"] == 0
    assert small["miss_ratio"] > large["miss_ratio"]


def test_sizes_ttls_and_operations_of_the_log_count(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a,10,0.002\na\na\na\nb,,,set\nb\nb,,,delete\nb\nbig,9000000\nbig,9000000\n")
    figures = simulate("--trace", str(path), "--max-memory", "1MiB")
    # a: miss, hit, expired, hit; b: hit once it was set, miss once it was deleted; big never fits.
    assert (figures["requests"], figures["hits"]) == (8, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--policy", "mru", "--max-entries", "5"],
        [],
        ["--max-entries", "5", "--max-memory", "5MiB"],
        ["--max-memory", "lots"],
        ["--max-entries", "0"],
    ],
)
def test_bad_usage(log: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["simulate", "--trace", str(log), *arguments])
    assert result.exit_code == 2


def test_a_malformed_log_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a\nb,x\n")
    result = CliRunner().invoke(app, ["simulate", "--trace", str(path), "--max-entries", "5"])
    assert result.exit_code == 1
    assert "line 2" in result.stderr


class Row(NamedTuple):
    """Miss ratios in percent of other implementations, for one log and a capacity in entries.

    They are those of libcachesim 0.3.5; S3-FIFO's of a simulator with the same threshold, FIFO's of the
    package of that name.
    """

    trace: str
    entries: int
    lru: float
    fifo: float
    pure_lfu: float
    s3fifo: float
    arc: float


ROWS = [
    Row("cache2k_web12", 1_376, lru=31.5, fifo=35.46, pure_lfu=39.8, s3fifo=27.7, arc=29.1),
    Row("arc_oltp", 1_869, lru=58.4, fifo=63.41, pure_lfu=82.4, s3fifo=53.6, arc=54.6),
    Row("arc_oltp", 18_688, lru=33.5, fifo=36.66, pure_lfu=55.4, s3fifo=32.3, arc=32.7),
    Row("cache2k_orm_busy", 763, lru=23.0, fifo=24.06, pure_lfu=82.9, s3fifo=24.4, arc=23.3),
    Row("cache2k_orm_busy", 7_635, lru=12.0, fifo=13.21, pure_lfu=35.1, s3fifo=11.0, arc=12.0),
    Row("scarab_recs", 2_584, lru=65.3, fifo=68.16, pure_lfu=69.4, s3fifo=57.2, arc=59.2),
    Row("scarab_recs", 25_837, lru=39.4, fifo=42.91, pure_lfu=48.8, s3fifo=37.3, arc=37.7),
]

LONG_RUN = (pytest.mark.slow, pytest.mark.timeout(600))

on_real_logs = pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=f"{row.trace}-{row.entries}", marks=() if row.trace == "cache2k_web12" else LONG_RUN
        )
        for row in ROWS
    ],
)


@cache
def percent_missed(trace: str, entries: int, policy: str) -> float:
    path = TRACES / f"{trace}.csv.zst"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {TRACES}")
    figures = simulate("--trace", str(path), "--max-entries", str(entries), "--policy", policy)
    return 100 * float(figures["miss_ratio"])


@on_real_logs
def test_lru_misses_as_often_as_elsewhere(row: Row) -> None:
    assert percent_missed(row.trace, row.entries, "lru") == pytest.approx(row.lru, abs=0.2)


@on_real_logs
def test_fifo_misses_as_often_as_elsewhere(row: Row) -> None:
    assert percent_missed(row.trace, row.entries, "fifo") == pytest.approx(row.fifo, abs=0.2)


@on_real_logs
def test_s3fifo_misses_as_often_as_elsewhere(row: Row) -> None:
    assert percent_missed(row.trace, row.entries, "s3fifo") == pytest.approx(row.s3fifo, abs=0.7)


@on_real_logs
def test_lfu_that_forgets_is_better_than_pure_lfu_and_not_far_from_lru(row: Row) -> None:
    missed = percent_missed(row.trace, row.entries, "lfu")
    assert missed <= row.pure_lfu
    assert missed <= row.lru + 4


@on_real_logs
def test_adaptive_is_never_much_worse_than_lru(row: Row) -> None:
    assert percent_missed(row.trace, row.entries, "adaptive") <= row.lru + 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_adaptive_is_better_than_arc_on_average() -> None:
    missed = [percent_missed(row.trace, row.entries, "adaptive") for row in ROWS]
    assert fmean(missed) < fmean(row.arc for row in ROWS)
