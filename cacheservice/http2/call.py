"""A client's call, as who handles it sees it."""

from __future__ import annotations

from collections.abc import Callable

from cacheservice.http2 import statuses
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import Receiver, Stream


class Call:
    """A call that has begun; its methods are those of its stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def send(self, message: bytes) -> None:
        self._stream.send(message)

    def pause(self) -> None:
        self._stream.pause()

    def resume(self) -> None:
        self._stream.resume()

    def is_behind(self, most: int) -> bool:
        return self._stream.is_behind(most)

    def finish(self, status: CallStatus) -> None:
        """Ends the call when what was sent has left."""
        self._stream.finish(statuses.trailers(status))


Handler = Callable[[Call], Receiver]
"""Is given a call that has begun, and gives who receives its messages."""
