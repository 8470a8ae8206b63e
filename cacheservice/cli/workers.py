"""serve --workers N: one member of the cluster a process, and a parent that keeps them running."""

from __future__ import annotations

import os
import sys

from pydantic import BaseModel, ByteSize

from cacheservice.address import join_address, split_address
from cacheservice.cli.supervisor import Program, Supervisor
from cacheservice.config import ENV_PREFIX, Settings
from cacheservice.server.stop_signals import on_stop_signal

_STOP_SLACK_SECONDS = 15.0
"""What a node may take to stop beyond drain_seconds: it says so to others, and finishes its requests."""


class Orders(BaseModel):
    """What a worker is told by its parent."""

    settings: Settings
    siblings: tuple[str, ...]
    """The addresses of all workers of the parent."""


def settings_of_workers(settings: Settings) -> list[Settings]:
    """Each worker's own settings."""
    return [_settings_of(settings, number) for number in range(settings.workers)]


def programs(settings: Settings) -> list[Program]:
    """The workers as processes. They have all settings from the parent, so that one that is started anew runs
    with those of the others, whatever has become of the file."""
    workers = settings_of_workers(settings)
    siblings = tuple(worker.advertise or worker.listen for worker in workers)
    return [
        Program(
            worker.node_id,
            # The names are for whoever looks at the list of processes.
            (sys.executable, "-m", "cacheservice.cli.worker", worker.node_id, worker.listen),
            {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)},
            # What was left out stays so: some settings may only be given together with others.
            Orders(settings=worker, siblings=siblings).model_dump_json(exclude_unset=True).encode() + b"\n",
        )
        for worker in workers
    ]


async def run_workers(settings: Settings) -> int:
    """Runs the workers until SIGTERM or SIGINT; the exit code."""
    supervisor = Supervisor(programs(settings), settings.drain_seconds + _STOP_SLACK_SECONDS)
    on_stop_signal(supervisor.stop)
    return await supervisor.run()


def _settings_of(settings: Settings, number: int) -> Settings:
    return settings.model_copy(
        update={
            "node_id": f"{settings.node_id}-w{number}",
            "listen": _following(settings.listen, number),
            "advertise": settings.advertise and _following(settings.advertise, number),
            "health_listen": settings.health_listen and _following(settings.health_listen, number),
            "host": settings.host or settings.node_id,
            "max_memory": ByteSize(settings.max_memory // settings.workers),
            "workers": 1,
            "config": None,
        }
    )


def _following(address: str, number: int) -> str:
    host, port = split_address(address)
    return join_address(host, port + number)
