"""Whether the headers of a request are well-formed (RFC 9113, sections 8.2 and 8.3)."""

from __future__ import annotations

from collections.abc import Iterable

_PSEUDO = (":method", ":scheme", ":path", ":authority")
_OF_CONNECTIONS = ("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade")


class Malformed(Exception):
    """Headers that no request may have."""


def checked(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers by name; of those that come several times the last one, but none of the request's own."""
    headers: dict[str, str] = {}
    is_own = True
    for name, value in fields:
        if name[:1] == ":":
            if not is_own or name not in _PSEUDO or name in headers:
                raise Malformed(name)
        else:
            is_own = False
            if name != name.lower() or name in _OF_CONNECTIONS or (name == "te" and value != "trailers"):
                raise Malformed(name)
        headers[name] = value
    if not (headers.get(":method") and headers.get(":scheme") and headers.get(":path")):
        raise Malformed("a request without method, scheme or path")
    return headers
