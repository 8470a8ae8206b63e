"""The files with certificates that TLS needs, and what is in them, also after they were replaced."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_log = logging.getLogger(__name__)

FilePath = str | os.PathLike[str]
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files.

    `ca` has the certificates of who may sign the nodes' certificates. `cert` (with all intermediate ones) and
    `key` (without passphrase) are this side's own, which nodes may require of clients; both or neither.
    `server_name` is a name that the certificate of every node has, where it has not that of its address.
    """

    ca: FilePath
    cert: FilePath | None = None
    key: FilePath | None = None
    server_name: str = ""


class Pems(NamedTuple):
    """What is in the files."""

    ca: bytes
    cert: bytes | None
    key: bytes | None


class _Contexts(NamedTuple):
    """The same for connections that are not gRPC's own."""

    client: ssl.SSLContext
    server: ssl.SSLContext


class Certificates:
    """What is in the files, read again when they have changed; safe to use from several threads.

    ValueError when they cannot be used at first, naming the field, after `prefix`. Later that is only logged,
    and what was read before remains in use.
    """

    def __init__(self, tls: Tls, prefix: str = "tls.") -> None:
        self.server_name = tls.server_name
        self._prefix = prefix
        fields = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
        self._paths = {field: os.fspath(path) for field, path in fields.items() if path is not None}
        if len(self._paths) == 2:
            raise ValueError(f"{prefix}cert and {prefix}key must be given together")
        self._stamps = self._stamp()
        self._pems, self._contexts = self._read(self._stamps)

    def current(self) -> Pems:
        """The same object until what is in the files has changed."""
        stamps = self._stamp()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                pems, contexts = self._read(stamps)
            except ValueError as error:
                _log.warning("%s; the certificates that were read before remain in use", error)
            else:
                if pems != self._pems:
                    self._pems, self._contexts = pems, contexts
                    _log.info("read new certificates from %s", ", ".join(self._paths.values()))
        return self._pems

    def client_context(self) -> ssl.SSLContext:
        """For a connection that is opened now."""
        self.current()
        return self._contexts.client

    def server_context(self, *, ask_clients: bool) -> ssl.SSLContext:
        """For a connection that is accepted now. `ask_clients`: for a certificate of the CA's."""
        self.current()
        context = self._contexts.server
        context.verify_mode = ssl.CERT_REQUIRED if ask_clients else ssl.CERT_NONE
        return context

    def _stamp(self) -> dict[str, Stamp | None]:
        return {path: _stamp(path) for path in self._paths.values()}

    def _read(self, stamps: dict[str, Stamp | None]) -> tuple[Pems, _Contexts]:
        """ValueError also when the files have other `stamps` now: what was read may be of two kinds."""
        found: dict[str, bytes] = {}
        for field, path in self._paths.items():
            try:
                with open(path, "rb") as file:
                    found[field] = file.read()
            except OSError as error:
                raise ValueError(f"{self._prefix}{field}: cannot read {path}: {error.strerror}") from None
        contexts = self._check(found)
        for field, path in self._paths.items():
            if _stamp(path) != stamps[path]:
                raise ValueError(f"{self._prefix}{field}: {path} was replaced while it was read")
        return Pems(found["ca"], found.get("cert"), found.get("key")), contexts

    def _check(self, found: Mapping[str, bytes]) -> _Contexts:
        """With OpenSSL: gRPC itself refuses bad files without saying why."""
        client, server = ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER
        return _Contexts(self._context(client, found), self._context(server, found))

    def _context(self, side: int, found: Mapping[str, bytes]) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.set_alpn_protocols(["h2"])
        for field in sorted(found.keys() - {"key"}):
            trusting = context if field == "ca" else ssl.SSLContext(side)
            try:
                trusting.load_verify_locations(cadata=found[field].decode("ascii", "ignore"))
            except (ssl.SSLError, ValueError):
                problem = f"{self._paths[field]} has no certificate as PEM"
                raise ValueError(f"{self._prefix}{field}: {problem}") from None
        if "key" in found:
            try:
                context.load_cert_chain(self._paths["cert"], self._paths["key"], password="")
            except (ssl.SSLError, OSError) as error:
                belongs = getattr(error, "reason", None) != "KEY_VALUES_MISMATCH"
                lacks = "has no private key as PEM without passphrase"
                problem = lacks if belongs else f"is not the key of {self._paths['cert']}"
                raise ValueError(f"{self._prefix}key: {self._paths['key']} {problem}") from None
        return context


def _stamp(path: str) -> Stamp | None:
    """What differs when the file, or the file that a link points to, was replaced or written."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size)
