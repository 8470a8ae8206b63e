"""What is appended to serialised messages, where that costs less than to have it serialised with them.

Two messages of one type, one after the other, are one message: messages within are merged, and repeated
fields joined (Protocol Buffers, "Encoding", on merging).
"""

from __future__ import annotations

from collections.abc import Sequence

from cacheservice.v1 import cache_pb2 as pb

_LENGTH_DELIMITED = 2


def with_reads(response: bytes, outcomes: Sequence[int], values: Sequence[bytes]) -> bytes:
    """A serialised response to reads, and the outcomes, each below 128, and the values of the reads, which
    are copied this once."""
    if not outcomes:
        return response
    before = b"".join((_OUTCOMES, _varint(len(outcomes)), bytes(outcomes)))
    first = len(values[0])
    if all(len(value) == first for value in values):
        prefix = _VALUES + _varint(first)
        size = len(before) + len(values) * (len(prefix) + first)
        return prefix.join((b"".join((response, _GET, _varint(size), before)), *values))
    parts: list[bytes] = [b"", b"", b"", before]
    size = len(before)
    for value in values:
        prefix = _VALUES + _varint(len(value))
        size += len(prefix) + len(value)
        parts += (prefix, value)
    parts[:3] = response, _GET, _varint(size)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    if number <= 0x7F:
        return _SMALL[number]
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED)


_SMALL = [bytes((number,)) for number in range(0x80)]
_GET = _tag(pb.ExchangeResponse.GET_FIELD_NUMBER)
_OUTCOMES = _tag(pb.GetResultColumns.OUTCOMES_FIELD_NUMBER)
_VALUES = _tag(pb.GetResultColumns.VALUES_FIELD_NUMBER)
