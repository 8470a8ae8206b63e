"""Something that changes, and those who watch it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

State = TypeVar("State")


class Changes:
    """`changed` is to be called after every change, and `close` when nobody is to be told of more."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Event] = set()
        self._closed = False

    def changed(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def close(self) -> None:
        self._closed = True
        self.changed()

    async def tell(self, current: Callable[[], State], send: Callable[[State], Awaitable[object]]) -> None:
        """Sends the current state, and again whenever it is another one, until `close`.

        Changes that come while one is being sent are sent as one.
        """
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        sent: State | None = None
        try:
            while not self._closed:
                watcher.clear()
                state = current()
                if state != sent:
                    sent = state
                    await send(state)
                else:
                    await watcher.wait()
        finally:
            self._watchers.discard(watcher)
