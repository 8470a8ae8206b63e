"""One stream to a peer, opened when something is asked, and again when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cacheservice.http2.client import ConnectFailed
from cacheservice.http2.client_stream import ClientStream, StreamFailed
from cacheservice.server.questions import Question, Questions, StreamEnded
from cacheservice.wire import from_call

REFUSAL_SECONDS = 0.1


OpenStream = Callable[[Callable[[bytes], None], Callable[[], None]], Awaitable[ClientStream]]
"""Opens a stream; see `open_stream`, of which it is what differs between streams."""


class PeerStream:
    """Opened when something is asked, and again when it has ended."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._open_stream = open_stream
        self._questions = Questions()
        self._refuses_until = 0.0
        """After an attempt to connect that has failed nobody waits for another one so soon."""
        self._refusal = ""
        self._task: asyncio.Task[None] | None = None

    def ask(self, question: Question) -> asyncio.Future[list[Any]]:
        """The answer to each row. StreamEnded when there is none; else the error that the peer answered with.

        TimeoutError after the question's timeout_ms.
        """
        if self._task is None or self._task.done():
            if asyncio.get_running_loop().time() < self._refuses_until:
                question.fail(StreamEnded(self._refusal, was_sent=False))
                return question.answer
            self._task = asyncio.create_task(self._run())
        self._questions.add(question)
        return question.answer

    async def finish(self, seconds: float) -> None:
        """Closes it when all that has been asked is answered, or after so long."""
        if asked := self._questions.asked:
            await asyncio.wait([question.answer for question in asked], timeout=seconds)
        await self.close()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        """Until nothing is left that was asked while a stream was being closed."""
        await self._serve()
        while self._questions.are_waiting:
            await self._serve()

    async def _serve(self) -> None:
        """Opens a stream, and sends and receives until it ends."""
        stream: ClientStream | None = None
        why, was_done = "the connection was closed", True
        try:
            stream = await self._open_stream(self._questions.receive, self._questions.wake)
            self._questions.opened(stream)
            await stream.finished()
            why, was_done = "it is about to stop", False
        except ConnectFailed as failure:
            why = self._refusal = str(failure)
            self._refuses_until = asyncio.get_running_loop().time() + REFUSAL_SECONDS
        except StreamFailed as failure:
            why = from_call(*failure.status).message
        finally:
            self._questions.ended(why, maybe_done=was_done)
            if stream is not None:
                await stream.close()
