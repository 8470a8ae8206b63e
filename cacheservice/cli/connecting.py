"""How commands reach a cluster: with the same flags and variables for TLS, whichever command it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any

import typer

from cacheservice.certificates import Certificates, Tls
from cacheservice.cli.output import fail
from cacheservice.client import Client
from cacheservice.config import ENV_PREFIX, flag_of

_HELP = {
    "tls_ca": "A PEM file with who may sign the nodes' certificates. With it, TLS is used.",
    "tls_cert": "A PEM file with a certificate, for nodes that require one.",
    "tls_key": "A PEM file with its private key.",
    "tls_server_name": "A name that the nodes' certificates have, if not that of their addresses.",
}
_tls: ContextVar[Tls | None] = ContextVar("tls", default=None)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """The command with flags for TLS, of which `open_client` makes use.

    The variables are those of a node's settings, so a command in a node's container needs nothing else.
    """

    @wraps(command)
    def with_tls(**arguments: Any) -> None:
        given = {name: arguments.pop(name) or None for name in _HELP}
        _tls.set(_checked(given))
        command(**arguments)

    with_tls.__signature__ = _with_flags(command)  # type: ignore[attr-defined]
    return with_tls


def open_client(targets: Sequence[str], *, timeout: float = 1.0) -> Client:
    """A client of the nodes at the targets, with the TLS that the command's flags ask for."""
    return Client(targets, timeout=timeout, tls=chosen_tls())


def chosen_tls() -> Tls | None:
    """The TLS that the command's flags ask for."""
    return _tls.get()


def _checked(given: dict[str, str | None]) -> Tls | None:
    """Ends the process with code 2 when the files cannot be used."""
    ca = given["tls_ca"]
    if ca is None:
        flags = [flag_of(name) for name, value in given.items() if value]
        if flags:
            fail(f"without --tls-ca nothing is encrypted: {' and '.join(flags)} cannot be used", code=2)
        return None
    tls = Tls(ca, given["tls_cert"], given["tls_key"], given["tls_server_name"] or "")
    try:
        Certificates(tls, "--tls-")
    except ValueError as error:
        fail(str(error), code=2)
    return tls


def _with_flags(command: Callable[..., None]) -> inspect.Signature:
    own = inspect.signature(command, eval_str=True)
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(flag_of(name), envvar=f"{ENV_PREFIX}{name.upper()}", help=meaning),
            ],
        )
        for name, meaning in _HELP.items()
    ]
    return own.replace(parameters=[*own.parameters.values(), *flags])
