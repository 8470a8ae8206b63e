"""A Server whose method answers each message with itself, and what its tests need beside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cacheservice.http2 import statuses
from cacheservice.http2.call import Call
from cacheservice.http2.client import Opener
from cacheservice.http2.client_stream import ClientStream
from cacheservice.http2.server import Server
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import End

METHOD = "/test.Test/Echo"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Echo:
    """Receives the messages of one call, and ends it when the caller has sent its last one."""

    def __init__(self, call: Call) -> None:
        self.call = call
        call.respond()
        self.received = 0
        self.ends: list[End] = []

    def headers_received(self, headers: dict[str, str]) -> None: ...

    def message_received(self, message: bytes) -> None:
        if message == b"defect":
            raise ZeroDivisionError("secret")
        self.received += 1
        self.call.send(message)

    def sending_ended(self) -> None:
        self.call.finish(CallStatus(statuses.OK, "all echoed"))

    def stream_ended(self, end: End) -> None:
        self.ends.append(end)

    def writable(self) -> None: ...


class Echoes(Server):
    """With the calls that it has had."""

    def __init__(self, tls: Callable[[], object] | None = None) -> None:
        self.calls: list[Echo] = []
        super().__init__({METHOD: self._begin}, MAX_MESSAGE_BYTES, tls)  # type: ignore[arg-type]

    def listen(self, host: str = "127.0.0.1") -> int:
        """Starts it; the port."""
        port = self.bind(host, 0)
        self.start()
        return port

    def _begin(self, call: Call) -> Echo:
        self.calls.append(Echo(call))
        return self.calls[-1]


class Messages:
    """Those that a client's stream has received."""

    def __init__(self) -> None:
        self._received: asyncio.Queue[bytes] = asyncio.Queue()
        self.received = self._received.put_nowait

    async def next(self) -> bytes:
        return await asyncio.wait_for(self._received.get(), 20)


async def opened(
    target: str, opener: Opener | None = None, method: str = METHOD
) -> tuple[ClientStream, Messages]:
    """A stream, and what comes over it."""
    messages = Messages()
    opener = Opener(MAX_MESSAGE_BYTES) if opener is None else opener
    return await opener.open(target, method, messages.received, lambda: None, 10), messages


async def until(condition: Callable[[], object]) -> None:
    """Waits for it, which is to be fulfilled soon."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
