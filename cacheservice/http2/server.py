"""Accepts connections of clients, and gives each call to who handles its method."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

from cacheservice.http2 import statuses
from cacheservice.http2.call import Call, Handler
from cacheservice.http2.protocol import CLOSE_SECONDS, Http2Protocol
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import Stream

_log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
LEAVE_SECONDS = 0.5
"""For callers to close their side when they have all: what comes from them to a closed socket would cost them
what they have not read."""
BACKLOG = 1_024
ACCEPT_PAUSE_SECONDS = 1.0
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Why a socket cannot have one of several addresses of a host, as ::1 where there is no IPv6."""


class Server:
    """Serves the methods in `handlers`, by path.

    `tls` gives what each new connection is to be served with, or is None for plaintext.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        max_message_bytes: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._handlers = handlers
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._open: set[Http2Protocol] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._listening: list[socket.socket] = []
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._is_going_away = False

    def bind(self, host: str, port: int) -> int:
        """Has connections wait at all addresses of the host; the port, which is any free one for 0.

        OSError when it cannot.
        """
        missing: OSError | None = None
        for family, address in _addresses(host, port):
            try:
                listening = _listening(family, address, port)
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                missing = error
            else:
                self._listening.append(listening)
                port = int(listening.getsockname()[1])
        if missing is not None and not self._listening:
            raise missing
        return port

    def start(self) -> None:
        """Accepts those that wait, and all that come."""
        for listening in self._listening:
            self._listen(listening)

    def go_away(self) -> None:
        """Accepts nothing more; what is open goes on."""
        self._is_going_away = True
        for pause in self._pauses.values():
            pause.cancel()
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._listening.clear()
        for protocol in self._open:
            protocol.connection.go_away()

    async def close(self) -> None:
        """Closes all connections; takes no longer than LEAVE_SECONDS and CLOSE_SECONDS."""
        self.go_away()
        # A handshake that is cancelled before it has begun would leave its socket open.
        await asyncio.sleep(0)
        for task in self._handshakes:
            task.cancel()
        protocols = list(self._open)
        if leaving := [protocol.closed for protocol in protocols if protocol.end_sending()]:
            await asyncio.wait(leaving, timeout=LEAVE_SECONDS)
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

    def _listen(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listening, self._connection_waits, listening)

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
            self._pauses[listening] = loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen, listening)
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
        if not statuses.is_call(headers):
            stream.response = b""
            stream.finish(statuses.NO_GRPC)
            return
        path = headers.get(":path", "")
        handler = self._handlers.get(path)
        encoding = headers.get("grpc-encoding", "identity")
        try:
            timeout = statuses.timeout_of(headers)
        except ValueError as error:
            self._refuse(stream, statuses.INTERNAL, str(error))
            return
        if handler is None:
            self._refuse(stream, statuses.UNIMPLEMENTED, f"there is no method {path[:200]}")
        elif encoding not in ("identity", "gzip"):
            self._refuse(stream, statuses.UNIMPLEMENTED, f"grpc-encoding {encoding[:20]}: only gzip is known")
        else:
            stream.is_gzip = encoding == "gzip"
            stream.receiver = handler(Call(stream, timeout))

    def _refuse(self, stream: Stream, code: int, why: str) -> None:
        """The first headers of the answer are the last, too."""
        stream.finish(statuses.trailers(CallStatus(code, why)))


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """Those that the host has, each once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))


def _listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """A socket for the address; where it is that of all of IPv6, for IPv4 too, as with grpcio."""
    is_all = family == socket.AF_INET6 and ip_address(address).is_unspecified
    made = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_all)
    made.setblocking(False)
    return made
