from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.client.compression import COMPRESSED, MAX_BYTES, UNCHANGED, compress, decompress

beginnings = st.sampled_from([b"", COMPRESSED, UNCHANGED, COMPRESSED[:-1], COMPRESSED + UNCHANGED])
bodies = st.binary(max_size=200) | st.builds(bytes.__mul__, st.binary(max_size=3), st.integers(0, 1_000))


@given(beginning=beginnings, body=bodies, above=st.integers(0, 300))
def test_any_bytes_survive(beginning: bytes, body: bytes, above: int) -> None:
    data = beginning + body
    stored = compress(data, above)
    assert decompress(stored) == data
    assert len(stored) <= len(data) + len(UNCHANGED)
    if stored.startswith(COMPRESSED):
        assert above < len(data)
        assert len(stored) < len(data)
        assert zlib.decompress(stored[len(COMPRESSED) :]) == data
    elif not beginning:
        assert stored == data or data.startswith((COMPRESSED, UNCHANGED))


@given(stored=st.builds(bytes.__add__, beginnings, st.binary(max_size=100)))
def test_bytes_that_nobody_compressed_are_an_error_or_as_they_are(stored: bytes) -> None:
    try:
        data = decompress(stored)
    except (ValueError, zlib.error):
        assert stored.startswith(COMPRESSED)
    else:
        assert decompress(compress(data, 0)) == data


def test_what_is_long_enough_is_compressed() -> None:
    assert compress(bytes(1_000), 1_000) == bytes(1_000)
    assert len(compress(bytes(1_001), 1_000)) < 50
    assert compress(b"", 0) == b""
    assert compress(b"5", 0) == b"5"


@pytest.mark.parametrize(
    "stored",
    [
        COMPRESSED,
        COMPRESSED + b"text",
        compress(bytes(10_000), 0)[:-1],
        compress(bytes(10_000), 0) + b"x",
        compress(bytes(10_000), 0)[:-1] + b"x",
    ],
    ids=["nothing", "text", "cut", "more", "checksum"],
)
def test_damaged_bytes(stored: bytes) -> None:
    with pytest.raises((ValueError, zlib.error)):
        decompress(stored)


def test_the_longest_that_is_compressed_can_be_read() -> None:
    longest = bytes(MAX_BYTES)
    stored = compress(longest, 0)
    assert stored.startswith(COMPRESSED)
    assert decompress(stored) == longest
    assert compress(longest + b"x", 0) == longest + b"x"


def test_a_bomb_takes_no_more_memory_than_the_longest() -> None:
    mebibyte, stream = bytes(1024 * 1024), zlib.compressobj()
    first, second = (stream.compress(mebibyte) + stream.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = COMPRESSED + first + 4_095 * second
    assert len(bomb) < 8 * 1024 * 1024
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 67108864 bytes"):
            decompress(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_BYTES
    finally:
        tracemalloc.stop()
