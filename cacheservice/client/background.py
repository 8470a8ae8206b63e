"""An event loop in a thread of its own, with a client, for the threads of a process."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Generic, TypeVar

import uvloop

from cacheservice.client.client import Client

Result = TypeVar("Result")

_LAST_EVENTS_SECONDS = 0.05


class Call(Generic[Result]):
    """What a thread asks for, and waits for; done in a copy of the thread's context."""

    __slots__ = ("_error", "_finished", "_result", "context", "start")

    def __init__(self, start: Callable[[Client[Any]], Coroutine[Any, Any, Result]]) -> None:
        self.start = start
        self.context = copy_context()
        self._finished = threading.Lock()
        self._finished.acquire()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def result(self) -> Result:
        """Waits for it."""
        self._finished.acquire()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def finish(self, task: asyncio.Task[Result]) -> None:
        try:
            self._result = task.result()
        except BaseException as error:
            self._error = error
        self._finished.release()


class Background:
    """Runs calls of many threads on one loop; those that come while it is busy begin together."""

    def __init__(self, client: Client[Any]) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._waiting: deque[Call[Any]] = deque()
        self._is_woken = False
        self.is_stopped = False
        self._under_way: set[asyncio.Task[Any]] = set()
        self._loop = uvloop.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="cacheservice", daemon=True)
        self._thread.start()

    def begin(self, call: Call[Any]) -> bool:
        """Has the call done; false when this has been stopped. RuntimeError in a call of its own: it would
        wait for itself."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a SyncClient must not be used within one of its own calls")
        with self._lock:
            if self.is_stopped:
                return False
            self._waiting.append(call)
            if not self._is_woken:
                self._is_woken = True
                self._loop.call_soon_threadsafe(self._begin_waiting)
        return True

    def stop(self) -> None:
        """Waits for the calls under way, closes the client, and ends the thread."""
        self.stop_soon()
        self._thread.join()

    def stop_soon(self) -> None:
        """`stop` without waiting."""
        if self.is_stopped:
            # After a fork the lock may be held by a thread that is not there.
            return
        with self._lock:
            if not self.is_stopped:
                self.is_stopped = True
                self._loop.call_soon_threadsafe(self._stopping.set)

    def _begin_waiting(self) -> None:
        self._is_woken = False
        while self._waiting:
            call = self._waiting.popleft()
            task = self._loop.create_task(call.start(self._client), context=call.context)
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            task.add_done_callback(call.finish)

    def _work(self) -> None:
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()
            # Whatever refers to a channel keeps gRPC's threads alive.
            del self._client

    async def _run(self) -> None:
        async with self._client:
            await self._stopping.wait()
            self._begin_waiting()
            if self._under_way:
                await asyncio.wait(self._under_way)
        # gRPC lets go of a loop when it has told it the end of everything that was under way.
        await asyncio.sleep(_LAST_EVENTS_SECONDS)
