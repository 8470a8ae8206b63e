"""Frames of HTTP/2 (RFC 9113, section 4): nine bytes of header, and a payload."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first."""
HEADER_BYTES: Final = 9
FIRST_FRAME_BYTES: Final = 16_384
"""Of the payload of a frame that either side takes before it has said more; none may take less."""
MAX_FRAME_BYTES: Final = 256 * 1024
"""Of DATA that this side takes, and sends: each frame costs either side as much as some ten keys. Of what the
other kinds carry, the first size is more than anybody needs."""
FIRST_WINDOW: Final = 65_535
"""Bytes that either side may send, on a stream and on the connection, before the other has said more."""
MAX_WINDOW: Final = 2**31 - 1
LARGEST_FRAME: Final = 2**24 - 1
"""That can be written in a header."""


class Kind:
    """What a frame is for; those of any other kind are to be ignored. Plain numbers, as those of Flag."""

    DATA: Final = 0
    HEADERS: Final = 1
    PRIORITY: Final = 2
    RST_STREAM: Final = 3
    SETTINGS: Final = 4
    PUSH_PROMISE: Final = 5
    PING: Final = 6
    GOAWAY: Final = 7
    WINDOW_UPDATE: Final = 8
    CONTINUATION: Final = 9


class Flag:
    """ACK is of SETTINGS and PING, END_STREAM of DATA and HEADERS.

    Plain numbers: to combine two of an IntFlag takes as long as all else that is done with a frame.
    """

    ACK: Final = 0x01
    END_STREAM: Final = 0x01
    END_HEADERS: Final = 0x04
    PADDED: Final = 0x08
    PRIORITY: Final = 0x20


class Setting(IntEnum):
    """Those that matter to streams."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or connection ends."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class ProtocolError(Exception):
    """The other side does not keep to the protocol; the connection cannot go on."""

    def __init__(self, code: ErrorCode, why: str) -> None:
        super().__init__(f"{why} ({code.name})")
        self.code = code
        self.why = why


_PREFIX = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_UINT32 = struct.Struct(">I")


def header(kind: int, flags: int, stream: int, length: int) -> bytes:
    """What stands before a payload of so many bytes."""
    return _PREFIX.pack(length >> 8, length & 0xFF, kind, flags, stream)


def parse_header(data: bytes, position: int) -> tuple[int, int, int, int, int]:
    """Of the header that begins at the position: the upper and the lower part of the payload's length (16
    and 8 bits), kind, flags and stream."""
    return _PREFIX.unpack_from(data, position)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return header(kind, flags, stream, len(payload)) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A frame that says what holds for this side."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def parse_settings(payload: bytes) -> dict[int, int]:
    """Raises ProtocolError when the payload is no list of settings."""
    if len(payload) % _SETTING.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a strange length")
    return dict(_SETTING.iter_unpack(payload))


def window_update(stream: int, size: int) -> bytes:
    """A frame that lets the other side send so many bytes more; stream 0 is the connection."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, _UINT32.pack(size))


def reset(stream: int, code: ErrorCode) -> bytes:
    """A frame that ends a stream at once."""
    return frame(Kind.RST_STREAM, 0, stream, _UINT32.pack(code))


def goaway(last_stream: int, code: ErrorCode, why: str = "") -> bytes:
    """A frame that says that streams after `last_stream` are not served."""
    return frame(Kind.GOAWAY, 0, 0, _UINT32.pack(last_stream) + _UINT32.pack(code) + why.encode()[:1_024])


def parse_uint32(payload: bytes, what: str) -> int:
    """The number, of 31 bits, that the payload begins with. ProtocolError when it is too short."""
    if len(payload) < _UINT32.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes")
    return int.from_bytes(payload[:4]) & MAX_WINDOW


def unpadded(kind: int, flags: int, payload: bytes) -> bytes:
    """What DATA or HEADERS carry, without padding and priority."""
    start = 0
    end = len(payload)
    if flags & Flag.PADDED:
        if not payload:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "padding without a length")
        start, end = 1, end - payload[0]
    if kind == Kind.HEADERS and flags & Flag.PRIORITY:
        start += 5
    if start > end:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "more padding than there is payload")
    return payload[start:end]
