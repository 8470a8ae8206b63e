"""Bytes of somebody who does not keep to the protocol: they cost that connection, and nothing else."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheservice.http2 import frames
from cacheservice.http2.connection import (
    MAX_BLOCK_BYTES,
    MAX_HEADER_BYTES,
    MAX_IDLE_FRAMES,
    MAX_STREAMS,
    MAX_UNSENT_BYTES,
    Connection,
)
from cacheservice.http2.frames import PREFACE, ErrorCode, Flag, Kind, ProtocolError, Setting, frame
from cacheservice.http2.stream import WINDOW_BYTES, Stream
from tests.http2.both_ends import MAX_MESSAGE_BYTES, REQUEST, Heard, joining

END_HEADERS, END_STREAM = Flag.END_HEADERS, Flag.END_STREAM
SETTINGS = frames.settings({})


class Victim:
    """One side, with a stream that is open, and what it has written."""

    def __init__(self, is_server: bool) -> None:
        self.written: list[bytes] = []
        self.heard: list[Heard] = []
        accept = self._accept if is_server else None
        write = self.written.append
        self.connection = Connection(write, joining(write), MAX_MESSAGE_BYTES, accept)
        self.connection.begin()
        self.connection.receive((PREFACE if is_server else b"") + SETTINGS)
        self.encoder = Encoder()
        if is_server:
            self.receive(self.headers(1))
        else:
            self.heard.append(Heard())
            self.connection.open(REQUEST, self.heard[0])

    def _accept(self, stream: Stream, headers: dict[str, str]) -> None:
        self.heard.append(Heard())
        stream.receiver = self.heard[-1]
        stream.respond()

    def headers(self, stream: int, flags: int = END_HEADERS) -> bytes:
        return frame(Kind.HEADERS, flags, stream, self.encoder.encode(REQUEST))

    def receive(self, data: bytes) -> None:
        self.connection.receive(data)

    def refuses(self, data: bytes, code: ErrorCode) -> None:
        """Ends the connection, and tells the other side why."""
        with pytest.raises(ProtocolError) as caught:
            self.receive(data)
        assert caught.value.code == code
        assert self.written[-1][3] == Kind.GOAWAY
        assert int.from_bytes(self.written[-1][13:17]) == code

    def has_reset(self, number: int, code: ErrorCode) -> None:
        """Has ended the stream, and nothing else."""
        assert frames.reset(number, code) in self.written
        assert number not in [stream.id for stream in self.connection.streams]
        assert len(self.heard[0].ends) == 1


@pytest.fixture(params=[True, False], ids=["server", "client"])
def victim(request: pytest.FixtureRequest) -> Victim:
    return Victim(request.param)


@pytest.fixture
def server() -> Victim:
    return Victim(is_server=True)


PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        bytes, st.sampled_from([16_383, 16_384, 16_385, frames.MAX_FRAME_BYTES, frames.MAX_FRAME_BYTES + 1])
    ),
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5).map(
        lambda pairs: bytes(Encoder().encode([(name.encode(), value.encode()) for name, value in pairs]))
    ),
)
KINDS = st.one_of(st.integers(0, 10), st.integers(0, 255))
FLAGS = st.one_of(st.sampled_from([0, 1, 4, 5, 8, 9, 13, 0x24, 0x2C]), st.integers(0, 255))
NUMBERS = st.one_of(st.integers(0, 8), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1]))
FRAMES = st.builds(frame, KINDS, FLAGS, NUMBERS, PAYLOADS)
TRUNCATED = st.builds(lambda data, cut: data[: len(data) - cut], FRAMES, st.integers(1, 5))
BYTES = st.lists(st.one_of(FRAMES, FRAMES, FRAMES, TRUNCATED, st.binary(max_size=30)), max_size=12)


def held(connection: Connection) -> int:
    """Bytes that the connection keeps for what may come, about."""
    parts = [part for stream in connection.streams for part in stream._parts]
    return len(connection._buffer) + len(connection._headers) + sum(map(sys.getsizeof, parts))


@settings(max_examples=300)
@given(data=BYTES, is_server=st.booleans(), size=st.integers(1, 200))
def test_nothing_but_a_protocol_error_comes_of_it(data: list[bytes], is_server: bool, size: int) -> None:
    victim = Victim(is_server)
    whole = b"".join(data)
    chunks = data if size > 100 else [whole[at : at + size] for at in range(0, len(whole), size)]
    with suppress(ProtocolError):
        for chunk in chunks:
            victim.receive(chunk)
    assert held(victim.connection) <= len(whole) + 200 * len(data)
    victim.connection.lost("cut")
    assert all(len(heard.ends) <= 1 for heard in victim.heard)
    assert victim.connection.streams == []


@settings(max_examples=100)
@given(st.binary(max_size=100))
def test_nor_of_what_is_no_http2_at_all(data: bytes) -> None:
    for accept in (None, lambda _, __: None):
        connection = Connection(lambda _: None, lambda _: None, MAX_MESSAGE_BYTES, accept)
        connection.begin()
        with suppress(ProtocolError):
            connection.receive(data)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/1", b"\x16\x03\x01\x02\x00", b"\0"])
def test_who_speaks_something_else_is_found_out_at_once(first: bytes) -> None:
    connection = Connection(lambda _: None, lambda _: None, MAX_MESSAGE_BYTES, lambda _, __: None)
    with pytest.raises(ProtocolError, match="no HTTP/2"):
        connection.receive(first)


BAD = {
    "too large a frame": (
        frames.header(Kind.DATA, 0, 1, frames.MAX_FRAME_BYTES + 1),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "too large a frame of another kind": (
        frames.header(Kind.PING, 0, 0, MAX_BLOCK_BYTES + 1),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "DATA of no stream": (frame(Kind.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA of a stream that never was": (frame(Kind.DATA, 0, 9, b"x"), ErrorCode.PROTOCOL_ERROR),
    "too much padding": (frame(Kind.DATA, Flag.PADDED, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
    "padding without a length": (frame(Kind.DATA, Flag.PADDED, 1), ErrorCode.FRAME_SIZE_ERROR),
    "priority cut off": (
        frame(Kind.HEADERS, Flag.PRIORITY | END_HEADERS, 1, b"abc"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "CONTINUATION of nothing": (frame(Kind.CONTINUATION, END_HEADERS, 1), ErrorCode.PROTOCOL_ERROR),
    "headers not continued": (
        frame(Kind.HEADERS, 0, 1) + frame(Kind.PING, 0, 0, bytes(8)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "DATA amid headers": (frame(Kind.HEADERS, 0, 1) + frame(Kind.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "headers of another stream amid": (
        frame(Kind.HEADERS, 0, 1) + frame(Kind.CONTINUATION, END_HEADERS, 3),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "no header at that index": (
        frame(Kind.HEADERS, END_HEADERS, 1, b"\xff\x7f"),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "a push": (frame(Kind.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS cut off": (frame(Kind.SETTINGS, 0, 0, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "too large a first window": (
        frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "frames that are too small": (
        frames.settings({Setting.MAX_FRAME_SIZE: frames.FIRST_FRAME_BYTES - 1}),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "frames that are too large": (
        frames.settings({Setting.MAX_FRAME_SIZE: 2**24}),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "PING cut off": (frame(Kind.PING, 0, 0, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "a window of nothing more": (frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE cut off": (frame(Kind.WINDOW_UPDATE, 0, 0, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "too large a window of all": (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "too large a window": (frames.window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a window of a stream that never was": (frames.window_update(9, 1), ErrorCode.PROTOCOL_ERROR),
    "a reset of a stream that never was": (frames.reset(9, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM cut off": (frame(Kind.RST_STREAM, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY cut off": (frame(Kind.GOAWAY, 0, 0), ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY of a stream": (frame(Kind.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "PING of a stream": (frame(Kind.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS of a stream": (frame(Kind.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS that are taken, with more": (
        frame(Kind.SETTINGS, Flag.ACK, 0, bytes(6)),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "a push that is neither on nor off": (
        frames.settings({Setting.ENABLE_PUSH: 2}),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "PRIORITY of no stream": (frame(Kind.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY cut off": (frame(Kind.PRIORITY, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "headers of no stream": (frame(Kind.HEADERS, END_HEADERS, 0), ErrorCode.PROTOCOL_ERROR),
    "a reset of no stream": (frames.reset(0, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD.keys())
def test_what_breaks_the_protocol(victim: Victim, data: bytes, code: ErrorCode) -> None:
    victim.refuses(data, code)


def test_settings_come_first() -> None:
    connection = Connection(lambda _: None, lambda _: None, MAX_MESSAGE_BYTES, lambda _, __: None)
    with pytest.raises(ProtocolError, match="no SETTINGS at first"):
        connection.receive(PREFACE + frame(Kind.DATA, 0, 1, b"x"))


def test_after_the_last_of_a_request_comes_no_more(server: Victim) -> None:
    server.receive(frame(Kind.DATA, END_STREAM, 1, b"\0\0\0\0\1x"))
    server.receive(frame(Kind.DATA, END_STREAM, 1, b"\0\0\0\0\1x"))
    server.has_reset(1, ErrorCode.STREAM_CLOSED)
    assert server.heard[0].messages == [b"x"]


@pytest.mark.parametrize("flags", [END_HEADERS, END_HEADERS | END_STREAM])
def test_nor_headers(server: Victim, flags: int) -> None:
    server.receive(frame(Kind.DATA, END_STREAM, 1))
    server.receive(server.headers(1, flags))
    server.has_reset(1, ErrorCode.PROTOCOL_ERROR)


def test_headers_amid_a_request(server: Victim) -> None:
    server.receive(server.headers(1))
    server.has_reset(1, ErrorCode.PROTOCOL_ERROR)


def test_what_is_no_grpc_message_ends_its_call_alone(server: Victim) -> None:
    server.receive(server.headers(3))
    server.receive(frame(Kind.DATA, 0, 1, b"\2\0\0\0\1x") + frame(Kind.DATA, 0, 1, b"x"))
    assert [stream.id for stream in server.connection.streams] == [3]
    assert [len(heard.ends) for heard in server.heard] == [1, 0]


def test_headers_at_the_end_of_a_request_are_its_end(server: Victim) -> None:
    server.receive(server.headers(1, END_HEADERS | END_STREAM))
    assert server.heard[0].is_last


METHOD, SCHEME, PATH = (":method", "POST"), (":scheme", "http"), (":path", "/a/B")


@pytest.mark.parametrize(
    "fields",
    [
        [SCHEME, PATH],
        [METHOD, PATH],
        [METHOD, SCHEME],
        [METHOD, SCHEME, (":path", "")],
        [METHOD, METHOD, SCHEME, PATH],
        [METHOD, SCHEME, ("te", "trailers"), PATH],
        [METHOD, SCHEME, PATH, (":status", "200")],
        [METHOD, SCHEME, PATH, (":what", "x")],
        [METHOD, SCHEME, PATH, ("Content-Type", "application/grpc")],
        [METHOD, SCHEME, PATH, ("connection", "close")],
        [METHOD, SCHEME, PATH, ("te", "gzip")],
    ],
    ids=str,
)
def test_a_malformed_request_is_reset_alone(server: Victim, fields: list[tuple[str, str]]) -> None:
    server.receive(frame(Kind.HEADERS, END_HEADERS, 3, server.encoder.encode(fields)))
    assert server.written[-1] == frames.reset(3, ErrorCode.PROTOCOL_ERROR)
    server.receive(frame(Kind.DATA, END_STREAM, 3, b"\0\0\0\0\1x"))
    assert [stream.id for stream in server.connection.streams] == [1]


def test_streams_of_clients_have_odd_numbers_that_grow(server: Victim) -> None:
    server.refuses(server.headers(4), ErrorCode.PROTOCOL_ERROR)


def test_more_data_than_the_window(server: Victim) -> None:
    [stream] = server.connection.streams
    stream.pause()
    part = frame(Kind.DATA, 0, 1, bytes(16_380))
    for _ in range(WINDOW_BYTES // 16_380):
        server.receive(part)
    server.refuses(part, ErrorCode.FLOW_CONTROL_ERROR)


def test_what_comes_late_for_a_stream_that_has_ended_is_nothing(victim: Victim) -> None:
    victim.connection.streams[0].cancel()
    for late in (frame(Kind.DATA, 0, 1, b"x"), frames.window_update(1, 1), frames.reset(1, ErrorCode.CANCEL)):
        victim.receive(late)
    assert victim.connection.streams == []


def test_kinds_that_nobody_knows_are_nothing(victim: Victim) -> None:
    victim.receive(frame(Kind.PRIORITY, 0, 1, bytes(5)) + frame(77, 255, 2**31 - 1, b"what"))
    assert len(victim.connection.streams) == 1


PING = frame(Kind.PING, 0, 0, bytes(8))
EMPTY_MESSAGE = frame(Kind.DATA, 0, 1, b"\0\0\0\0\0")

FLOODS = {
    "PING": PING,
    "SETTINGS": SETTINGS,
    "PRIORITY": frame(Kind.PRIORITY, 0, 1, bytes(5)),
    "late DATA": frames.reset(1, ErrorCode.CANCEL) + frame(Kind.DATA, 0, 1, b"x"),
    "empty DATA": frame(Kind.DATA, 0, 1),
    "padding": frame(Kind.DATA, Flag.PADDED, 1, b"\1\0"),
}


def floods(server: Victim, parts: Iterator[bytes]) -> None:
    """Receives part after part, until the connection is closed for it, and not for anything else."""
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM"):
        deque(map(server.receive, parts), maxlen=0)
    assert len(server.connection.streams) <= MAX_STREAMS


@pytest.mark.parametrize("part", FLOODS.values(), ids=FLOODS.keys())
def test_floods_end(server: Victim, part: bytes) -> None:
    floods(server, repeat(part, MAX_IDLE_FRAMES + 1))


@pytest.mark.parametrize("end", [frames.reset, lambda _, __: b""], ids=["rapid reset", "refused"])
def test_floods_of_streams_end(server: Victim, end: Callable[[int, ErrorCode], bytes]) -> None:
    numbers = range(3, 2 * MAX_IDLE_FRAMES + 5, 2)
    floods(server, (server.headers(number) + end(number, ErrorCode.CANCEL) for number in numbers))


def test_a_flood_of_headers_without_content_ends(server: Victim) -> None:
    server.receive(frame(Kind.HEADERS, 0, 3))
    floods(server, repeat(frame(Kind.CONTINUATION, 0, 3), MAX_IDLE_FRAMES))


def test_what_is_needed_now_and_then_is_no_flood(server: Victim) -> None:
    for _ in range(10):
        for _ in range(MAX_IDLE_FRAMES // 2):
            server.receive(PING)
        server.connection.tick()
    for _ in range(10):
        for _ in range(MAX_IDLE_FRAMES // 2):
            server.receive(PING)
        server.receive(EMPTY_MESSAGE)


def test_answers_that_nobody_reads_are_bounded_however_slowly_they_are_asked_for(server: Victim) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(MAX_IDLE_FRAMES + 1):
            server.connection.tick()
            yield PING + EMPTY_MESSAGE

    server.connection.paused(True)
    floods(server, parts())


def test_headers_without_end(server: Victim) -> None:
    server.receive(frame(Kind.HEADERS, 0, 3, bytes(MAX_BLOCK_BYTES)))
    server.refuses(frame(Kind.CONTINUATION, 0, 3, b"x"), ErrorCode.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize("bulk", [MAX_HEADER_BYTES, 3 * MAX_HEADER_BYTES])
def test_more_headers_than_a_call_may_have_cost_that_call_alone(server: Victim, bulk: int) -> None:
    block = server.encoder.encode([*REQUEST, ("x-large", "~" * bulk)], huffman=False)
    server.receive(frame(Kind.HEADERS, END_HEADERS | END_STREAM, 3, block))
    assert [stream.id for stream in server.connection.streams] == [1]
    headers = dict(Decoder().decode(server.written[-1][frames.HEADER_BYTES :], raw=True))
    assert headers[b"grpc-status"] == b"8"
    server.receive(server.headers(5))
    assert [stream.id for stream in server.connection.streams] == [1, 5]


def test_headers_need_not_be_utf_8(server: Victim) -> None:
    block = server.encoder.encode([*REQUEST, (b"x-user", b"Jos\xe9")])
    server.receive(frame(Kind.HEADERS, END_HEADERS, 3, block))
    assert [stream.id for stream in server.connection.streams] == [1, 3]


def test_who_takes_no_answers_has_no_more_calls(server: Victim) -> None:
    [stream] = server.connection.streams
    part = bytes(1024 * 1024)
    for _ in range(MAX_UNSENT_BYTES // len(part) + 1):
        stream.send(part)
    server.receive(server.headers(3))
    assert server.written[-1] == frames.reset(3, ErrorCode.REFUSED_STREAM)
    server.receive(frames.reset(1, ErrorCode.CANCEL) + server.headers(5))
    assert [stream.id for stream in server.connection.streams] == [5]
    assert server.connection.unsent_bytes == 0


def test_a_few_bytes_that_stand_for_many_headers(server: Victim) -> None:
    """The header is kept in the table, and then named again and again by one byte (CVE-2016-6581)."""
    large = bytes(Encoder().encode([("x-large", "a" * 3_000)]))
    server.refuses(frame(Kind.HEADERS, END_HEADERS, 3, large + b"\xbe" * 5_000), ErrorCode.COMPRESSION_ERROR)


def test_a_number_that_does_not_end(server: Victim) -> None:
    endless = b"\xff" * (MAX_HEADER_BYTES - 100)
    server.refuses(frame(Kind.HEADERS, END_HEADERS, 3, endless), ErrorCode.COMPRESSION_ERROR)


@pytest.mark.parametrize("padding", [False, True])
def test_many_small_parts_of_a_message_take_little_more_than_the_message(
    server: Victim, padding: bool
) -> None:
    server.receive(frame(Kind.DATA, 0, 1, b"\0" + (500_000).to_bytes(4)))
    small = frame(Kind.DATA, Flag.PADDED, 1, b"\0x") if padding else frame(Kind.DATA, 0, 1, b"x")
    for _ in range(400):
        server.receive(small * 500)
    assert held(server.connection) < 400_000
    server.receive(small * 300_000)
    assert server.heard[0].messages == [b"x" * 500_000]
