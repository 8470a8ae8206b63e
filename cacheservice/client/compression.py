"""Bytes that are compressed where that makes them shorter, and marked then.

All others stay as they are, for readers that know nothing of this; but for those that begin with a marker
themselves, which get one that says so. No UTF-8, JSON, pickle or MessagePack begins with the first byte of
the markers.
"""

from __future__ import annotations

import zlib

COMPRESSED = b"\xc1CSz"
"""What follows is a zlib stream (RFC 1950)."""
UNCHANGED = b"\xc1CS="
"""What follows is the bytes themselves."""
MAX_BYTES = 64 * 1024 * 1024
"""Of bytes that are compressed, or decompressed again; longer ones are not compressed."""

_LEVEL = 1


def compress(data: bytes, above: int) -> bytes:
    """The bytes as they are stored; compressed if there are more than `above`."""
    if above < len(data) <= MAX_BYTES:
        compressed = COMPRESSED + zlib.compress(data, _LEVEL)
        if len(compressed) < len(data):
            return compressed
    return UNCHANGED + data if data.startswith((COMPRESSED, UNCHANGED)) else data


def decompress(data: bytes) -> bytes:
    """The bytes of which these are stored. ValueError or zlib.error if `compress` cannot have made them."""
    if data.startswith(UNCHANGED):
        return data[len(UNCHANGED) :]
    if not data.startswith(COMPRESSED):
        return data
    stream = zlib.decompressobj()
    whole = stream.decompress(memoryview(data)[len(COMPRESSED) :], MAX_BYTES + 1)
    if len(whole) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes when decompressed")
    if not stream.eof:
        raise ValueError("the compressed bytes end too early")
    if stream.unused_data:
        raise ValueError("there are bytes after the end of the compressed ones")
    return whole
