"""A client's stream to one server: a connection of its own, with nothing else on it."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable

from cacheservice.address import endpoint
from cacheservice.http2 import statuses
from cacheservice.http2.alternative import TOKEN, offered
from cacheservice.http2.client_stream import ClientStream
from cacheservice.http2.protocol import Http2Protocol
from cacheservice.http2.stream import Headers

_log = logging.getLogger(__name__)

ALTERNATIVE_SECONDS = 0.3
"""For a connection to what the server offers; where that is out of reach, packets may just vanish."""
BEGIN_SECONDS = 0.5
"""Until the first headers of an answer. Ours come at once; a server's that sends them with its first message
never do, as it is asked for none before."""
AVOID_SECONDS = 60.0

Offer = tuple[tuple[str, int], str]
"""Host and port of an alternative, and the token to be shown there."""


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
        self._avoided: dict[tuple[str, int], float] = {}
        """Alternatives that could not be reached, and until when they are not tried again."""

    async def open(
        self,
        target: str,
        path: str,
        on_message: Callable[[bytes], None],
        on_writable: Callable[[], None],
        timeout: float,
    ) -> ClientStream:
        """Calls the method at `path` of the server at `target`, or at what it offers as an alternative.

        `on_message` is given its messages, and `on_writable` called when the stream is no longer blocked.
        ConnectFailed when there is no connection after `timeout` seconds, or no HTTP/2 is spoken there.
        """
        where = endpoint(target)
        name = self._server_name or (where[0] if isinstance(where, tuple) else "localhost")
        request = statuses.request(path, self._server_name or target, is_tls=self._tls is not None)
        protocol = await self._connect(where, name, timeout, target)
        stream = ClientStream(protocol, request, on_message, on_writable)
        try:
            offer = await self._offer(protocol, stream)
            other = (
                None if offer is None else await self._accept(offer, name, request, on_message, on_writable)
            )
        except BaseException:
            await stream.close()
            raise
        if other is None:
            return stream
        try:
            await stream.close()
        except BaseException:
            await other.close()
            raise
        return other

    async def _accept(
        self,
        offer: Offer,
        name: str,
        request: Headers,
        on_message: Callable[[bytes], None],
        on_writable: Callable[[], None],
    ) -> ClientStream | None:
        """The stream at the place that is offered; None when there is none to be had."""
        where, token = offer
        try:
            protocol = await self._connect(where, name, ALTERNATIVE_SECONDS, "the port for streams")
        except ConnectFailed:
            self._avoid(where)
            return None
        stream = ClientStream(protocol, [*request, (TOKEN, token)], on_message, on_writable)
        has_begun = False
        try:
            has_begun = await begun(stream, BEGIN_SECONDS) is not None
        finally:
            if not has_begun:
                self._avoid(where)
                await stream.close()
        return stream if has_begun else None

    async def _offer(self, protocol: Http2Protocol, stream: ClientStream) -> Offer | None:
        """Where the server would rather be called, and with which token."""
        address = protocol.peer_host
        alternative = offered(await begun(stream, BEGIN_SECONDS) or {})
        if alternative is None or not address:
            return None
        where = (address, alternative.port)
        if self._avoided.get(where, 0.0) > asyncio.get_running_loop().time():
            return None
        return where, alternative.token

    def _avoid(self, where: tuple[str, int]) -> None:
        _log.info(
            "streams stay where they are: port %d at %s cannot be reached, or is another one's", *where[::-1]
        )
        now = asyncio.get_running_loop().time()
        self._avoided = {other: until for other, until in self._avoided.items() if until > now}
        self._avoided[where] = now + AVOID_SECONDS

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


async def begun(stream: ClientStream, seconds: float) -> dict[str, str] | None:
    """The first headers of the answer, when they come in time; None also when the call ends before."""
    await asyncio.wait((stream.headers,), timeout=seconds)
    return stream.headers.result() if stream.headers.done() else None


def _told(error: Exception) -> str:
    """What happened, in the system's words where it is the system that refused."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
