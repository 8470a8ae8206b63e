"""Keeps clients usable on both sides of os.fork.

gRPC's threads do not live on in a child, and what they were doing stays undone for ever: a process must not
have any when it forks. So the clients' connections are closed before, and opened again when needed.
"""

from __future__ import annotations

import atexit
import gc
import os
import threading
import time
from pathlib import Path
from typing import Protocol

_GRPC_THREADS = ("event_engine", "grpc_", "timer_manager", "lifeguard", "default-exec", "resolver-exec")
"""How gRPC names its threads."""
_LONGEST_WAIT_SECONDS = 2.0
_TASKS = Path("/proc/self/task")


class Connected(Protocol):
    def stop(self) -> None:
        """Closes all connections, when the calls under way have ended."""
        ...


gate = threading.Lock()
"""Held while connections are opened or closed, and while the process forks."""
_connected: set[Connected] = set()


def opened(connected: Connected) -> None:
    """To be told of what has connections; the gate is held."""
    _connected.add(connected)


def close(connected: Connected) -> None:
    """Stops it; the gate is held."""
    _connected.discard(connected)
    connected.stop()


def _close_all() -> bool:
    """Whether there were any."""
    had_any = bool(_connected)
    while _connected:
        _connected.pop().stop()
    return had_any


def _before_fork() -> None:
    gate.acquire()
    if _close_all():
        _wait_for_grpc()


def _after_fork() -> None:
    gate.release()


def _wait_for_grpc() -> None:
    """Until its threads are gone, for which whatever refers to a channel must go first."""
    until = time.monotonic() + _LONGEST_WAIT_SECONDS
    while _has_grpc_threads() and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)


def _has_grpc_threads() -> bool:
    try:
        names = [(task / "comm").read_text() for task in _TASKS.iterdir()]
    except FileNotFoundError:
        # A thread that has just ended; or another system, which does not tell.
        return True
    return any(name.startswith(_GRPC_THREADS) for name in names)


def _at_exit() -> None:
    with gate:
        _close_all()


atexit.register(_at_exit)
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
