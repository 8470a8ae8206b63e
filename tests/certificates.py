"""Certificates for tests, of authorities that only they know."""

from __future__ import annotations

from pathlib import Path

import grpc
import trustme

from cacheservice.certificates import Certificates, Pems, Tls

NAME = "cacheservice.test"
"""What certificates of nodes have beside the addresses."""


class Authority:
    """Signs certificates, and writes them into folders as cert-manager does."""

    def __init__(self) -> None:
        self._authority = trustme.CA()

    def issue(self, folder: Path, *names: str) -> Tls:
        """ca.crt, tls.crt and tls.key in the folder, in place of those that were there."""
        issued = self._authority.issue_cert(*(names or (NAME, "localhost", "127.0.0.1")))
        folder.mkdir(exist_ok=True)
        self._authority.cert_pem.write_to_path(folder / "ca.crt")
        (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(folder / "tls.key")
        return Tls(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")


def settings_of(tls: Tls) -> dict[str, object]:
    """The settings of a node with these files."""
    return {"tls_ca": tls.ca, "tls_cert": tls.cert, "tls_key": tls.key, "tls_server_name": tls.server_name}


def flags_of(tls: Tls) -> list[str]:
    """The same as flags, of `serve` and of the commands that call a cluster."""
    given = {name.replace("_", "-"): value for name, value in settings_of(tls).items() if value}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """For a port of grpcio's server whose new connections have the certificates of then, and ask for one."""
    served = certificates.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        pems = certificates.current()
        if pems is served:
            return None
        served = pems
        return _server_configuration(pems)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(served),
        changed,  # type: ignore[arg-type]  # None is documented to mean no change.
        require_client_authentication=True,
    )


def _server_configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    pairs = [] if pems.key is None or pems.cert is None else [(pems.key, pems.cert)]
    return grpc.ssl_server_certificate_configuration(pairs, pems.ca)
