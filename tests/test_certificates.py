from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cacheservice.certificates import Certificates, Tls
from cacheservice.config import Settings
from cacheservice.handshake import explained
from tests.certificates import NAME, Authority, settings_of


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> Tls:
    return authority.issue(tmp_path / "own")


def with_file(tls: Tls, field: str, path: Path) -> Tls:
    paths: Any = {"ca": tls.ca, "cert": tls.cert, "key": tls.key, field: path}
    return Tls(**paths)


def test_what_is_in_the_files(tls: Tls) -> None:
    pems = Certificates(tls).current()
    assert pems == tuple(Path(path).read_bytes() for path in (tls.ca, tls.cert, tls.key) if path)
    assert Certificates(Tls(tls.ca)).current() == (pems.ca, None, None)


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_files_that_cannot_be_used_are_refused_by_name(tls: Tls, tmp_path: Path, field: str) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff garbage")
    with pytest.raises(ValueError, match=f"^tls.{field}: cannot read .*missing: No such file"):
        Certificates(with_file(tls, field, tmp_path / "missing"))
    with pytest.raises(ValueError, match=f"^tls.{field}: .*garbage has no .* as PEM"):
        Certificates(with_file(tls, field, garbage))


def test_the_key_of_another_certificate_is_refused(authority: Authority, tls: Tls, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tls.key: .*tls\.key is not the key of .*tls\.crt$"):
        Certificates(replace(tls, key=authority.issue(tmp_path / "other").key))


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(tls: Tls, tmp_path: Path) -> None:
    assert tls.key is not None
    locked = tmp_path / "locked"
    command = ["openssl", "pkey", "-aes128", "-passout", "pass:secret", "-in", tls.key, "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ValueError, match=r"^tls\.key: .* without passphrase"):
        Certificates(replace(tls, key=locked))


def test_certificate_and_key_belong_together(tls: Tls) -> None:
    for half in (replace(tls, key=None), replace(tls, cert=None)):
        with pytest.raises(ValueError, match=r"tls\.cert and tls\.key must be given together"):
            Certificates(half)


def test_new_files_are_read_once(authority: Authority, tls: Tls) -> None:
    certificates = Certificates(tls)
    before = certificates.current()
    assert certificates.current() is before
    authority.issue(Path(tls.ca).parent)
    after = certificates.current()
    assert after != before
    assert after.cert == Path(tls.cert or "").read_bytes()
    assert certificates.current() is after


def test_files_that_were_only_touched_are_the_same(tls: Tls) -> None:
    certificates = Certificates(tls)
    before = certificates.current()
    os.utime(tls.ca, (1, 1))
    assert certificates.current() is before


def test_files_behind_a_link_are_new_when_it_points_elsewhere(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes replaces what is in a volume."""
    authority.issue(tmp_path / "first")
    authority.issue(tmp_path / "second")
    data = tmp_path / "data"
    data.symlink_to("first")
    certificates = Certificates(Tls(data / "ca.crt", data / "tls.crt", data / "tls.key"))
    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").rename(data)
    assert certificates.current().cert == (tmp_path / "second" / "tls.crt").read_bytes()


def test_new_files_that_cannot_be_used_are_logged_once_and_left_alone(
    authority: Authority, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(tls)
    before = certificates.current()
    other = authority.issue(tmp_path / "other")
    Path(tls.cert or "").write_bytes(Path(other.cert or "").read_bytes())
    with caplog.at_level(logging.WARNING):
        assert certificates.current() is before
        assert certificates.current() is before
    [record] = caplog.records
    assert "is not the key of" in record.message
    Path(tls.key or "").write_bytes(Path(other.key or "").read_bytes())
    assert certificates.current().key == Path(other.key or "").read_bytes()


def test_files_that_are_replaced_while_they_are_read_are_read_again(
    authority: Authority, tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was there before the certificate, and that is when they are read."""
    certificates = Certificates(tls)
    before = certificates.current()
    other = Certificates(authority.issue(tmp_path / "other")).current()
    assert other.cert is not None
    assert other.key is not None
    Path(tls.key or "").write_bytes(other.key)
    check = Certificates._check

    def replaced_and_checked(self: Certificates, found: Mapping[str, bytes]) -> object:
        Path(tls.cert or "").write_bytes(other.cert or b"")
        return check(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(Certificates, "_check", replaced_and_checked)
        assert certificates.current() is before
    assert certificates.current() == other


def test_settings_name_what_is_wrong_with_the_files(tls: Tls, tmp_path: Path) -> None:
    assert Settings().certificates() is None
    files = settings_of(tls)
    found = Settings(**files).certificates()  # type: ignore[arg-type]
    assert found is not None
    assert found.current() == Certificates(tls).current()
    garbage = tmp_path / "garbage"
    garbage.touch()
    for name in ("tls_ca", "tls_cert", "tls_key"):
        with pytest.raises(ValidationError, match=f"{name}: .*garbage has no"):
            Settings(**{**files, name: garbage})  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match=f"(?s){name}.*does not point to a file"):
            Settings(**{**files, name: tmp_path / "missing"})  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="tls_cert, tls_key and tls_ca must be given together"):
            Settings(**{**files, name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("tls_client_auth", "require"), ("tls_client_auth", "none"), ("tls_server_name", NAME)],
)
def test_settings_for_tls_are_refused_without_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(ValidationError, match=f"{name} without tls_cert and tls_key and tls_ca"):
        Settings(**{name: value})  # type: ignore[arg-type]
    monkeypatch.setenv(f"CACHESERVICE_{name.upper()}", value)
    with pytest.raises(ValidationError, match=f"{name} without tls_cert and tls_key and tls_ca"):
        Settings()


def test_only_attempts_to_connect_are_explained() -> None:
    assert explained("Socket closed") == "Socket closed"
    assert "perhaps it wants TLS" in explained(
        "failed to connect to all addresses; last error: Socket closed"
    )
    refused = "failed to connect to all addresses; last error: Connection refused"
    assert explained(refused) == refused
