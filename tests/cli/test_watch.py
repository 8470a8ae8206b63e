"""watch, with nodes as processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cacheservice.cli.main import app
from cacheservice.client import SyncClient
from tests.integration.processes import DEADLINE_SECONDS, ClusterProcesses


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterProcesses]:
    made = ClusterProcesses(tmp_path, 2)
    yield made
    made.stop()


def lines_of(target: str, *arguments: str) -> Iterator[str]:
    """What watch prints, until it is told to stop by closing this."""
    command = [sys.executable, "-m", "cacheservice", "watch", "--target", target, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield from process.stdout
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(DEADLINE_SECONDS) == 0
            finally:
                process.kill()


def test_watch_prints_what_happens_on_all_nodes(cluster: ClusterProcesses) -> None:
    address = cluster.nodes[0].address
    lines, plain = lines_of(address, "--json", "cli:"), lines_of(address, "cli:")
    gap: dict[str, Any] = json.loads(next(lines))
    assert (gap["node"], gap["kind"], gap["lost"]) == ("n2", "gap", 0)
    assert next(plain).endswith(" n2: events may be missing\n")
    events: set[tuple[str, str, str, str]] = set()
    written = []
    with SyncClient(cluster.addresses) as cache:
        while not {"n1", "n2"} <= {node for node, *_ in events}:
            cache.set("other", b"v")
            # Of what is written before n2 is heard by way of n1 only n1 tells.
            written.append(cache.set("cli:a\n", b"v").version)
            event = json.loads(next(lines))
            events.add((event["node"], event["kind"], event["name"], event["version"]))
        cache.invalidate_tag("t")
        while (event := json.loads(next(lines)))["kind"] != "tag":
            assert event["name"] == "cli:a\n"
        assert event["name"] == "t"
    assert events <= {(node, "key", "cli:a\n", str(version)) for node in ("n1", "n2") for version in written}
    assert ': key "cli:a\\n" version ' in next(plain)
    lines.close()  # type: ignore[attr-defined]
    plain.close()  # type: ignore[attr-defined]


def test_watch_says_what_it_cannot_do() -> None:
    done = CliRunner().invoke(app, ["watch", "--target", "127.0.0.1:1"])
    assert (done.exit_code, done.stderr.startswith("error: UNAVAILABLE")) == (1, True)
