"""A call in progress, as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cacheservice.http2 import statuses
from cacheservice.http2.protocol import Http2Protocol
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import End, Headers


class StreamFailed(Exception):
    """The call has ended with a status other than OK, or without any."""

    def __init__(self, status: CallStatus) -> None:
        super().__init__(status.message)
        self.status = status


class ClientStream:
    """A call in progress, as made by an Opener; to be closed in the end."""

    def __init__(
        self,
        protocol: Http2Protocol,
        request: Headers,
        on_message: Callable[[bytes], None],
        on_writable: Callable[[], None],
    ) -> None:
        self._protocol = protocol
        self._on_message = on_message
        self._on_writable = on_writable
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        self.headers: asyncio.Future[dict[str, str] | None] = loop.create_future()
        """The first ones of the answer; None when the call ends before."""
        self._stream = protocol.connection.open(request, self)

    def send(self, message: bytes) -> None:
        """Hands the message to the connection, or keeps it for that; nothing once the stream has ended."""
        self._stream.send(message)

    @property
    def is_blocked(self) -> bool:
        """Whether what was sent still waits for the server to take it."""
        return self._stream.is_blocked

    def finished(self) -> asyncio.Future[None]:
        """Done when the server has ended the stream in order; StreamFailed when it ended otherwise."""
        return asyncio.shield(self._ended)

    def cancel(self) -> None:
        """Ends the call, if it has not ended; nothing more is received."""
        self._on_message = _ignore
        self._on_writable = _no_longer
        self._stream.cancel()
        self._finish(CallStatus(statuses.UNAVAILABLE, "the stream was closed"))

    def close(self) -> asyncio.Future[None]:
        """Ends the call and the connection, at once; done when the socket is closed."""
        self.cancel()
        self._protocol.abort()
        return asyncio.shield(self._protocol.closed)

    def headers_received(self, headers: dict[str, str]) -> None:
        if self.headers.done() or headers.get(":status", "").startswith("1"):
            return
        if statuses.is_answer(headers):
            self.headers.set_result(headers)
        else:
            # Something else is at that port, and what follows is no message.
            self._finish(statuses.status_of(End(headers)))
            self.cancel()

    def message_received(self, message: bytes) -> None:
        self._on_message(message)

    def sending_ended(self) -> None:
        """Is part of `stream_ended` here."""

    def stream_ended(self, end: End) -> None:
        self._finish(statuses.status_of(end))

    def writable(self) -> None:
        self._on_writable()

    def _finish(self, status: CallStatus) -> None:
        if not self._ended.done():
            if status.code == statuses.OK:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(StreamFailed(status))
                self._ended.exception()  # It may be that nobody asks.
        if not self.headers.done():
            self.headers.set_result(None)


def _ignore(_: bytes) -> None:
    """What comes after the stream was closed."""


def _no_longer() -> None:
    """Nor does it matter then whether anything could be sent."""
