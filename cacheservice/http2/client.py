"""A client's stream to one server: a connection of its own, with nothing else on it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable

from cacheservice.address import endpoint
from cacheservice.http2 import statuses
from cacheservice.http2.protocol import Http2Protocol
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import End


class ConnectFailed(Exception):
    """There is no connection, and nothing was sent."""


class StreamFailed(Exception):
    """The call has ended with a status other than OK, or without any."""

    def __init__(self, status: CallStatus) -> None:
        super().__init__(status.message)
        self.status = status


class ClientStream:
    """A call in progress, as made by `open_stream`; to be closed in the end."""

    def __init__(
        self,
        protocol: Http2Protocol,
        path: str,
        authority: str,
        on_message: Callable[[bytes], None],
        on_writable: Callable[[], None],
    ) -> None:
        self._protocol = protocol
        self._on_message = on_message
        self._on_writable = on_writable
        self._status: asyncio.Future[CallStatus] = asyncio.get_running_loop().create_future()
        self._stream = protocol.connection.open(
            statuses.request(path, authority, is_tls=protocol.is_tls), self
        )

    def send(self, message: bytes) -> None:
        """Hands the message to the connection, or keeps it for that; nothing once the stream has ended."""
        self._stream.send(message)

    @property
    def is_blocked(self) -> bool:
        """Whether what was sent still waits for the server to take it."""
        return self._stream.is_blocked

    async def finished(self) -> None:
        """Returns when the server has ended the stream in order. StreamFailed when it ended otherwise."""
        status = await asyncio.shield(self._status)
        if status.code != statuses.OK:
            raise StreamFailed(status)

    def cancel(self) -> None:
        """Ends the call, if it has not ended; nothing more is received."""
        self._on_message = _ignore
        self._on_writable = _no_longer
        self._stream.cancel()
        self._finish(CallStatus(statuses.UNAVAILABLE, "the stream was closed"))

    async def close(self) -> None:
        """Ends the call and the connection, at once; returns when the socket is closed."""
        self.cancel()
        self._protocol.abort()
        await asyncio.shield(self._protocol.closed)

    def message_received(self, message: bytes) -> None:
        self._on_message(message)

    def sending_ended(self) -> None:
        """Is part of `stream_ended` here."""

    def stream_ended(self, end: End) -> None:
        self._finish(statuses.status_of(end))

    def writable(self) -> None:
        self._on_writable()

    def _finish(self, status: CallStatus) -> None:
        if not self._status.done():
            self._status.set_result(status)


async def open_stream(
    target: str,
    path: str,
    on_message: Callable[[bytes], None],
    on_writable: Callable[[], None],
    *,
    timeout: float,
    max_message_bytes: int,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
) -> ClientStream:
    """Calls the method at `path` of the server at `target`; `on_message` is given its messages, and
    `on_writable` called when the stream is no longer blocked.

    With `tls` the server's certificate is to have the server name, or without one the host of the target.
    ConnectFailed when there is no connection after `timeout` seconds, or the server does not speak HTTP/2.
    """
    loop = asyncio.get_running_loop()
    where = endpoint(target)
    opened: list[Http2Protocol] = []

    def protocol() -> Http2Protocol:
        opened.append(Http2Protocol(max_message_bytes, is_tls=tls is not None))
        return opened[-1]

    is_open = False
    try:
        async with asyncio.timeout(timeout):
            if isinstance(where, str):
                await loop.create_unix_connection(
                    protocol, where, ssl=tls, server_hostname=server_name or None
                )
            else:
                name = (server_name or where[0]) if tls else None
                await loop.create_connection(protocol, *where, ssl=tls, server_hostname=name)
            await opened[-1].ready
        is_open = True
    except TimeoutError:
        why = f"no answer within {timeout:.1f} s"
    except (OSError, ssl.CertificateError) as error:
        why = _told(error)
    finally:
        for one in opened[:-1] if is_open else opened:
            one.abort()
    if is_open:
        authority = server_name or (target if isinstance(where, tuple) else "localhost")
        return ClientStream(opened[-1], path, authority, on_message, on_writable)
    raise ConnectFailed(f"failed to connect to {target}: {why}")


def _told(error: Exception) -> str:
    """What happened, in the system's words where it is the system that refused."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _ignore(_: bytes) -> None:
    """What comes after the stream was closed."""


def _no_longer() -> None:
    """Nor does it matter then whether anything could be sent."""
