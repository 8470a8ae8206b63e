from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from cacheservice.address import join_address, split_address
from cacheservice.config import MiB, Settings, as_markdown
from cacheservice.store import POLICIES
from tests.write_settings import BEGIN, END, README


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CACHESERVICE_{name.upper()}", raising=False)


def test_the_readme_has_the_settings_of_this_version() -> None:
    _, _, rest = README.read_text().partition(BEGIN)
    table, found, _ = rest.partition(END)
    assert found
    assert table == as_markdown(), "run `make settings`"


def test_flags_come_before_variables_before_the_file_before_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        'node_id = "file"\nzone = "file"\npolicy = "lfu"\n[namespaces.user]\ndefault_ttl_seconds = 60\n'
    )
    monkeypatch.setenv("CACHESERVICE_CONFIG", str(file))
    monkeypatch.setenv("CACHESERVICE_NODE_ID", "variable")
    monkeypatch.setenv("CACHESERVICE_ZONE", "variable")
    settings = Settings(node_id="flag")
    assert (settings.node_id, settings.zone, settings.policy) == ("flag", "variable", "lfu")
    assert settings.namespaces["user"].default_ttl_seconds == 60
    assert settings.vnodes == 256


def test_the_file_can_be_named_by_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("vnodes = 17\n")
    assert Settings(config=file).vnodes == 17


def test_sizes_and_lists_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHESERVICE_MAX_MEMORY", "2GiB")
    monkeypatch.setenv("CACHESERVICE_SEEDS", "a:1, b:2")
    settings = Settings()
    assert settings.max_memory == 2048 * MiB
    assert settings.seeds == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", ""),
        ("node_id", "a b"),
        ("listen", "nowhere"),
        ("listen", "host:99999"),
        ("listen", "::1:80"),
        ("seeds", "a:1,b"),
        ("max_memory", "1KiB"),
        ("max_memory", "lots"),
        ("policy", "mru"),
        ("replication_factor", 0),
        ("vnodes", 0),
        ("weight", 101),
        ("default_ttl_seconds", -1),
        ("default_ttl_seconds", "nan"),
        ("forward_timeout_seconds", "inf"),
        ("config", "/no/such/file"),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: value})  # type: ignore[arg-type]


def test_unknown_settings_in_the_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("max_memroy = 1\n")
    with pytest.raises(ValidationError, match="max_memroy"):
        Settings(config=file)


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(ValidationError, match="advertise must be an address"):
        Settings(listen="0.0.0.0:7700")
    with pytest.raises(ValidationError, match="advertise must be an address"):
        Settings(advertise="0.0.0.0:7700")
    with pytest.raises(ValidationError, match="default_ttl_seconds"):
        Settings(default_ttl_seconds=10, max_ttl_seconds=5)
    with pytest.raises(ValidationError, match="default_ttl_seconds"):
        Settings(namespaces={"a": {"default_ttl_seconds": 10, "max_ttl_seconds": 5}})
    with pytest.raises(ValidationError, match="namespace"):
        Settings(namespaces={"a:b": {}})
    with pytest.raises(ValidationError, match="empty"):
        Settings(namespaces={"": {"share": 0.1}})
    with pytest.raises(ValidationError, match="share must be 0 or at least"):
        Settings(namespaces={"a": {"share": 1e-7}})
    with pytest.raises(ValidationError, match="needs a share"):
        Settings(namespaces={"a": {"policy": "lfu"}})
    with pytest.raises(ValidationError, match=r"at most 0\.95 together"):
        Settings(namespaces={"a": {"share": 0.5}, "b": {"share": 0.5}})
    with pytest.raises(ValidationError, match="max_message_bytes"):
        Settings(max_value_bytes=MiB, max_message_bytes=MiB)
    assert Settings(listen="[::]:7700", advertise="10.0.0.1:7700").advertise == "10.0.0.1:7700"


def test_every_policy_of_the_store_can_be_set() -> None:
    assert get_args(Settings.model_fields["policy"].annotation) == tuple(POLICIES)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), "node_id", "other")  # noqa: B010


@pytest.mark.parametrize("address", ["localhost:80", "[::1]:7700", "10.0.0.1:0"])
def test_addresses(address: str) -> None:
    assert join_address(*split_address(address)) == address
