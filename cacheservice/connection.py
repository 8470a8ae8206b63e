"""Channels and streams to nodes, in plaintext or with TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import grpc

from cacheservice.certificates import Certificates, Pems
from cacheservice.http2.client import Opener
from cacheservice.wire import connects

CLOSE_GRACE_SECONDS = 2.0
"""For calls under way over a channel that nobody needs any longer."""

Stubs = TypeVar("Stubs")
Options = Sequence[tuple[str, int | str]]


def open_channel(
    address: str, options: Options, pems: Pems | None, server_name: str = ""
) -> grpc.aio.Channel:
    """A channel, with TLS if there are certificates: with these for as long as it is open.

    The other side's certificate is to have the server name, or without one that of the address.
    """
    if pems is None:
        return grpc.aio.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(pems.ca, pems.key, pems.cert)
    override = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.aio.secure_channel(address, credentials, options=[*options, *override])


def stream_opener(max_message_bytes: int, certificates: Certificates | None) -> Opener:
    """What opens streams, over TLS if there are certificates, with those of then."""
    if certificates is None:
        return Opener(max_message_bytes)
    return Opener(max_message_bytes, certificates.client_context, certificates.server_name)


class Connection(Generic[Stubs]):
    """The stubs that `bind` makes for a channel to one address.

    The channel is opened anew when it is not connected, and the certificates have changed since.
    """

    def __init__(
        self,
        address: str,
        options: Options,
        certificates: Certificates | None,
        bind: Callable[[grpc.aio.Channel], Stubs],
    ) -> None:
        self._address = address
        self._options = options
        self._certificates = certificates
        self._bind = bind
        self._closing: set[asyncio.Task[None]] = set()
        self._open()

    @property
    def stubs(self) -> Stubs:
        if self._certificates is not None:
            self._renew(self._certificates)
        return self._stubs

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt to connect has failed, and no other one has come to an end."""
        return self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def connects(self, seconds: float) -> bool:
        """Whether there is a connection, or comes about in time."""
        if self._certificates is not None:
            self._renew(self._certificates)
        return await connects(self._channel, seconds)

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(self._channel.close(grace), *self._closing)

    def _open(self) -> None:
        given = self._certificates
        self._pems = None if given is None else given.current()
        name = "" if given is None else given.server_name
        self._channel = open_channel(self._address, self._options, self._pems, name)
        self._stubs = self._bind(self._channel)

    def _renew(self, certificates: Certificates) -> None:
        is_idle = self._channel.get_state() is grpc.ChannelConnectivity.IDLE
        if (is_idle or self.has_failed) and certificates.current() is not self._pems:
            closing = asyncio.create_task(self._channel.close(CLOSE_GRACE_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._open()
