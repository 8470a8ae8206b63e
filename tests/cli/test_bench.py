"""bench, with nodes and clients as processes."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cacheservice.cli.main import app
from cacheservice.client import SyncClient
from tests.integration.processes import NodeProcess, wait_until

SHORT = ("--seconds", "0.5", "--warm-up", "0.1", "--keys", "500", "--callers", "8", "--timeout", "10")
COLUMNS = ["operation", "count", "failed", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """For tests that write keys of their own."""
    made = NodeProcess(tmp_path_factory.mktemp("bench"), "n1")
    made.wait_ready()
    yield made
    assert made.stop() == 0


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def figures(node: NodeProcess, *arguments: str) -> dict[str, Any]:
    """What it prints as JSON, of a load without errors."""
    done = cli("--target", node.address, "--json", *SHORT, *arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["errors"] == {}
    assert not found["was_stopped"]
    return found


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One that goes on for ten minutes, until it is `stopped`."""
    command = [sys.executable, "-m", "cacheservice", "bench", "--json", "--seconds", "600", "--warm-up", "0"]
    load = ("--keys", "100", "--callers", "8")
    with subprocess.Popen(
        [*command, *load, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it prints when Ctrl-C is pressed, of which a terminal tells the whole group."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    assert found["was_stopped"]
    return found


def test_a_closed_loop(node: NodeProcess) -> None:
    found = figures(node, "--mix", "8:1:1", "--distribution", "zipf", "--prefix", "closed:")
    assert found["load"] == "closed loop, 8 callers in 1 process; 500 keys, zipf 0.99; values of 100 bytes"
    assert found["operations"].keys() == {"get", "set", "delete"}
    for operation in found["operations"].values():
        latency = operation["latency_ms"]
        assert operation["count"] > 0
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert found["seconds"] >= 0.5
    count = sum(operation["count"] for operation in found["operations"].values())
    assert found["operations_per_second"] == pytest.approx(count / found["seconds"], rel=0.01)
    assert sum(second["operations_per_second"] for second in found["series"]) > 0
    assert 0 < found["hit_ratio"] < 1
    assert found["start_delay_ms"] is None


def test_an_open_loop_of_two_processes(node: NodeProcess) -> None:
    found = figures(node, "--rate", "200", "--processes", "2", "--size", "10-20", "--prefix", "open:")
    assert found["load"].startswith("open loop, 200 operations/s due, 8 callers in 2 processes; ")
    # As many as are due, also on a machine that makes each of them late.
    assert 80 <= found["operations"]["get"]["count"] + found["not_started"] <= 125
    assert found["hit_ratio"] == 1
    assert found["start_delay_ms"]["max"] >= 0
    with SyncClient(node.address, timeout=10) as cache:
        sizes = {entry.size for entry in cache.scan("open:")}
    assert sizes == set(range(10, 21))


def test_operations_of_many_keys_without_filling(node: NodeProcess) -> None:
    found = figures(node, "--no-fill", "--batch", "20", "--mix", "1:0", "--prefix", "none:")
    assert found["hit_ratio"] == 0
    rates = found["keys_per_second"], found["operations_per_second"]
    assert rates[0] == pytest.approx(20 * rates[1], rel=0.01)
    found = figures(node, "--no-fill", "--batch", "20", "--mix", "1:1:1", "--prefix", "some:")
    assert 0 < found["hit_ratio"] < 1


@pytest.mark.parametrize("batch", ["1", "10"])
def test_get_or_load_writes_what_it_misses(node: NodeProcess, batch: str) -> None:
    prefix = f"load-{batch}:"
    found = figures(
        node,
        "--no-fill",
        "--get-or-load",
        "--warm-up",
        "0",
        "--keys",
        "20",
        "--batch",
        batch,
        "--prefix",
        prefix,
    )
    assert 0 < found["hit_ratio"] < 1
    with SyncClient(node.address, timeout=10) as cache:
        assert len(cache.get_many([f"{prefix}{number}" for number in range(20)])) == 20


def test_a_log(node: NodeProcess, tmp_path: Path) -> None:
    log = tmp_path / "log.csv.gz"
    with gzip.open(log, "wt") as file:
        file.write("a,300\nb,20,5,set\na\nc,10,,delete\nd,1\nx\n")
    done = cli(
        *("--target", node.address, "--json", "--seconds", "0.3", "--warm-up", "0", "--timeout", "10"),
        *("--trace", str(log), "--limit", "5", "--size", "7", "--prefix", "log:"),
    )
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["load"].endswith("; 5 requests of a log, 4 keys; values of 7 bytes")
    assert found["hit_ratio"] == 1
    counts = {kind: operation["count"] for kind, operation in found["operations"].items()}
    assert counts["get"] == pytest.approx(3 * counts["set"], abs=200)
    assert counts["delete"] == pytest.approx(counts["set"], abs=100)
    with SyncClient(node.address, timeout=10) as cache:
        assert {entry.key: entry.size for entry in cache.scan("log:a")} == {"log:a": 300}
        assert not cache.get("log:x")


def test_the_text(node: NodeProcess) -> None:
    done = cli("--target", node.address, *SHORT, "--mix", "9:1", "--rate", "300")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("open loop, 300 operations/s due, 8 callers in 1 process; 500 keys, uniform;")
    assert re.split("  +", lines[2].strip()) == COLUMNS
    assert lines[3].startswith("get ")
    assert lines[4].startswith("set ")
    assert "operations/s in 0.5" in done.stdout
    assert "100.00% of what was read were hits" in done.stdout
    assert "begun late by p50 " in done.stdout


def test_the_plot(node: NodeProcess, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra benchmark is not installed")
    picture = tmp_path / "load.png"
    done = cli("--target", node.address, *SHORT, "--mix", "9:1", "--prefix", "plot:", "--plot", str(picture))
    assert done.exit_code == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_ends_it_early_with_what_there_is(node: NodeProcess) -> None:
    with running("--target", node.address, "--processes", "2", "--prefix", "stop:") as process:
        before = node.stats().hits
        wait_until(lambda: node.stats().hits > before + 100, "the load has begun")
        found = stopped(process)
    assert any(warning.startswith("stopped after ") for warning in found["warnings"])
    assert found["operations"]["get"]["count"] > 0
    assert found["errors"] == {}


def test_failing_operations_are_counted(node: NodeProcess) -> None:
    """Values that no node takes, beside reads that it answers."""
    size = str(10 * 1024 * 1024)
    done = cli(
        *(
            "--target",
            node.address,
            "--json",
            "--size",
            size,
            "--mix",
            "1:1",
            "--no-fill",
            "--prefix",
            "big:",
        ),
        *("--callers", "2", "--keys", "5", "--seconds", "0.5", "--warm-up", "0", "--timeout", "10"),
    )
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    writes, reads = found["operations"]["set"], found["operations"]["get"]
    assert writes["failed"] == writes["count"] > 0
    assert reads["failed"] == 0 < reads["count"]
    [(reason, count)] = found["errors"].items()
    assert (reason, count) == ("INVALID_ARGUMENT", writes["failed"])
    assert "value" in found["messages"][reason]
    done = cli(
        "--target", node.address, "--size", size, "--mix", "0:1", "--no-fill", "--callers", "1", *SHORT[:4]
    )
    assert done.exit_code == 1
    assert "error: no operation succeeded: INVALID_ARGUMENT: " in done.stderr


def test_a_node_that_dies_does_not_end_it(tmp_path: Path) -> None:
    victim = NodeProcess(tmp_path, "n1")
    try:
        with running("--target", victim.address, "--timeout", "0.2") as process:
            wait_until(lambda: victim.stats().hits > 100, "the load has begun")
            victim.kill()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            found = stopped(process)
    finally:
        victim.kill()
    assert found["operations"]["get"]["failed"] == sum(found["errors"].values()) > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--callers", "0"], 2, "--callers"),
        (["--rate", "0"], 2, "--rate"),
        (["--rate", "nan"], 2, "--rate"),
        (["--seconds", "inf"], 2, "--seconds"),
        (["--seconds", "0"], 2, "--seconds"),
        (["--warm-up", "-1"], 2, "--warm-up"),
        (["--processes", "65"], 2, "--processes"),
        (["--processes", "5", "--callers", "4"], 2, "--processes"),
        (["--keys", "0"], 2, "--keys"),
        (["--distribution", "normal"], 2, "--distribution"),
        (["--zipf-alpha", "1"], 2, "--zipf-alpha"),
        (["--distribution", "zipf", "--zipf-alpha", "0"], 2, "--zipf-alpha"),
        (["--mix", "90"], 2, "--mix"),
        (["--mix", "0:0"], 2, "--mix"),
        (["--mix", "1:-1"], 2, "--mix"),
        (["--mix", "nan:1"], 2, "--mix"),
        (["--batch", "10001"], 2, "--batch"),
        (["--size", "9-1"], 2, "--size"),
        (["--size", "x"], 2, "--size"),
        (["--size", "16777217"], 2, "--size"),
        (["--ttl", "nan"], 2, "--ttl"),
        (["--prefix", "x" * 1_010], 2, "--prefix"),
        (["--routing", "none"], 2, "--routing"),
        (["--timeout", "0"], 2, "--timeout"),
        (["--timeout", "nan"], 2, "--timeout"),
        (["--plot", "load.svg"], 2, "--plot"),
        (["--plot", "/no/such/folder/load.png"], 2, "--plot"),
        (["--trace", "/no/such/log"], 2, "--trace"),
        (["--trace", __file__], 2, "line 1"),
        (["--trace", __file__, "--keys", "5"], 2, "--keys"),
        (["--trace", __file__, "--mix", "1:1"], 2, "--mix"),
        (["--trace", __file__, "--batch", "2"], 2, "--batch"),
        (["--target", "localhost"], 2, "HOST:PORT"),
        (["--target", "127.0.0.1:1"], 1, "UNAVAILABLE"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, words: str) -> None:
    done = cli(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)
