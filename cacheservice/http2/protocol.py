"""A connection on a socket of the event loop, watched over as long as it is open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from cacheservice.http2.connection import Accept, Connection
from cacheservice.http2.frames import ProtocolError

_log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 10.0
"""After so long without a byte from the other side it is asked for a sign of life."""
PING_TIMEOUT_SECONDS = 5.0
"""And after so long without an answer the connection is given up."""

CLOSE_SECONDS = 1.0
"""For what was sent to leave before the socket is closed regardless."""
WRITE_BUFFER_BYTES = 1024 * 1024
"""That the socket may be behind before its streams are blocked."""

_PING = b"alive?  "


class Http2Protocol(asyncio.Protocol):
    """Gives a socket's bytes to a Connection, and closes the socket when that is of no use any longer."""

    def __init__(
        self,
        max_message_bytes: int,
        accept: Accept | None = None,
        *,
        on_open: Callable[[Http2Protocol], None] = lambda _: None,
        on_close: Callable[[Http2Protocol], None] = lambda _: None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done when the other side surely speaks HTTP/2; ConnectionError when the connection ends before."""
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._max_message_bytes = max_message_bytes
        self._accept = accept
        self._on_open = on_open
        self._on_close = on_close
        self._why = "the connection was closed"
        self._heard = False
        self._is_asking = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        write, write_many = self._transport.write, self._transport.writelines
        self.connection = Connection(write, write_many, self._max_message_bytes, self._accept)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.connection.begin()
        self._timer = self._loop.call_later(KEEPALIVE_SECONDS, self._look)
        self._on_open(self)

    @property
    def peer_host(self) -> str:
        """The other side's address; empty where it has none, as a Unix socket."""
        peer = None if self._transport is None else self._transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self.connection.receive(data)
        except ProtocolError as error:
            self._give_up(f"the other side breaks the protocol: {error.why}")
        except Exception:
            _log.exception("defect in a stream's receiver; the connection is closed")
            self._give_up("a defect; the log has the details")
        if self.connection.is_ready and not self.ready.done():
            self.ready.set_result(None)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def pause_writing(self) -> None:
        self.connection.paused(True)

    def resume_writing(self) -> None:
        self.connection.paused(False)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._why = str(error) or type(error).__name__
        if self._timer is not None:
            self._timer.cancel()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(self._why))
            self.ready.exception()
        self.connection.lost(self._why)
        self._on_close(self)
        if not self.closed.done():
            self.closed.set_result(None)

    def close(self, why: str = "the connection was closed") -> None:
        """Closes the socket when what was sent has left, or does not leave for CLOSE_SECONDS."""
        self._why = why
        if self._transport is not None and self._timer is not None:
            self._transport.close()
            self._timer.cancel()
            self._timer = self._loop.call_later(CLOSE_SECONDS, self.abort)

    def end_sending(self) -> bool:
        """Tells the other side, after what was sent, that no more comes; False where that is not possible."""
        if self._transport is None or self._transport.is_closing() or not self._transport.can_write_eof():
            return False
        try:
            self._transport.write_eof()
        except OSError:
            return False  # It has gone.
        return True

    def abort(self) -> None:
        """Closes the socket at once."""
        if self._transport is not None:
            self._transport.abort()

    def _give_up(self, why: str) -> None:
        _log.debug("closing a connection: %s", why)
        self.connection.lost(why)
        self.close(why)

    def _look(self) -> None:
        """Asks for a sign of life where there was none; gives up where there was none to that either, and
        a connection that is for nobody, which a client's that has not called yet may be for soon."""
        self.connection.tick()
        is_of_a_client = self._accept is not None and self.connection.is_ready
        if not self.connection.streams and not is_of_a_client:
            self.close("no stream is open")
            return
        if self._is_asking and not self._heard:
            self._why = "the other side does not answer any longer"
            self.abort()
            return
        self._is_asking = not self._heard
        if self._is_asking:
            self.connection.ping(_PING)
        self._heard = False
        seconds = PING_TIMEOUT_SECONDS if self._is_asking else KEEPALIVE_SECONDS
        self._timer = self._loop.call_later(seconds, self._look)
