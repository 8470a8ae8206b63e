"""One of the workers of `serve --workers N`: a node whose parent gives it its settings.

The process ends in order, as after SIGTERM, when its parent has ended, whatever ended that.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from threading import Thread
from typing import NoReturn

from pydantic import ValidationError

from cacheservice.cli.serve import problems, run_node
from cacheservice.cli.supervisor import HOPELESS
from cacheservice.cli.workers import Orders
from cacheservice.errors import NodeIdTaken

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def main() -> None:
    line = sys.stdin.buffer.readline()
    if not line:
        return
    name = sys.argv[1]
    try:
        orders = Orders.model_validate_json(line)
    except ValidationError as error:
        # Certificates were all right when the parent began, but are files, which change.
        _fail(name, problems(error, within=("settings",)))
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_node(orders.settings, orders.siblings, name=name, on_start=_tell_parent)
    except (OSError, NodeIdTaken) as error:
        _fail(name, str(error), HOPELESS if isinstance(error, NodeIdTaken) else 1)


def _fail(name: str, problem: str, code: int = 1) -> NoReturn:
    print(f"error: {name}: {problem}", file=sys.stderr)
    sys.exit(code)


def _tell_parent() -> None:
    """Says that all is well, and no more: nobody would read it."""
    with suppress(BrokenPipeError):
        os.write(_STDOUT, b"\n")
    os.dup2(_STDERR, _STDOUT)


def _end_with_parent() -> None:
    # Nothing more is ever written: it ends when the parent's end of the pipe is closed.
    os.read(_STDIN, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
