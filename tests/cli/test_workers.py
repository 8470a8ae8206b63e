"""What each worker of `serve --workers N` is told."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from cacheservice.cli.workers import Orders, programs, settings_of_workers
from cacheservice.config import MiB, Settings
from tests.certificates import Authority, settings_of


def test_workers_follow_each_other() -> None:
    settings = Settings(
        node_id="n1",
        listen="0.0.0.0:7700",
        advertise="[::1]:17700",
        health_listen="0.0.0.0:7800",
        workers=3,
        max_memory=100 * MiB,
        zone="z",
    )
    workers = settings_of_workers(settings)
    assert [worker.node_id for worker in workers] == ["n1-w0", "n1-w1", "n1-w2"]
    assert [worker.listen for worker in workers] == ["0.0.0.0:7700", "0.0.0.0:7701", "0.0.0.0:7702"]
    assert [worker.health_listen for worker in workers] == [f"0.0.0.0:{port}" for port in (7800, 7801, 7802)]
    assert [worker.advertise for worker in workers] == ["[::1]:17700", "[::1]:17701", "[::1]:17702"]
    assert {worker.max_memory for worker in workers} == {100 * MiB // 3}
    assert {(worker.host, worker.zone, worker.workers) for worker in workers} == {("n1", "z", 1)}


def test_they_may_share_a_host_with_others() -> None:
    workers = settings_of_workers(Settings(node_id="n1", workers=2, host="rack-7"))
    assert {worker.host for worker in workers} == {"rack-7"}
    assert {worker.advertise for worker in workers} == {None}


def test_they_are_told_everything_and_read_nothing_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('seeds = "a:1,b:2"\n[namespaces.user]\nshare = 0.5\npolicy = "lfu"\n')
    monkeypatch.setenv("CACHESERVICE_MAX_VALUE_BYTES", "1MiB")
    settings = Settings(config=file, workers=2)
    told = programs(settings)
    monkeypatch.delenv("CACHESERVICE_MAX_VALUE_BYTES")
    file.unlink()
    assert not [name for program in told for name in program.environment if name.startswith("CACHESERVICE_")]
    orders = [Orders.model_validate_json(program.orders) for program in told]
    assert [each.settings for each in orders] == settings_of_workers(settings)
    assert orders[0].settings.max_value_bytes == MiB
    assert orders[0].settings.seeds == ("a:1", "b:2")
    assert orders[1].siblings == ("127.0.0.1:7700", "127.0.0.1:7701")


@pytest.mark.parametrize("content", [b"half of", None])
def test_files_that_cannot_be_used_any_longer_are_named(tmp_path: Path, content: bytes | None) -> None:
    tls = Authority().issue(tmp_path / "tls")
    [told, _] = programs(Settings(node_id="n1", workers=2, **settings_of(tls)))  # type: ignore[arg-type]
    file = tmp_path / "tls" / "tls.crt"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    done = subprocess.run(told.command, input=told.orders, capture_output=True, timeout=60)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert re.fullmatch(r"error: n1-w0: tls_cert: [^\n]+\n", said), said
    assert "tls_key" not in said


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("workers", 65, "less than or equal to 64"),
        ("listen", "127.0.0.1:0", "the port of listen must be from 1 to 65534"),
        ("listen", "127.0.0.1:65535", "the port of listen must be from 1 to 65534"),
        ("advertise", "h:65535", "the port of advertise must be from 1 to 65534"),
        ("health_listen", "h:65535", "the port of health_listen must be from 1 to 65534"),
        ("max_memory", 2 * MiB - 1, "at least 1 MiB for each of 2 workers"),
        ("node_id", "n" * 251, "at most 250 characters with 2 workers"),
    ],
)
def test_what_cannot_be_divided_is_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings(**{"workers": 2, field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listen", "advertise", "health_listen", "field"),
    [
        ("0.0.0.0:7700", "h:7700", "0.0.0.0:7701", "listen"),
        ("127.0.0.1:7701", None, "127.0.0.1:7700", "listen"),
        ("10.0.0.1:7700", None, "[::]:7700", "listen"),
        ("10.0.0.1:7700", "10.0.0.1:7800", "0.0.0.0:7801", "advertise"),
    ],
)
def test_ports_that_two_would_have_are_refused(
    listen: str, advertise: str | None, health_listen: str, field: str
) -> None:
    words = rf"the ports of {field} \(.*\) and health_listen \(.*\) must be at least 2 apart"
    with pytest.raises(ValidationError, match=words):
        Settings(workers=2, listen=listen, advertise=advertise, health_listen=health_listen)


def test_ports_of_different_addresses_may_be_the_same() -> None:
    for health_listen in ("127.0.0.1:7700", "10.0.0.1:7702"):
        Settings(workers=2, listen="10.0.0.1:7700", health_listen=health_listen)
