"""What is under way, and when nothing is any longer."""

from __future__ import annotations

import asyncio
from typing import TypeVar

Item = TypeVar("Item")


class UnderWay(set[Item]):
    """Those that have begun and not ended: each is added, and discarded in the end."""

    _empty: asyncio.Future[None] | None = None

    def discard(self, item: object) -> None:
        super().discard(item)
        if not self and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    async def ended(self, seconds: float) -> None:
        """Returns when all have ended, or after so long."""
        if self:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._empty,), timeout=seconds)
