"""The headers with which a gRPC call begins and ends (gRPC over HTTP/2, PROTOCOL-HTTP2.md)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import NamedTuple
from urllib.parse import quote, unquote

from hpack import Encoder, NeverIndexedHeaderTuple

from cacheservice.http2.stream import End, Headers

OK = 0
CANCELLED = 1
UNKNOWN = 2
DEADLINE_EXCEEDED = 4
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

MAX_MESSAGE_CHARACTERS = 1_024
MAX_DETAILS_BYTES = 4_096
"""Of a status: clients take some 8 KiB of headers. Of a message that is longer the rest is left out, and
details that are longer are left out."""

_SMALLEST_TABLE = b"\x20"
"""Where a client's table of headers has been made smaller, the next headers must say so first (RFC 7541,
section 4.2); to say so when nothing has changed does no harm, as nothing that is sent is kept there."""
_CONTENT_TYPE = "application/grpc"
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_DETAILS = "grpc-status-details-bin"
_UNITS = {"H": 3_600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


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
    """Whether the headers are those of a gRPC call, which may name a format of messages after a + or ;."""
    before, found, after = headers.get("content-type", "").partition(_CONTENT_TYPE)
    is_grpc = bool(found) and not before and after[:1] in ("", "+", ";")
    return is_grpc and headers.get(":method") == "POST"


def timeout_of(headers: dict[str, str]) -> float | None:
    """The seconds that a caller gives the call, or None; ValueError when that cannot be read."""
    text = headers.get("grpc-timeout")
    if text is None:
        return None
    digits, unit = text[:-1], text[-1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 8 and unit in _UNITS):
        raise ValueError(f"the header grpc-timeout: {text[:20]!r}")
    return int(digits) * _UNITS[unit]


def is_answer(headers: dict[str, str]) -> bool:
    """Whether the headers are the first ones of a gRPC call's answer."""
    return headers.get(":status") == "200" and headers.get("content-type", "").startswith(_CONTENT_TYPE)


def trailers(status: CallStatus) -> bytes:
    """The last headers of an answer, as they travel."""
    headers = [("grpc-status", str(status.code))]
    if status.message:
        headers.append(("grpc-message", _quoted(status.message)))
    if status.details and len(status.details) <= MAX_DETAILS_BYTES:
        headers.append((_DETAILS, b64encode(status.details).decode().rstrip("=")))
    return block(headers)


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


def block(headers: Headers) -> bytes:
    """Headers as they travel, whatever else was sent before: so they can be kept, and sent at any time."""
    return bytes(Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in headers]))


def _quoted(message: str) -> str:
    """As it travels; of one that is too long for callers the beginning."""
    quoted = quote(message, safe=_PRINTABLE)
    if len(quoted) <= MAX_MESSAGE_CHARACTERS:
        return quoted
    beginning = message.encode()[: MAX_MESSAGE_CHARACTERS // len("%XX")].decode(errors="ignore")
    return quote(beginning, safe=_PRINTABLE)


def _decoded(text: str) -> bytes:
    """Of several values, which are allowed to stand in one line, the first."""
    first = text.partition(",")[0]
    try:
        return b64decode(first + "=" * (-len(first) % 4))
    except ValueError:
        return b""


RESPONSE = _SMALLEST_TABLE + block(
    [(":status", "200"), ("content-type", _CONTENT_TYPE), ("grpc-accept-encoding", "identity,gzip")]
)
"""A server's first headers."""
DONE = CallStatus(OK)
END = trailers(DONE)
"""And its last, when all went well."""
NO_GRPC = _SMALLEST_TABLE + block([(":status", "415")])
"""Its only ones to a request that is no gRPC call."""
