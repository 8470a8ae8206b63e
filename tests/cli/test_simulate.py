from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

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


REFERENCE = [
    ("cache2k_web12", 1_376, "lru", 31.5, 0.2),
    ("cache2k_web12", 1_376, "lfu", 39.8, 2),
    ("arc_oltp", 1_869, "lru", 58.4, 0.2),
    ("arc_oltp", 18_688, "lru", 33.5, 0.2),
    ("arc_oltp", 1_869, "lfu", 82.4, 2),
    ("arc_oltp", 18_688, "lfu", 55.4, 2),
    ("scarab_recs", 2_584, "lru", 65.3, 0.2),
    ("scarab_recs", 25_837, "lru", 39.4, 0.2),
    ("scarab_recs", 2_584, "lfu", 69.4, 2),
    ("scarab_recs", 25_837, "lfu", 48.8, 2),
    ("cache2k_orm_busy", 763, "lru", 23.0, 0.2),
    ("cache2k_orm_busy", 7_635, "lru", 12.0, 0.2),
    ("cache2k_orm_busy", 763, "lfu", 82.9, 2),
    ("cache2k_orm_busy", 7_635, "lfu", 35.1, 2),
    ("cache2k_web12", 1_376, "s3fifo", 27.7, 0.7),
    ("arc_oltp", 1_869, "s3fifo", 53.6, 0.7),
    ("arc_oltp", 18_688, "s3fifo", 32.3, 0.7),
    ("scarab_recs", 2_584, "s3fifo", 57.2, 0.7),
    ("scarab_recs", 25_837, "s3fifo", 37.3, 0.7),
    ("cache2k_orm_busy", 763, "s3fifo", 24.4, 0.7),
    ("cache2k_orm_busy", 7_635, "s3fifo", 11.0, 0.7),
]
"""Miss ratios in percent of other implementations (libcachesim 0.3.5; S3-FIFO a simulator with the same
threshold), and the tolerance in points."""

FIFO_REFERENCE = [
    ("cache2k_web12", 1_376, "fifo", 35.46, 0.2),
    ("arc_oltp", 1_869, "fifo", 63.41, 0.2),
    ("arc_oltp", 18_688, "fifo", 36.66, 0.2),
    ("scarab_recs", 2_584, "fifo", 68.16, 0.2),
    ("scarab_recs", 25_837, "fifo", 42.91, 0.2),
    ("cache2k_orm_busy", 763, "fifo", 24.06, 0.2),
    ("cache2k_orm_busy", 7_635, "fifo", 13.21, 0.2),
]
"""The same of its FIFO, computed with the package of that name."""


def marked(case: tuple[str, int, str, float, float]) -> object:
    quick = case[0] == "cache2k_web12" or case[:2] == ("arc_oltp", 1_869)
    return pytest.param(*case, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("trace", "entries", "policy", "percent", "tolerance"),
    [marked(case) for case in REFERENCE + FIFO_REFERENCE],
)
def test_miss_ratios_of_real_logs(
    trace: str, entries: int, policy: str, percent: float, tolerance: float
) -> None:
    path = TRACES / f"{trace}.csv.zst"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {TRACES}")
    figures = simulate("--trace", str(path), "--max-entries", str(entries), "--policy", policy)
    assert 100 * figures["miss_ratio"] == pytest.approx(percent, abs=tolerance)
