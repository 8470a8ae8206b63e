"""One stream of gRPC messages, both ways: messages cut into frames, and put together from them."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cacheservice.http2.frames import (
    FIRST_WINDOW,
    ErrorCode,
    Flag,
    Kind,
    ProtocolError,
    header,
    reset,
    window_update,
)

if TYPE_CHECKING:
    from cacheservice.http2.connection import Connection

WINDOW_BYTES = 4 * 1024 * 1024
"""That the other side may send on a stream before it is told that what came was taken."""
ACKNOWLEDGED_BYTES = WINDOW_BYTES // 4
"""Taken before the other side is told so."""
MAX_PARTS: Final = 1_024
"""Of a message that has not arrived as a whole, unless they are larger than this many bytes on average."""
MESSAGE_HEADER_BYTES: Final = 5
"""Of a gRPC message: whether it is compressed, and its length."""
COPIED_BYTES: Final = 16_384
"""Of a message that is sent as one piece with its headers: more costs less in two."""

_GZIP = zlib.MAX_WBITS | 16

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class End:
    """How a stream came to its end."""

    headers: dict[str, str]
    """The last ones of the other side, which tell the status of the call; empty when it sent none."""
    why: str = ""
    """What happened instead."""
    was_refused: bool = False
    """Whether the other side has surely not begun with the call."""


class Receiver(Protocol):
    """Who a stream is for."""

    def message_received(self, message: bytes) -> None: ...

    def headers_received(self, headers: dict[str, str]) -> None:
        """The first ones of a server's answer, unless they are the last ones, too."""

    def sending_ended(self) -> None:
        """The other side has sent its last message; it may still receive."""

    def stream_ended(self, end: End) -> None:
        """Nothing more comes, and all that is still sent has left. Called once, last of all, unless this side
        has cancelled the stream."""

    def writable(self) -> None:
        """What was sent has left, after it had to wait; see `Stream.is_blocked`."""


class Nobody:
    """Receives what is sent to a call that was refused."""

    def message_received(self, message: bytes) -> None: ...

    def headers_received(self, headers: dict[str, str]) -> None: ...

    def sending_ended(self) -> None: ...

    def stream_ended(self, end: End) -> None: ...

    def writable(self) -> None: ...


_NOBODY = Nobody()


class TooLarge(Exception):
    """A message is longer than this side takes."""


class Unreadable(Exception):
    """A message is none at all, or compressed in a way that this side cannot undo."""


class Stream:
    """Belongs to one connection, which calls what begins with an underscore here.

    What is sent beyond the other side's windows, or while the socket takes nothing, is kept, without a bound:
    the sender is to look at `is_blocked`.
    """

    __slots__ = (
        "_connection",
        "_has_told",
        "_have",
        "_is_compressed",
        "_need",
        "_parts",
        "_taken",
        "_trailers",
        "_unsent",
        "has_all",
        "has_ended",
        "id",
        "is_gzip",
        "is_paused",
        "max_message_bytes",
        "receiver",
        "response",
        "send_window",
        "window",
    )

    def __init__(self, connection: Connection, number: int, max_message_bytes: int) -> None:
        self.id = number
        self.max_message_bytes = max_message_bytes
        self.receiver: Receiver = _NOBODY
        self.send_window = FIRST_WINDOW
        self.window = WINDOW_BYTES
        self.is_paused = False
        self.has_all = False
        """Whether the other side has sent its last message."""
        self.has_ended = False
        self.is_gzip = False
        """Whether messages that come compressed are so by gzip."""
        self.response = b""
        """A server's first headers, as they travel, until they are sent."""
        self._connection = connection
        self._unsent: deque[memoryview] = deque()
        self._parts: list[bytes | memoryview] = []
        self._have = 0
        self._need = MESSAGE_HEADER_BYTES
        self._taken = 0
        self._has_told = False
        self._is_compressed = False
        self._trailers = b""

    def is_behind(self, most: int) -> bool:
        """Whether more than so many bytes wait for the other side's windows, or the socket takes nothing."""
        return self._connection.is_paused or (bool(self._unsent) and sum(map(len, self._unsent)) > most)

    @property
    def is_blocked(self) -> bool:
        """Whether what was sent has not left yet."""
        return bool(self._unsent) or self._connection.is_paused

    @property
    def is_waiting(self) -> bool:
        """Whether anything is to be sent when that is possible."""
        return bool(self._unsent) or bool(self._trailers)

    def send(self, message: bytes) -> None:
        """Sends a message, or keeps it until the other side takes it. Nothing once the stream has ended."""
        if self.has_ended:
            return
        size = MESSAGE_HEADER_BYTES + len(message)
        connection = self._connection
        prefix = b"\0" + len(message).to_bytes(4)
        if self._must_wait(size):
            first = connection.frame_bytes - MESSAGE_HEADER_BYTES
            self._unsent.append(memoryview(prefix + message[:first]))
            if len(message) > first:
                self._unsent.append(memoryview(message)[first:])
            connection.unsent_bytes += size
            connection.pump(self)
            return
        self.send_window -= size
        connection.send_window -= size
        frame_header = header(Kind.DATA, 0, self.id, size)
        if size <= COPIED_BYTES:
            connection.write(b"".join((frame_header, prefix, message)))
        else:
            connection.write_many([frame_header + prefix, message])

    def respond(self) -> None:
        """Sends a server's first headers, unless they are sent."""
        if self.response and not self.has_ended:
            flags = Flag.END_HEADERS
            self._connection.write(header(Kind.HEADERS, flags, self.id, len(self.response)) + self.response)
            self.response = b""

    def answer(self, message: bytes, trailers: bytes) -> None:
        """Ends a server's stream with its only message: all in one piece, where that may leave."""
        size = MESSAGE_HEADER_BYTES + len(message)
        if self.has_ended or not self.response or size > COPIED_BYTES or self._must_wait(size):
            self.respond()
            self.send(message)
            self.finish(trailers)
            return
        connection = self._connection
        self.send_window -= size
        connection.send_window -= size
        parts = (
            header(Kind.HEADERS, Flag.END_HEADERS, self.id, len(self.response)),
            self.response,
            header(Kind.DATA, 0, self.id, size),
            b"\0",
            len(message).to_bytes(4),
            message,
            *self._last(trailers),
        )
        connection.write(b"".join(parts))

    def pause(self) -> None:
        """Has no message handed on until `resume`; the other side can send no more than WINDOW_BYTES then."""
        self.is_paused = True

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            try:
                if self._have >= self._need:
                    self._hand_on()
            except (TooLarge, Unreadable) as error:
                self._connection.refuse(self, error)
            if self.has_all:
                self.end_receiving()
        if not self.is_paused:
            self._acknowledge()

    def end_receiving(self) -> None:
        """The other side has sent its last message; the receiver is told when it has them all."""
        self.has_all = True
        if not self.is_paused and not self.has_ended and not self._has_told:
            self._has_told = True
            self.receiver.sending_ended()

    def finish(self, trailers: bytes) -> None:
        """Ends a server's stream with its last headers, once what was sent before has left."""
        if not self._trailers and self._connection.has(self):
            self._trailers = self.response + trailers
            self.response = b""
            self._connection.pump(self)

    def cancel(self) -> None:
        """Ends the stream at once, without a word to the receiver."""
        if not self.has_ended:
            self.has_ended = True
            self._drop()
            self._connection.forget(self, ErrorCode.CANCEL)

    def _cut(self, most: int) -> list[bytes | memoryview]:
        """Takes out one frame of at most so many bytes of what waits; [] when there is no room for any."""
        if self._trailers and not self._unsent:
            return self._last(self._trailers)
        size = min(most, self.send_window, self._connection.frame_bytes)
        if size <= 0 or not self._unsent:
            return []
        first = self._unsent.popleft()
        if len(first) > size:
            self._unsent.appendleft(first[size:])
            first = first[:size]
        self.send_window -= len(first)
        self._connection.unsent_bytes -= len(first)
        return [header(Kind.DATA, 0, self.id, len(first)), first]

    def _last(self, trailers: bytes) -> list[bytes | memoryview]:
        """The end of a server's stream; a caller that still sends is told to stop."""
        self._trailers = b""
        self._connection.forget(self)
        flags = Flag.END_HEADERS | Flag.END_STREAM
        parts: list[bytes | memoryview] = [header(Kind.HEADERS, flags, self.id, len(trailers)), trailers]
        if not self.has_all:
            parts.append(reset(self.id, ErrorCode.NO_ERROR))
        self._end(End({}))
        return parts

    def _must_wait(self, size: int) -> bool:
        """Whether there is no room for a frame of so many bytes, or for none so large."""
        connection = self._connection
        return (
            bool(self._unsent)
            or size > self.send_window
            or size > connection.send_window
            or size > connection.frame_bytes
            or connection.is_paused
        )

    def _receive(self, content: bytes | memoryview, length: int) -> None:
        """`content` is that of a frame which took `length` bytes of the window."""
        self.window -= length
        if self.window < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        self._taken += length
        self._parts.append(content)
        self._have += len(content)
        if self._have >= self._need and not self.is_paused:
            self._hand_on()
        elif len(self._parts) > MAX_PARTS and self._have < len(self._parts) * MAX_PARTS:
            # Of small parts, each takes more memory than what is in it.
            self._parts = [b"".join(self._parts)]
        if self._taken >= ACKNOWLEDGED_BYTES and not self.is_paused:
            self._acknowledge()

    def _hand_on(self) -> None:
        """Gives the receiver the messages that are there as a whole."""
        parts = self._parts
        if len(parts) > 1 and self._have == self._need > MESSAGE_HEADER_BYTES <= len(parts[0]):
            # The usual end of a large message: spared is a copy of it.
            parts[0] = memoryview(parts[0])[MESSAGE_HEADER_BYTES:]
            self._start_anew()
            self._deliver(b"".join(parts))
            return
        data = b"".join(parts)
        position = 0
        while True:
            left = len(data) - position
            if left < MESSAGE_HEADER_BYTES:
                self._need = MESSAGE_HEADER_BYTES
                break
            start = position + MESSAGE_HEADER_BYTES
            size = int.from_bytes(data[position + 1 : start])
            if data[position] > 1:
                raise Unreadable("no gRPC message")
            self._is_compressed = data[position] == 1
            if size > self.max_message_bytes:
                raise TooLarge(f"a message of {size:,} bytes, where {self.max_message_bytes:,} are the most")
            self._need = MESSAGE_HEADER_BYTES + size
            if left < self._need:
                break
            position += self._need
            self._deliver(data[start:position])
            if self.has_ended:
                return
            if self.is_paused:
                self._need = MESSAGE_HEADER_BYTES
                break
        self._parts = [data[position:]] if position < len(data) else []
        self._have = len(data) - position

    def _deliver(self, message: bytes) -> None:
        self.receiver.message_received(self._decompressed(message) if self._is_compressed else message)

    def _decompressed(self, message: bytes) -> bytes:
        if not self.is_gzip:
            raise Unreadable("a compressed message, and no header that says how")
        inflating = zlib.decompressobj(wbits=_GZIP)
        try:
            whole = inflating.decompress(message, self.max_message_bytes + 1)
        except zlib.error as error:
            raise Unreadable(f"a message that gzip cannot read: {error}") from None
        if len(whole) > self.max_message_bytes:
            raise TooLarge(f"a message of more than {self.max_message_bytes:,} bytes, which are the most")
        if not inflating.eof:
            raise Unreadable("a message that gzip cannot read: its end is missing")
        return whole

    def _start_anew(self) -> None:
        """Where the next message begins with the next frame."""
        self._parts = []
        self._have = 0
        self._need = MESSAGE_HEADER_BYTES

    def _acknowledge(self) -> None:
        if self._taken >= ACKNOWLEDGED_BYTES and not self.has_ended:
            self.window += self._taken
            self._connection.write(window_update(self.id, self._taken))
            self._taken = 0

    def _end(self, end: End) -> None:
        if not self.has_ended:
            self.has_ended = True
            self._drop()
            self.receiver.stream_ended(end)

    def _drop(self) -> None:
        """Keeps nothing of what was to be sent, or handed on."""
        self._connection.unsent_bytes -= sum(map(len, self._unsent))
        self._unsent.clear()
        self._start_anew()
