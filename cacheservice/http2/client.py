"""A client's stream to one server: a connection of its own, with nothing else on it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable

from cacheservice.address import endpoint
from cacheservice.http2 import statuses
from cacheservice.http2.client_stream import ClientStream
from cacheservice.http2.protocol import Http2Protocol


class ConnectFailed(Exception):
    """There is no connection, and nothing was sent."""


class Opener:
    """Opens streams to servers, over TLS if there is what gives the context for each new connection.

    A server's certificate is to have the server name, or without one the host of the target.
    """

    def __init__(
        self,
        max_message_bytes: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
        server_name: str = "",
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._server_name = server_name

    async def open(
        self,
        target: str,
        path: str,
        on_message: Callable[[bytes], None],
        on_writable: Callable[[], None],
        timeout: float,
    ) -> ClientStream:
        """Calls the method at `path` of the server at `target`.

        `on_message` is given its messages, and `on_writable` called when the stream is no longer blocked.
        ConnectFailed when there is no connection after `timeout` seconds, or no HTTP/2 is spoken there.
        """
        where = endpoint(target)
        name = self._server_name or (where[0] if isinstance(where, tuple) else "localhost")
        request = statuses.request(path, self._server_name or target, is_tls=self._tls is not None)
        protocol = await self._connect(where, name, timeout, target)
        return ClientStream(protocol, request, on_message, on_writable)

    async def _connect(
        self, where: tuple[str, int] | str, name: str, timeout: float, target: str
    ) -> Http2Protocol:
        loop = asyncio.get_running_loop()
        tls = None if self._tls is None else self._tls()
        opened: list[Http2Protocol] = []

        def protocol() -> Http2Protocol:
            opened.append(Http2Protocol(self._max_message_bytes))
            return opened[-1]

        server_hostname = None if tls is None else name
        try:
            async with asyncio.timeout(timeout):
                if isinstance(where, str):
                    await loop.create_unix_connection(
                        protocol, where, ssl=tls, server_hostname=server_hostname
                    )
                else:
                    await loop.create_connection(protocol, *where, ssl=tls, server_hostname=server_hostname)
                await opened[-1].ready
                return opened.pop()
        except TimeoutError:
            why = f"no answer within {timeout:.1f} s"
        except (OSError, UnicodeError) as error:
            # The latter where the host is no name at all.
            why = _told(error)
        finally:
            for one in opened:
                one.abort()
        raise ConnectFailed(f"failed to connect to {target}: {why}")


def _told(error: Exception) -> str:
    """What happened, in the system's words where it is the system that refused."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
