"""hotkeys, with nodes as processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cacheservice.cli.main import app
from cacheservice.client import SyncClient
from tests.integration.processes import ClusterProcesses, wait_until


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Two nodes, of which each is the first owner of keys that are read often."""
    cluster = ClusterProcesses(tmp_path_factory.mktemp("cli"), 2)
    with SyncClient(cluster.addresses, timeout=10) as cache:
        for _ in range(400):
            cache.get_many([f"k{number}" for number in range(200)])
    yield ("--target", cluster.nodes[0].address)
    assert cluster.stop() == [0, 0]


def test_the_hottest_keys_of_all_nodes_come_first(target: tuple[str, str]) -> None:
    found: dict[str, Any] = {}

    def are_from_both() -> bool:
        found.update(json.loads(cli("hotkeys", "--json", "--limit", "1000", *target).stdout))
        return {node for hot in found["keys"] for node in hot["nodes"]} == {"n1", "n2"}

    wait_until(are_from_both, "both nodes name keys")
    rates = [hot["operations_per_second"] for hot in found["keys"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    assert [sum(hot["nodes"].values()) for hot in found["keys"]] == rates
    assert found["silent"] == {}


def test_it_prints_as_many_as_wanted_with_what_each_node_serves(target: tuple[str, str]) -> None:
    done = cli("hotkeys", "--limit", "3", *target)
    assert (done.exit_code, done.stderr) == (0, "")
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["key", "operations", "a", "second", "nodes"]
    assert len(rows) == 3
    for row in rows:
        key, rate, node, its_rate = row.split()
        assert key.startswith("k")
        assert node in ("n1", "n2")
        assert its_rate == rate


@pytest.mark.parametrize("limit", ["0", "1001"])
def test_a_limit_out_of_bounds_is_refused(limit: str) -> None:
    assert cli("hotkeys", "--limit", limit).exit_code == 2
