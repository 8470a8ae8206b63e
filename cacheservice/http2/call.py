"""A client's call, as who handles it sees it."""

from __future__ import annotations

from collections.abc import Callable

from cacheservice.http2 import statuses
from cacheservice.http2.statuses import CallStatus
from cacheservice.http2.stream import Receiver, Stream


class Call:
    """A call that has begun; its methods are those of its stream.

    `timeout` are the seconds that its caller gave it, or None.
    """

    def __init__(self, stream: Stream, timeout: float | None) -> None:
        self.timeout = timeout
        self._stream = stream

    @property
    def max_message_bytes(self) -> int:
        """Of a message that is received."""
        return self._stream.max_message_bytes

    @property
    def is_blocked(self) -> bool:
        return self._stream.is_blocked

    def is_behind(self, most: int) -> bool:
        return self._stream.is_behind(most)

    def respond(self) -> None:
        self._stream.respond()

    def send(self, message: bytes) -> None:
        """After `respond`."""
        self._stream.send(message)

    def answer(self, message: bytes) -> None:
        """Ends the call with its only message."""
        self._stream.answer(message, statuses.END)

    def cancel(self) -> None:
        """Ends the call at once, without the rest of what was sent."""
        self._stream.cancel()

    def pause(self) -> None:
        self._stream.pause()

    def resume(self) -> None:
        self._stream.resume()

    def finish(self, status: CallStatus) -> None:
        """Ends the call when what was sent has left."""
        self._stream.finish(statuses.END if status == statuses.DONE else statuses.trailers(status))


Handler = Callable[[Call], Receiver]
"""Is given a call that has begun, and gives who receives its messages, before it ends."""
