"""scan, invalidate, flush, drain and what stats tells of them, with nodes as processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cacheservice.cli.main import app
from cacheservice.client import SyncClient
from tests.integration.processes import ClusterProcesses, wait_until


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def figures_of(*arguments: str) -> dict[str, dict[str, int]]:
    """What stats tells, by node."""
    nodes = json.loads(cli("stats", "--json", *arguments).stdout)["nodes"]
    return {node["node_id"]: node for node in nodes}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    """Two nodes, for tests that leave them as they were."""
    made = ClusterProcesses(tmp_path_factory.mktemp("cli"), 2)
    yield made
    assert made.stop() == [0, 0]


@pytest.fixture
def cache(cluster: ClusterProcesses) -> Iterator[SyncClient]:
    """A client of the two, empty nodes."""
    with SyncClient(cluster.addresses, timeout=10) as client:
        client.invalidate_prefix("cli:")
        yield client


@pytest.fixture
def target(cluster: ClusterProcesses) -> tuple[str, str]:
    return ("--target", cluster.nodes[0].address)


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ClusterProcesses]:
    """Two nodes, for a test that does them harm."""
    made = ClusterProcesses(tmp_path, 2)
    yield made
    made.stop()


def test_scan_lists_entries_one_a_line(cache: SyncClient, target: tuple[str, str]) -> None:
    versions = [cache.set("cli:a", b"12345", ttl=3_600).version, cache.set("cli:b", b"").version]
    done = cli("scan", "cli:", *target)
    assert (done.exit_code, done.stderr) == (0, "")
    first, second = (line.split("\t") for line in sorted(done.stdout.splitlines()))
    assert (first[0], first[1], first[3]) == ("cli:a", "5", str(versions[0]))
    assert 3_000 < float(first[2]) <= 3_600
    assert second == ["cli:b", "0", "0", str(versions[1])]


def test_scan_pages_through_all_or_as_many_as_wanted(cache: SyncClient, target: tuple[str, str]) -> None:
    keys = [f"cli:{number:04}" for number in range(2_500)]
    cache.set_many(dict.fromkeys(keys, b"v"))
    lines = cli("scan", "cli:", *target).stdout.splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == keys
    assert len(cli("scan", "cli:", "--limit", "1200", *target).stdout.splitlines()) == 1_200
    assert len(cli("scan", "cli:001", *target).stdout.splitlines()) == 10


def test_scan_with_values(cache: SyncClient, target: tuple[str, str]) -> None:
    cache.set("cli:binary", b"\xff\x00", tags=["t"])
    cache.set("cli:lines\n", b"one\ntwo")
    cache.set("cli:ключ", "значение".encode())
    lines = cli("scan", "cli:", "--values", *target).stdout.splitlines()
    assert sorted((line.split("\t")[0], line.split("\t")[4]) for line in lines) == [
        ('"cli:lines\\n"', '"one\\ntwo"'),
        ("cli:binary", "/wA="),
        ("cli:ключ", "значение"),
    ]
    rows = [
        json.loads(line) for line in cli("scan", "cli:", "--values", "--json", *target).stdout.splitlines()
    ]
    found = {row["key"]: row for row in rows}
    assert found["cli:binary"]["value_base64"] == "/wA="
    assert found["cli:binary"]["tags"] == ["t"]
    assert found["cli:lines\n"]["value"] == "one\ntwo"
    assert found["cli:ключ"]["bytes"] == 16
    assert isinstance(found["cli:ключ"]["version"], str)


def test_invalidate_by_tag_and_by_prefix(cache: SyncClient, target: tuple[str, str]) -> None:
    for number in range(4):
        cache.set(f"cli:{number}", b"v", tags=["odd"] if number % 2 else [])
    done = cli("invalidate", "--tag", "odd", *target)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "removed 2 entries\n", "")
    assert cli("invalidate", "--prefix", "cli:2", *target).stdout == "removed 1 entry\n"
    done = cli("invalidate", "--prefix", "cli:", "--json", *target)
    assert json.loads(done.stdout) == {"removed": 1, "unreachable": []}


def test_flush_removes_everything_if_the_cluster_is_named(cache: SyncClient, target: tuple[str, str]) -> None:
    cache.set_many({"cli:a": b"v", "other": b"v"})
    refused = cli("flush", "--cluster-id", "another", *target)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "CLUSTER_ID_MISMATCH" in refused.stderr
    assert cache.get("other") == b"v"
    done = cli("flush", "--cluster-id", "cacheservice", *target)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "removed 2 entries\n", "")
    assert cache.get("other") is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["invalidate"], 2, "either --tag or --prefix"),
        (["invalidate", "--tag", "t", "--prefix", "p"], 2, "either --tag or --prefix"),
        (["invalidate", "--prefix", ""], 1, "prefix must be"),
        (["invalidate", "--tag", "x" * 200], 1, "tag must be"),
        (["flush"], 2, "--cluster-id"),
        (["scan", "--limit", "0"], 2, "--limit"),
        (["scan", "x" * 2_000], 1, "prefix must be"),
        (["drain", "--deadline", "-1"], 1, "deadline_seconds must be"),
        (["drain", "--target", "127.0.0.1:1,127.0.0.1:2"], 2, "drain is for one node"),
        (["drain", "--target", "127.0.0.1:1"], 1, "UNAVAILABLE"),
    ],
)
def test_wrong_usage(target: tuple[str, str], arguments: list[str], code: int, words: str) -> None:
    done = cli(*arguments, *(() if "--target" in arguments else target))
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_node_that_cannot_be_reached_is_named_on_stderr(own_cluster: ClusterProcesses) -> None:
    victim, first = own_cluster.nodes
    target = ("--target", first.address)
    with SyncClient(first.address, timeout=10) as cache:
        cache.set_many({f"cli:{number}": b"v" for number in range(20)})
    victim.kill()
    listed = cli("scan", "cli:", *target)
    assert listed.exit_code == 0
    assert listed.stderr == "n1 could not be reached; some of its entries may be missing\n"
    assert len(listed.stdout.splitlines()) == 20
    done = cli("invalidate", "--prefix", "cli:1", *target)
    assert done.exit_code == 1
    assert done.stdout.startswith("removed ")
    assert done.stderr == "n1 could not be reached, and is told as soon as it can be\n"
    flushed = cli("flush", "--cluster-id", "cacheservice", "--json", *target)
    assert flushed.exit_code == 1
    assert json.loads(flushed.stdout)["unreachable"] == ["n1"]
    assert "n1 could not be reached" in flushed.stderr


def test_drain_tells_what_became_of_the_entries(own_cluster: ClusterProcesses) -> None:
    first, leaving = own_cluster.nodes
    with SyncClient(own_cluster.addresses, timeout=10) as cache:
        cache.set_many({f"cli:{number}": b"v" for number in range(50)})
        done = cli("drain", "--deadline", "20", "--target", leaving.address)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.startswith("handed off ")
        assert done.stdout.endswith(" entries, left 0 behind\n")
        again = json.loads(cli("drain", "--json", "--target", leaving.address).stdout)
        assert (
            done.stdout == f"handed off {again['handed_off']} entries, left {again['left_behind']} behind\n"
        )
        wait_until(lambda: first.alive() == {"n1"}, "n2 has left")
        assert len(cache.get_many([f"cli:{number}" for number in range(50)])) == 50


def test_stats_tell_of_what_moves(cache: SyncClient, target: tuple[str, str]) -> None:
    cache.set("cli:a", b"v")
    for node in figures_of(*target).values():
        assert {"handed_off", "let_go", "left_to_hand_off", "too_far_ahead"} <= node.keys()
        assert (node["left_to_hand_off"], node["too_far_ahead"]) == (0, 0)
    assert "left_to_hand_off" in cli("stats", *target).stdout


def test_members_and_ring_see_the_same_cluster(target: tuple[str, str]) -> None:
    members = json.loads(cli("members", "--json", *target).stdout)
    ring = json.loads(cli("ring", "--json", *target).stdout)
    assert members["ring_epoch"] == ring["ring_epoch"]
    assert [each["node_id"] for each in members["members"]] == [each["node_id"] for each in ring["nodes"]]
