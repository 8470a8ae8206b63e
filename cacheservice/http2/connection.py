"""One connection of HTTP/2 (RFC 9113), without I/O: bytes that came in, bytes to send, and streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from cacheservice.http2 import frames, requests, statuses
from cacheservice.http2.frames import ErrorCode, Flag, Kind, ProtocolError, Setting, parse_header
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import (
    WINDOW_BYTES,
    End,
    Headers,
    Receiver,
    Stream,
    TooLarge,
    Unreadable,
)

WINDOW_OF_ALL_BYTES = 4 * WINDOW_BYTES
"""That the other side may send on all streams together before it is told that it arrived."""
MAX_STREAMS = 1_000
"""That the other side may have open at a time."""
MAX_HEADER_BYTES = 16_384
"""Of a call's headers, as RFC 9113 counts them; a call with more is refused."""
MAX_BLOCK_BYTES: Final = 65_536
"""Of headers as they travel, and of what they stand for: more costs the connection."""
MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""That wait on all streams for the other side to take them; as long as there are more no stream is opened."""
MAX_IDLE_FRAMES = 10_000
"""Frames that ask for an answer or end a stream, between two ticks and without a message: more are an attack
(CVE-2019-9512, CVE-2023-44487)."""

_LARGE_BYTES: Final = 4_096
_LARGE_PART: Final = 16
"""From so many bytes on it costs less to refer to a part of what came in than to copy it; but that keeps all
of it in memory, of which it should be a sixteenth at least."""

_OF_THE_CONNECTION = frozenset((Kind.SETTINGS, Kind.PING, Kind.GOAWAY))
"""Kinds that have no stream; WINDOW_UPDATE may have one, all others have."""

Write = Callable[[bytes], object]
WriteMany = Callable[[list[bytes | memoryview]], object]
Accept = Callable[[Stream, dict[str, str]], None]
"""Is given each stream that the other side opens, and its headers; gives it its receiver, or ends it."""


class Connection:
    """Gives what comes to its streams, and what they send to `write`, or in parts to `write_many`.

    A client's, or with `accept` a server's. `receive` raises ProtocolError when the connection is of no use
    any longer; whoever calls it then closes it, and tells `lost`.
    """

    def __init__(
        self, write: Write, write_many: WriteMany, max_message_bytes: int, accept: Accept | None = None
    ) -> None:
        self.write = write
        self.write_many = write_many
        self.send_window = frames.FIRST_WINDOW
        self.frame_bytes = frames.FIRST_FRAME_BYTES
        """That the payload of a frame which is sent may have."""
        self.unsent_bytes = 0
        """Of messages, on all streams."""
        self.is_paused = False
        """Whether the socket takes nothing at present; see `paused`."""
        self.is_ready = False
        """Whether the other side has said what holds for it, and so surely speaks HTTP/2."""
        self.is_going_away = False
        """Whether either side wants no more streams."""
        self._why = "the node is about to stop"
        self._accept = accept
        self._max_message_bytes = max_message_bytes
        self._buffer = b""
        self._left = 0
        """Bytes to come of a frame of DATA, of which the others were given to its stream already."""
        self._left_of = (0, 0)
        """Flags and stream of that frame."""
        self._preface = b"" if accept is None else frames.PREFACE
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[int, Stream] = {}
        """Those that have something to send."""
        self._has_progress = False
        """Whether the windows have become larger."""
        self._last_theirs = 0
        self._last_ours = -1
        self._first_window = frames.FIRST_WINDOW
        self._received = 0
        self._idle_frames = 0
        self._unread_frames = 0
        """Idle ones whose answers the socket does not take: with them it is not time that forgives."""
        self._headers = b""
        self._continued: tuple[int, int] | None = None
        """Stream and flags of the headers of which more is to come."""
        self._encoder = Encoder()
        self._decoder = Decoder(max_header_list_size=MAX_BLOCK_BYTES)

    @property
    def streams(self) -> list[Stream]:
        """Those that are open."""
        return list(self._streams.values())

    def begin(self) -> None:
        """Sends what has to be sent first."""
        values = {
            Setting.ENABLE_PUSH: 0,
            Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            Setting.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            Setting.MAX_FRAME_SIZE: frames.MAX_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
        }
        preface = frames.PREFACE if self._accept is None else b""
        if self._accept is not None:
            del values[Setting.ENABLE_PUSH]
        more = WINDOW_OF_ALL_BYTES - frames.FIRST_WINDOW
        self.write(preface + frames.settings(values) + frames.window_update(0, more))

    def open(self, headers: Headers, receiver: Receiver) -> Stream:
        """A client's new stream; it has ended already when the other side serves no more of them."""
        self._last_ours += 2
        stream = self._new_stream(self._last_ours)
        stream.receiver = receiver
        if self.is_going_away:
            self.forget(stream)
            stream._end(End({}, self._why, was_refused=True))
            return stream
        block = bytes(self._encoder.encode(headers))
        self.write(frames.frame(Kind.HEADERS, Flag.END_HEADERS, stream.id, block))
        return stream

    def ping(self, payload: bytes) -> None:
        """Asks for a sign of life; `payload` are eight bytes."""
        self.write(frames.frame(Kind.PING, 0, 0, payload))

    def tick(self) -> None:
        """To be called now and then: the other side may send some frames again that carry nothing."""
        self._idle_frames = 0

    def go_away(self) -> None:
        """Tells the other side that no more streams are served; those that are open go on."""
        if not self.is_going_away:
            self.is_going_away = True
            self.write(frames.goaway(self._last_theirs, ErrorCode.NO_ERROR))

    def receive(self, data: bytes) -> None:
        """Takes what has come in."""
        try:
            self._receive(data)
            if self._has_progress:
                self._has_progress = False
                self._progress()
        except ProtocolError as error:
            self.write(frames.goaway(self._last_theirs, error.code, error.why))
            raise

    def lost(self, why: str) -> None:
        """The connection is closed: so are all streams."""
        self.is_going_away = True
        self._why = why
        streams = list(self._streams.values())
        self._streams.clear()
        self._waiting.clear()
        for stream in streams:
            stream._end(End({}, why))

    def paused(self, is_paused: bool) -> None:
        """The socket takes nothing any longer, or again."""
        self.is_paused = is_paused
        if not is_paused:
            self._unread_frames = 0
            self.pump()
            self._tell_writable()

    def pump(self, stream: Stream | None = None) -> None:
        """Sends what waits, of the stream, too, a frame of each in turn, as far as the windows allow."""
        if stream is not None:
            self._waiting[stream.id] = stream
        parts: list[bytes | memoryview] = []
        if not self.is_paused:
            waiting = list(self._waiting.values())
            while waiting:
                waiting = [stream for stream in waiting if self._cut(stream, parts)]
        if parts:
            self.write_many(parts)

    def has(self, stream: Stream) -> bool:
        """Whether the stream has not ended on either side."""
        return stream.id in self._streams

    def forget(self, stream: Stream, code: ErrorCode | None = None) -> None:
        """Takes leave of a stream; with a code, the other side is told that it has ended."""
        self._waiting.pop(stream.id, None)
        if self._streams.pop(stream.id, None) is not None and code is not None:
            self.write(frames.reset(stream.id, code))

    def refuse(self, stream: Stream, error: TooLarge | Unreadable) -> None:
        """Ends a stream with a message of no use; a client is told so by the status of its call."""
        why = str(error)
        stream._end(End({}, why))
        if self._accept is None:
            self.forget(stream, ErrorCode.CANCEL)
        else:
            code = statuses.RESOURCE_EXHAUSTED if isinstance(error, TooLarge) else statuses.INTERNAL
            stream.finish(statuses.trailers(CallStatus(code, why)))

    def _cut(self, stream: Stream, parts: list[bytes | memoryview]) -> bool:
        cut = stream._cut(self.send_window)
        if cut and stream.id in self._streams:
            self.send_window -= len(cut[1])
        self._waiting.pop(stream.id, None)
        if stream.is_waiting and stream.id in self._streams:
            # To the end, so that the others come first when the window is open again.
            self._waiting[stream.id] = stream
        parts += cut
        return bool(cut)

    def _tell_writable(self) -> None:
        for stream in list(self._streams.values()):
            if not (stream.is_blocked or stream.has_ended):
                stream.receiver.writable()

    def _new_stream(self, number: int) -> Stream:
        stream = self._streams[number] = Stream(self, number, self._max_message_bytes)
        stream.send_window = self._first_window
        return stream

    def _receive(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        position = 0
        if self._preface:
            if not data.startswith(self._preface[: len(data)]):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "no HTTP/2")
            if len(data) >= len(self._preface):
                position, self._preface = len(self._preface), b""
        if self._left:
            position = min(self._left, len(data))
            self._more_data(data[:position])
        while not self._preface and len(data) - position >= frames.HEADER_BYTES:
            upper, lower, kind, flags, stream = parse_header(data, position)
            stream &= frames.MAX_WINDOW
            length = upper << 8 | lower
            is_data = kind == Kind.DATA and self.is_ready and self._continued is None
            if length > (frames.MAX_FRAME_BYTES if is_data else MAX_BLOCK_BYTES):
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length:,} bytes")
            start = position + frames.HEADER_BYTES
            end = start + length
            if end > len(data):
                if is_data and not flags & Flag.PADDED:
                    self._left = length
                    self._left_of = flags, stream
                    position = len(data)
                    self._more_data(data[start:])
                break
            position = end
            if is_data:
                is_most = length >= _LARGE_BYTES and _LARGE_PART * length >= len(data)
                self._data(flags, stream, memoryview(data)[start:end] if is_most else data[start:end])
            else:
                self._control(kind, flags, stream, data[start:end])
        self._buffer = data[position:]

    def _more_data(self, payload: bytes) -> None:
        """Gives a stream what has come of a frame of DATA; the rest follows, with nothing else between."""
        self._left -= len(payload)
        flags, number = self._left_of
        if payload:
            self._data(0 if self._left else flags, number, payload)

    def _data(self, flags: int, number: int, payload: bytes | memoryview) -> None:
        length = len(payload)
        if flags & Flag.PADDED:
            payload = frames.unpadded(Kind.DATA, flags, bytes(payload))
        self._received += length
        if self._received >= WINDOW_OF_ALL_BYTES // 4:
            self.write(frames.window_update(0, self._received))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            self._check_was_open(number)
            if not self._left:
                self._count_idle()
            return
        if stream.has_ended or not payload:
            self._count_idle()
        else:
            self._idle_frames = 0
        if stream.has_all:
            self._break(stream, ErrorCode.STREAM_CLOSED, "DATA after the last")
            return
        if not stream.has_ended:
            try:
                stream._receive(payload, length)
            except (TooLarge, Unreadable) as error:
                self.refuse(stream, error)
        if flags & Flag.END_STREAM:
            self._theirs_ended(stream, {})

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._continued is not None and kind != Kind.CONTINUATION:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "headers that were not continued")
        if not self.is_ready and kind != Kind.SETTINGS:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "no SETTINGS at first")
        if (
            bool(stream) == (kind in _OF_THE_CONNECTION)
            and kind != Kind.WINDOW_UPDATE
            and kind <= Kind.CONTINUATION
        ):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"a frame of kind {kind} for stream {stream}")
        match kind:
            case Kind.HEADERS:
                self._continued = (stream, flags)
                self._continue(flags, frames.unpadded(kind, flags, payload))
            case Kind.CONTINUATION:
                if self._continued is None or self._continued[0] != stream:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
                self._continue(flags, payload)
            case Kind.SETTINGS:
                self._settings(flags, payload)
            case Kind.PING:
                self._ping(flags, payload)
            case Kind.WINDOW_UPDATE:
                self._window_update(stream, frames.parse_uint32(payload, "WINDOW_UPDATE"))
            case Kind.RST_STREAM:
                self._reset(stream, frames.parse_uint32(payload, "RST_STREAM"))
            case Kind.GOAWAY:
                self._goaway(frames.parse_uint32(payload, "GOAWAY"))
            case Kind.PRIORITY:
                if len(payload) != 5:
                    raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a strange length")
                self._count_idle()
            case Kind.PUSH_PROMISE:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
            case _:
                self._count_idle()

    def _continue(self, flags: int, block: bytes) -> None:
        self._headers += block
        if len(self._headers) > MAX_BLOCK_BYTES:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "headers without end")
        self._count_idle()
        if not flags & Flag.END_HEADERS or self._continued is None:
            return
        (number, first_flags), self._continued = self._continued, None
        whole, self._headers = self._headers, b""
        try:
            decoded = self._decoder.decode(whole, raw=True)
        except HPACKError as error:
            raise ProtocolError(
                ErrorCode.COMPRESSION_ERROR, f"headers that cannot be read: {error}"
            ) from None
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in decoded]
        stream = self._streams.get(number)
        is_last = bool(first_flags & Flag.END_STREAM)
        if stream is None and self._accept is not None and number > self._last_theirs:
            self._accepted(number, fields, has_all=is_last)
        elif stream is None:
            self._check_was_open(number)
        elif is_last and not stream.has_all:
            self._theirs_ended(stream, dict(fields))
        elif self._accept is None:
            stream.receiver.headers_received(dict(fields))
        else:
            self._break(stream, ErrorCode.PROTOCOL_ERROR, "headers amid a request, or after it")

    def _accepted(self, number: int, fields: list[tuple[str, str]], *, has_all: bool) -> None:
        if number % 2 == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client's stream with an even number")
        self._last_theirs = number
        has_room = len(self._streams) < MAX_STREAMS and self.unsent_bytes <= MAX_UNSENT_BYTES
        if self.is_going_away or not has_room:
            self.write(frames.reset(number, ErrorCode.REFUSED_STREAM))
            return
        assert self._accept is not None
        try:
            headers = requests.checked(fields)
        except requests.Malformed:
            self.write(frames.reset(number, ErrorCode.PROTOCOL_ERROR))
            return
        stream = self._new_stream(number)
        stream.response = statuses.RESPONSE
        stream.has_all = has_all
        size = sum(32 + len(name) + len(value) for name, value in fields)
        if size > MAX_HEADER_BYTES:
            self.refuse(stream, TooLarge(f"headers of {size:,} bytes; {MAX_HEADER_BYTES:,} are the most"))
        else:
            self._accept(stream, headers)
        if has_all:
            self._theirs_ended(stream, headers)

    def _theirs_ended(self, stream: Stream, headers: dict[str, str]) -> None:
        """The other side has sent all that it will; a server's stream ends with that."""
        if self._accept is not None:
            stream.end_receiving()
            return
        self.forget(stream)
        stream._end(End(headers))

    def _break(self, stream: Stream, code: ErrorCode, why: str) -> None:
        """Ends a stream on which the other side does not keep to the protocol."""
        self.forget(stream, code)
        stream._end(End({}, why))

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & Flag.ACK:
            if payload:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS that were taken, with others")
            return
        self._count_idle()
        values = frames.parse_settings(payload)
        if values.get(Setting.ENABLE_PUSH, 0) > 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a push that is neither on nor off")
        if Setting.INITIAL_WINDOW_SIZE in values:
            size = values[Setting.INITIAL_WINDOW_SIZE]
            if size > frames.MAX_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than 2 GiB")
            for stream in self._streams.values():
                stream.send_window += size - self._first_window
            self._first_window = size
        if Setting.MAX_FRAME_SIZE in values:
            size = values[Setting.MAX_FRAME_SIZE]
            if not frames.FIRST_FRAME_BYTES <= size <= frames.LARGEST_FRAME:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"frames of at most {size:,} bytes")
            self.frame_bytes = min(size, frames.MAX_FRAME_BYTES)
        if Setting.HEADER_TABLE_SIZE in values:
            self._encoder.header_table_size = min(4_096, values[Setting.HEADER_TABLE_SIZE])
        self.is_ready = True
        self.write(frames.frame(Kind.SETTINGS, Flag.ACK, 0))
        self._has_progress = True

    def _ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "PING of a strange length")
        if not flags & Flag.ACK:
            self._count_idle()
            self.write(frames.frame(Kind.PING, Flag.ACK, 0, payload))

    def _window_update(self, number: int, size: int) -> None:
        if not size:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        if number == 0:
            self.send_window += size
            is_too_large = self.send_window > frames.MAX_WINDOW
        elif (stream := self._streams.get(number)) is not None:
            stream.send_window += size
            is_too_large = stream.send_window > frames.MAX_WINDOW
        else:
            self._check_was_open(number)
            is_too_large = False
        if is_too_large:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than 2 GiB")
        self._has_progress = True

    def _progress(self) -> None:
        """The windows are larger than before."""
        blocked = list(self._waiting.values())
        self.pump()
        for stream in blocked:
            if not (stream.is_blocked or stream.has_ended):
                stream.receiver.writable()

    def _reset(self, number: int, code: int) -> None:
        self._count_idle()
        stream = self._streams.get(number)
        if stream is None:
            self._check_was_open(number)
            return
        self.forget(stream)
        stream._end(End({}, _name(code), was_refused=code == ErrorCode.REFUSED_STREAM))

    def _goaway(self, last: int) -> None:
        """The streams that the other side has not begun with are refused; the others go on."""
        self.is_going_away = True
        for stream in list(self._streams.values()):
            if self._accept is None and stream.id > last:
                self.forget(stream)
                stream._end(End({}, "the node is about to stop", was_refused=True))

    def _check_was_open(self, number: int) -> None:
        """What comes late for a stream that has ended is nothing; for one that never was, it is an error."""
        last = self._last_ours if self._accept is None else self._last_theirs
        if number > last or number == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"a frame of stream {number}, which was never open")

    def _count_idle(self) -> None:
        self._idle_frames += 1
        if self.is_paused:
            self._unread_frames += 1
        if max(self._idle_frames, self._unread_frames) > MAX_IDLE_FRAMES:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without a message")


def _name(code: int) -> str:
    return f"the stream was reset ({ErrorCode(code).name if code in set(ErrorCode) else code})"
