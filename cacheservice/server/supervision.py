"""Background work that outlives its own defects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0


async def for_ever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work`, which does not end by itself, and runs it anew when it fails, after a pause.

    A node without expiry or gossip would look healthy and be none; the log has every failure.
    """
    while True:
        try:
            await work()
        except Exception:
            _log.exception("defect in %s; it goes on in %g s", name, _PAUSE_SECONDS)
        await asyncio.sleep(_PAUSE_SECONDS)
