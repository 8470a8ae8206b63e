"""SIGTERM and SIGINT: the first one ends the process in order, and no other one has an effect."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Calls `stop` in the running loop at the first of them; others are ignored until the process has ended.

    These are no handlers of the loop: taking those away, as it does at its end, has a process killed by
    whoever asks again.
    """
    loop = asyncio.get_running_loop()

    def told(*_: object) -> None:
        ignore_stop_signals()
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop)

    # A loop that has no handler of its own may begin to wait without noticing a signal. This is one.
    loop.add_signal_handler(signal.SIGURG, lambda: None)
    for number in _STOP_SIGNALS:
        signal.signal(number, told)


def ignore_stop_signals() -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
