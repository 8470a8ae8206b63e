"""Accepts connections of clients, and gives each call to who handles its method."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

from cacheservice.http2 import statuses
from cacheservice.http2.alternative import TOKEN
from cacheservice.http2.call import Call, Handler
from cacheservice.http2.protocol import CLOSE_SECONDS, Http2Protocol
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import End, Stream

_log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
BACKLOG = 1_024
ACCEPT_PAUSE_SECONDS = 1.0


class _Nobody:
    """Receives what is sent to a call that was refused."""

    def headers_received(self, headers: dict[str, str]) -> None: ...

    def message_received(self, message: bytes) -> None: ...

    def sending_ended(self) -> None: ...

    def stream_ended(self, end: End) -> None: ...

    def writable(self) -> None: ...


class StreamServer:
    """Serves the methods in `handlers`, by path, to callers who know the token.

    `tls` gives what each new connection is to be served with, or is None for plaintext.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        token: str,
        max_message_bytes: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._handlers = handlers
        self._token = token
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._open: set[Http2Protocol] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._listening: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._is_going_away = False

    async def start(self, host: str, port: int) -> int:
        """Listens; the port, which is any free one for 0. OSError when it cannot."""
        self._listening = _listening(host, port)
        self._listen()
        return int(self._listening.getsockname()[1])

    def go_away(self) -> None:
        """Accepts nothing more; what is open goes on."""
        self._is_going_away = True
        if self._pause is not None:
            self._pause.cancel()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for protocol in self._open:
            protocol.connection.go_away()

    async def close(self) -> None:
        """Closes all connections; takes no longer than CLOSE_SECONDS."""
        self.go_away()
        # A handshake that is cancelled before it has begun would leave its socket open.
        await asyncio.sleep(0)
        for task in self._handshakes:
            task.cancel()
        protocols = list(self._open)
        for protocol in protocols:
            protocol.close()
        ending = [*(protocol.closed for protocol in protocols), *self._handshakes]
        await asyncio.gather(*ending, return_exceptions=True)

    def _protocol(self) -> Http2Protocol:
        return Http2Protocol(
            self._max_message_bytes,
            self._accept,
            on_open=self._opened,
            on_close=self._open.discard,
        )

    def _opened(self, protocol: Http2Protocol) -> None:
        if self._is_going_away:
            protocol.abort()
        else:
            self._open.add(protocol)

    def _listen(self) -> None:
        assert self._listening is not None
        asyncio.get_running_loop().add_reader(self._listening, self._connection_waits, self._listening)

    def _connection_waits(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # As when too many files are open.
            _log.warning("cannot accept a connection: %s", error)
            loop.remove_reader(listening)
            self._pause = loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen)
            return
        accepted.setblocking(False)
        task = asyncio.create_task(self._shake_hands(accepted))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        """Over TLS, with the certificates of now."""
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {
                "ssl": self._tls(),
                "ssl_handshake_timeout": HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": CLOSE_SECONDS,
            }
        try:
            await loop.connect_accepted_socket(self._protocol, accepted, **options)
        except OSError as error:
            _log.debug("a client's handshake failed: %s", error)

    def _accept(self, stream: Stream, headers: dict[str, str]) -> None:
        handler = self._handlers.get(headers.get(":path", ""))
        if not statuses.is_call(headers) or handler is None:
            self._refuse(stream, CallStatus(statuses.UNIMPLEMENTED, "only streams are served here"))
        elif headers.get(TOKEN) != self._token:
            self._refuse(stream, CallStatus(statuses.UNAVAILABLE, "another process is meant"))
        else:
            stream.connection.respond(stream, statuses.response())
            stream.receiver = handler(Call(stream))

    def _refuse(self, stream: Stream, status: CallStatus) -> None:
        """The first headers of the answer are the last, too."""
        stream.receiver = _Nobody()
        stream.finish([*statuses.response(), *statuses.trailers(status)])


def _listening(host: str, port: int) -> socket.socket:
    """A socket for the address; where it is that of all of IPv6, for IPv4 too, as with grpcio."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    is_all = family == socket.AF_INET6 and ip_address(address[0]).is_unspecified
    made = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=is_all)
    made.setblocking(False)
    return made
