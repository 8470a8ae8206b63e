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
from weakref import WeakSet

_GRPC_THREADS = ("event_engine", "grpc_", "timer_manager", "lifeguard", "default-exec", "resolver-exec")
"""How gRPC names its threads."""
_LONGEST_WAIT_SECONDS = 2.0
_TASKS = Path("/proc/self/task")


class Forkable(Protocol):
    lock: threading.Lock
    """Held while a process forks: no connection is opened then."""

    def disconnect(self) -> bool:
        """Closes all connections; whether there were any. The lock is held."""
        ...


_clients: WeakSet[Forkable] = WeakSet()
_forking: list[Forkable] = []


def keep(client: Forkable) -> None:
    """Takes care of the client whenever the process forks, and at its end."""
    _clients.add(client)


def _before_fork() -> None:
    for client in list(_clients):
        client.lock.acquire()
        _forking.append(client)
    were_connected = [client.disconnect() for client in _forking]
    if any(were_connected):
        _wait_for_grpc()


def _after_fork() -> None:
    while _forking:
        _forking.pop().lock.release()


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
    for client in list(_clients):
        with client.lock:
            client.disconnect()


atexit.register(_at_exit)
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
