"""Three real nodes that talk nothing but TLS, and want certificates of all who call them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cacheservice.certificates import Tls
from cacheservice.cli.main import app
from cacheservice.client import SyncClient
from cacheservice.errors import Unavailable
from tests.certificates import NAME, Authority, flags_of
from tests.integration.processes import ClusterProcesses, wait_until

CLIENT = "client.test"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A client's."""
    return authority.issue(tmp_path_factory.mktemp("tls") / "client", CLIENT)


@pytest.fixture(scope="module")
def cluster(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    folder = tmp_path_factory.mktemp("cluster")
    made = ClusterProcesses(folder, 3, tls=authority.issue(folder / "tls"))
    yield made
    assert made.stop() == [0, 0, 0]


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("routing", ["direct", "proxy"])
def test_entries_are_kept_on_two_nodes(cluster: ClusterProcesses, tls: Tls, routing: str) -> None:
    values = {f"{routing}:{number}": str(number).encode() for number in range(200)}
    with SyncClient(cluster.addresses[0], routing=routing, tls=tls, timeout=10) as cache:  # type: ignore[arg-type]
        cache.set_many(values)
        wait_until(lambda: replicas(cache, routing) == {2}, "every write is on two nodes")
        assert cache.get_many(values) == values
        served_by = {cache.lookup(key).served_by for key in values}
    assert served_by == {"n1", "n2", "n3"}


def replicas(cache: SyncClient, prefix: str) -> set[int]:
    return {cache.set(f"{prefix}:{number}", str(number).encode()).replicas for number in range(50)}


@pytest.mark.parametrize("routing", ["direct", "proxy"])
def test_who_may_not_talk_to_a_node_is_told_why(
    cluster: ClusterProcesses, tls: Tls, tmp_path: Path, routing: str
) -> None:
    stranger = Authority().issue(tmp_path / "stranger", CLIENT)
    problems = {
        None: "perhaps it wants TLS, or a certificate",
        replace(tls, cert=None, key=None): "perhaps it wants TLS, or a certificate",
        replace(tls, cert=stranger.cert, key=stranger.key): "perhaps it wants TLS, or a certificate",
        replace(tls, ca=stranger.ca): "not signed by the CA given here",
        replace(tls, server_name="other.test"): "has another name",
    }
    for given, problem in problems.items():
        with SyncClient(cluster.addresses, routing=routing, tls=given, timeout=10) as cache:  # type: ignore[arg-type]
            for call in (lambda: cache.get("k"), lambda: cache.incr("k"), lambda: cache.lookup("k")):
                with pytest.raises(Unavailable, match=problem):
                    call()


def test_a_client_with_tls_is_told_that_a_node_has_none(shared_cluster: ClusterProcesses, tls: Tls) -> None:
    target = shared_cluster.addresses[0]
    with SyncClient(target, tls=tls, timeout=10) as cache, pytest.raises(Unavailable, match="not use TLS"):
        cache.get("k")


def test_commands_take_the_files_as_flags_and_as_variables(
    cluster: ClusterProcesses, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ("--target", cluster.addresses[0])
    done = cli("set", "cli:k", "value", *target, *flags_of(tls))
    assert (done.exit_code, done.stderr) == (0, "")
    monkeypatch.setenv("CACHESERVICE_TARGET", cluster.addresses[1])
    for name, path in (("CA", tls.ca), ("CERT", tls.cert), ("KEY", tls.key), ("SERVER_NAME", NAME)):
        monkeypatch.setenv(f"CACHESERVICE_TLS_{name}", str(path))
    assert cli("get", "cli:k").stdout == "value"
    members = json.loads(cli("members", "--json").stdout)["members"]
    assert [member["state"] for member in members] == ["alive"] * 3
    done = cli("bench", "--seconds", "0.2", "--keys", "10")
    assert done.exit_code == 0, done.stderr
    for command in (["ring"], ["stats"], ["hotkeys"], ["scan", "cli:"], ["touch", "cli:k", "60"]):
        done = cli(*command)
        assert (done.exit_code, done.stderr) == (0, ""), command


def test_commands_say_what_is_wrong_with_tls(cluster: ClusterProcesses, tls: Tls, tmp_path: Path) -> None:
    target = ("--target", cluster.addresses[0])
    done = cli("get", "k", *target)
    assert done.exit_code == 1
    assert "perhaps it wants TLS" in done.stderr
    stranger = Authority().issue(tmp_path / "stranger")
    done = cli("get", "k", *target, *flags_of(replace(tls, ca=stranger.ca)))
    assert done.exit_code == 1
    assert "not signed by the CA given here" in done.stderr
    done = cli("get", "k", *target, "--tls-ca", str(tmp_path / "missing"))
    assert done.exit_code == 2
    assert "--tls-ca: cannot read" in done.stderr
    for flag, value in (("--tls-cert", str(tls.cert)), ("--tls-server-name", NAME)):
        done = cli("get", "k", *target, flag, value)
        assert done.exit_code == 2
        assert f"without --tls-ca nothing is encrypted: {flag} cannot be used" in done.stderr


def test_the_log_says_whether_tls_is_required(
    cluster: ClusterProcesses, shared_cluster: ClusterProcesses
) -> None:
    for nodes, words in ((cluster, "tls=required\n"), (shared_cluster, "tls=off\n")):
        for node in nodes.running:
            assert words in node.log.read_text()


def test_grpcurl_with_certificates(cluster: ClusterProcesses, tls: Tls, tool: Callable[[str], str]) -> None:
    files = ["-cacert", tls.ca, "-cert", tls.cert, "-key", tls.key, "-servername", NAME]
    command = [tool("grpcurl"), *map(str, files), cluster.addresses[0], "list"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout
    assert "cacheservice.v1.CacheService" in listed.split()


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_node_with_files_that_cannot_be_used_says_which(tls: Tls, tmp_path: Path, name: str) -> None:
    garbage = tmp_path / "garbage"
    garbage.touch()
    flags = [*flags_of(tls), f"--tls-{name}", str(garbage)]
    command = [sys.executable, "-m", "cacheservice", "serve", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: tls_{name}: {garbage} has no ")


@pytest.mark.slow
def test_new_files_are_in_use_without_a_restart(tmp_path: Path) -> None:
    """All have certificates of another authority, from one moment to the next; then a node is killed."""
    authority = Authority()
    tls = authority.issue(tmp_path / "client", CLIENT)
    cluster = ClusterProcesses(tmp_path, 3, tls=authority.issue(tmp_path / "nodes"))
    try:
        [first, second, third] = cluster.addresses
        with SyncClient([first, second], tls=tls, timeout=10) as cache:
            wait_until(lambda: replicas(cache, "k") == {2}, "every write is on two nodes")
            other = Authority()
            other.issue(tmp_path / "nodes")
            other.issue(tmp_path / "client", CLIENT)
            assert cache.get_many(["k:1", "k:2"]) == {"k:1": b"1", "k:2": b"2"}
            cluster["n3"].kill()
            cluster.add("n3", listen=third)
            wait_until(lambda: cluster["n1"].alive() == {"n1", "n2", "n3"}, "n1 sees all three")
            wait_until(lambda: replicas(cache, "k") == {2}, "every write is on two nodes again")
            served_by = {cache.lookup(f"k:{number}").served_by for number in range(50)}
            assert served_by == {"n1", "n2", "n3"}
    finally:
        cluster.stop()
