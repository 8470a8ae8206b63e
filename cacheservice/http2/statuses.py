"""The headers with which a gRPC call begins and ends (gRPC over HTTP/2, PROTOCOL-HTTP2.md)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import NamedTuple
from urllib.parse import quote, unquote

from cacheservice.http2.stream import End, Headers

OK = 0
UNKNOWN = 2
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
UNAVAILABLE = 14

_CONTENT_TYPE = "application/grpc"
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_DETAILS = "grpc-status-details-bin"


class CallStatus(NamedTuple):
    """The code, the message for people, and a serialised google.rpc.Status, or none."""

    code: int
    message: str = ""
    details: bytes = b""


def request(path: str, authority: str, *, is_tls: bool) -> Headers:
    """The headers of a call."""
    return [
        (":method", "POST"),
        (":scheme", "https" if is_tls else "http"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", _CONTENT_TYPE),
    ]


def is_call(headers: dict[str, str]) -> bool:
    """Whether the headers are those of a gRPC call."""
    return headers.get(":method") == "POST" and headers.get("content-type", "").startswith(_CONTENT_TYPE)


def is_answer(headers: dict[str, str]) -> bool:
    """Whether the headers are the first ones of a gRPC call's answer."""
    return headers.get(":status") == "200" and headers.get("content-type", "").startswith(_CONTENT_TYPE)


def response() -> Headers:
    """The first headers of an answer."""
    return [(":status", "200"), ("content-type", _CONTENT_TYPE)]


def trailers(status: CallStatus) -> Headers:
    """The last headers of an answer."""
    headers = [("grpc-status", str(status.code))]
    if status.message:
        headers.append(("grpc-message", quote(status.message, safe=_PRINTABLE)))
    if status.details:
        headers.append((_DETAILS, b64encode(status.details).decode().rstrip("=")))
    return headers


def status_of(end: End) -> CallStatus:
    """The status with which the other side ended a call; UNAVAILABLE when it did not."""
    headers = end.headers
    if "grpc-status" not in headers:
        http = headers.get(":status", "200")
        why = end.why or ("the call ended without a status" if http == "200" else f"HTTP status {http}")
        return CallStatus(UNAVAILABLE, why)
    code = headers["grpc-status"]
    return CallStatus(
        int(code) if code.isascii() and code.isdigit() and len(code) <= 2 else UNKNOWN,
        unquote(headers.get("grpc-message", "")),
        _decoded(headers.get(_DETAILS, "")),
    )


def _decoded(text: str) -> bytes:
    """Of several values, which are allowed to stand in one line, the first."""
    first = text.partition(",")[0]
    try:
        return b64decode(first + "=" * (-len(first) % 4))
    except ValueError:
        return b""
