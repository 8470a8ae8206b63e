"""A client's and a server's connection, wired together in memory, and a notary who reads what goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest

from cacheservice.http2 import connection, frames, stream
from cacheservice.http2.connection import Connection, WriteMany
from cacheservice.http2.frames import Flag, Kind, Setting
from cacheservice.http2.statuses import request
from cacheservice.http2.stream import End, Stream

REQUEST = request("/test/Method", "localhost", is_tls=False)
MAX_MESSAGE_BYTES = 1024 * 1024


def joining(write: Callable[[bytes], object]) -> WriteMany:
    """What writes several parts as `write` does one."""
    return lambda parts: write(b"".join(parts))


class Heard:
    """A receiver who notes what comes."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.ends: list[End] = []
        self.is_last = False
        self.writable_calls = 0

    def message_received(self, message: bytes) -> None:
        assert not self.ends
        self.messages.append(message)

    def headers_received(self, headers: dict[str, str]) -> None:
        self.headers.append(headers)

    def sending_ended(self) -> None:
        self.is_last = True

    def stream_ended(self, end: End) -> None:
        self.ends.append(end)

    def writable(self) -> None:
        self.writable_calls += 1


class Notary:
    """Reads what one side writes: its DATA must keep within the windows that the other side has given."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.data_bytes: dict[int, int] = defaultdict(int)
        self.given: dict[int, int] = defaultdict(int)
        """By the side that writes: to each stream, and to 0 for all of them."""
        self.first_window = frames.FIRST_WINDOW
        self.frame_bytes = frames.FIRST_FRAME_BYTES
        self.other: Notary
        self._position = 0

    def write(self, data: bytes) -> None:
        assert data
        while data:
            upper, lower, kind, flags, number = frames.parse_header(data, 0)
            length = upper << 8 | lower
            payload = data[frames.HEADER_BYTES : frames.HEADER_BYTES + length]
            assert len(payload) == length <= self.other.frame_bytes
            self._note(kind, flags, number, payload)
            self.sent += data[: frames.HEADER_BYTES + length]
            data = data[frames.HEADER_BYTES + length :]

    def take(self, most: int) -> bytes:
        """The next bytes on their way."""
        taken = bytes(self.sent[self._position : self._position + most])
        self._position += len(taken)
        return taken

    @property
    def on_the_way(self) -> int:
        return len(self.sent) - self._position

    def _note(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == Kind.DATA:
            self.data_bytes[number] += len(payload)
            self.data_bytes[0] += len(payload)
            assert self.data_bytes[number] <= self.other.first_window + self.other.given[number]
            assert self.data_bytes[0] <= frames.FIRST_WINDOW + self.other.given[0]
        elif kind == Kind.WINDOW_UPDATE:
            self.given[number] += int.from_bytes(payload)
        elif kind == Kind.SETTINGS and not flags & Flag.ACK:
            values = frames.parse_settings(payload)
            self.first_window = values.get(Setting.INITIAL_WINDOW_SIZE, self.first_window)
            self.frame_bytes = values.get(Setting.MAX_FRAME_SIZE, self.frame_bytes)


class BothEnds:
    """`window`: what either side gives to a stream at first; all streams together have `window_of_all`."""

    def __init__(self, window: int = stream.WINDOW_BYTES, window_of_all: int = 4 * 1024 * 1024) -> None:
        self._patch = pytest.MonkeyPatch()
        for module in (stream, connection):
            self._patch.setattr(module, "WINDOW_BYTES", window)
        self._patch.setattr(stream, "ACKNOWLEDGED_BYTES", window // 4)
        self._patch.setattr(connection, "WINDOW_OF_ALL_BYTES", window_of_all)
        self.from_client, self.from_server = Notary(), Notary()
        self.from_client.other, self.from_server.other = self.from_server, self.from_client
        self.client = Connection(self._client_writes, joining(self._client_writes), MAX_MESSAGE_BYTES)
        self.server = Connection(
            self.from_server.write, joining(self.from_server.write), MAX_MESSAGE_BYTES, self._accept
        )
        self.accepted: dict[int, tuple[Stream, Heard]] = {}
        self.client.begin()
        self.server.begin()

    def close(self) -> None:
        self._patch.undo()

    def open(self) -> tuple[Stream, Heard]:
        heard = Heard()
        return self.client.open(REQUEST, heard), heard

    def opened(self) -> tuple[tuple[Stream, Heard], tuple[Stream, Heard]]:
        """A stream at either end: the client's, and the server's."""
        ours = self.open()
        self.deliver_all()
        return ours, self.accepted[ours[0].id]

    def to_server(self, most: int) -> None:
        self.server.receive(self.from_client.take(most))

    def to_client(self, most: int) -> None:
        self.client.receive(self.from_server.take(most))

    def deliver_all(self) -> None:
        """Until nothing is on its way any longer."""
        while self.from_client.on_the_way or self.from_server.on_the_way:
            self.to_server(1 << 30)
            self.to_client(1 << 30)

    def _accept(self, opened: Stream, headers: dict[str, str]) -> None:
        opened.receiver = heard = Heard()
        self.accepted[opened.id] = opened, heard
        opened.respond()

    def _client_writes(self, data: bytes) -> None:
        if data.startswith(frames.PREFACE):
            self.from_client.sent += frames.PREFACE
            data = data.removeprefix(frames.PREFACE)
        self.from_client.write(data)
