"""WriteBehind for threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any

from cacheservice.client.write_behind import WriteBehind


class SyncWriteBehind:
    """As WriteBehind, without await; the writer runs in a thread of its own, not in those that `set`.

    After os.fork it works in the parent alone: make another one in the child.
    """

    def __init__(
        self,
        cache: Callable[[str, Any], object],
        writer: Callable[[Mapping[str, Any]], object],
        max_pending: int,
        max_batch: int,
    ) -> None:
        async def set_there(key: str, value: Any) -> None:
            await asyncio.to_thread(cache, key, value)

        async def write(values: Mapping[str, Any]) -> None:
            await asyncio.to_thread(writer, values)

        self._behind = WriteBehind(set_there, write, max_pending, max_batch)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="cacheservice write-behind", daemon=True)
        self._thread.start()

    def __enter__(self) -> SyncWriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pending(self) -> Mapping[str, Any]:
        return self._behind.pending

    def set(self, key: str, value: Any) -> None:
        self._run(self._behind.set(key, value))

    def flush(self) -> None:
        self._run(self._behind.flush())

    def close(self) -> None:
        if self._thread.is_alive():
            self._run(self._behind.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("this WriteBehind is closed")
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _work(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
