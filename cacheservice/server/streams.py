"""Streams of requests that are answered side by side, each when it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from cacheservice.http2 import statuses
from cacheservice.http2.call import Call, Handler
from cacheservice.http2.statuses import CallStatus
from cacheservice.server.direct_stream import Begun, DirectStream
from cacheservice.server.under_way import UnderWay


def alone(message: Any) -> tuple[Any]:
    """One request a message."""
    return (message,)


class Streams:
    """Serves streams until their callers end them, or `close` does."""

    def __init__(self) -> None:
        self._open: UnderWay[DirectStream] = UnderWay()
        self._timers: dict[DirectStream, asyncio.TimerHandle] = {}
        """What ends them at their deadlines, which few have."""
        self._closed = False

    def close(self) -> None:
        """Ends the streams: each when what it has read is answered."""
        self._closed = True
        for stream in list(self._open):
            stream.stop_reading()

    async def finished(self, seconds: float) -> None:
        """Returns when all streams have ended, or after so long."""
        await self._open.ended(seconds)

    def handler(
        self,
        parse: Callable[[bytes], Any],
        begin: Callable[[Any], Begun],
        requests: Callable[[Any], Iterable[Any]] = alone,
    ) -> Handler:
        """What serves a method: `begin` makes the answer to each of the `requests` in a message."""

        def serve(call: Call) -> DirectStream:
            loop = asyncio.get_running_loop()
            call.respond()
            stream = DirectStream(call, parse, begin, requests, self._discard)
            if call.timeout is not None:
                late = CallStatus(statuses.DEADLINE_EXCEEDED, "its caller waits no longer")
                self._timers[stream] = loop.call_later(call.timeout, stream.end, late)
            self._open.add(stream)
            if self._closed:
                loop.call_soon(stream.stop_reading)
            return stream

        return serve

    def _discard(self, stream: DirectStream) -> None:
        self._open.discard(stream)
        timer = self._timers.pop(stream, None)
        if timer is not None:
            timer.cancel()
