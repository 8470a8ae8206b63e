"""Writes that the cache has at once and their origin a little later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

_log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0


class WriteBehind:
    """Sets values in the cache, and gives them to `writer` in batches; of a key the last one counts.

    What waits is bounded by `max_pending` keys: beyond, `set` waits for room. `writer` is called with up to
    `max_batch` values by key, one call at a time, and again with the same when it raises, after a pause. What
    waits is lost with the process; `close` writes it first. An entry may be evicted before its value is
    written, and would be loaded from the origin as it was: `pending` tells what is not written yet.
    """

    def __init__(
        self,
        cache: Callable[[str, Any], Awaitable[object]],
        writer: Callable[[Mapping[str, Any]], Awaitable[object]],
        max_pending: int,
        max_batch: int,
    ) -> None:
        if not 1 <= max_batch <= max_pending:
            raise ValueError(f"max_batch must be from 1 to max_pending ({max_pending}), not {max_batch}")
        self._cache = cache
        self._writer = writer
        self._max_pending = max_pending
        self._max_batch = max_batch
        self._waiting: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        """Those that the writer has been given and has not confirmed."""
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def __aenter__(self) -> WriteBehind:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def pending(self) -> Mapping[str, Any]:
        """The values that are not written yet, by key."""
        return {**self._written, **self._waiting}

    async def set(self, key: str, value: Any) -> None:
        """Has the value cached and, before long, written. Raises what setting it in the cache raises, and
        then does not write it. RuntimeError when closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_closed or self._has_room(key))
            if self._is_closed:
                raise RuntimeError("this WriteBehind is closed")
            await self._cache(key, value)
            self._waiting[key] = value
            self._changed.notify_all()
        if self._task is None:
            self._task = asyncio.create_task(self._write_all())

    async def flush(self) -> None:
        """Waits until all that was set before is written."""
        async with self._changed:
            await self._changed.wait_for(lambda: not (self._waiting or self._written))

    async def close(self) -> None:
        """Takes nothing more, and waits until all is written."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._task is not None:
            await self._task

    def _has_room(self, key: str) -> bool:
        pending = self._waiting.keys() | self._written.keys()
        return key in pending or len(pending) < self._max_pending

    async def _write_all(self) -> None:
        while await self._take():
            pause = FIRST_PAUSE_SECONDS
            while not await self._write():
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _take(self) -> bool:
        """Takes the next batch; False when there will be none."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._is_closed)
            for key in list(self._waiting)[: self._max_batch]:
                self._written[key] = self._waiting.pop(key)
            return bool(self._written)

    async def _write(self) -> bool:
        try:
            await self._writer(dict(self._written))
        except Exception:
            _log.warning("%d values could not be written; trying again", len(self._written), exc_info=True)
            return False
        async with self._changed:
            self._written.clear()
            self._changed.notify_all()
        return True
