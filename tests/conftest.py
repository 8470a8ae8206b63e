from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Who starts the tests in a shell's background has them, and the processes that they start, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the machine's speed is no property of the code. A failure prints what replays it.
settings.register_profile("cacheservice", deadline=None, print_blob=True)
settings.load_profile("cacheservice")


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Finds a tool that `make tools` builds; skips where there is no Go toolchain, but never in CI."""

    def find(name: str) -> str:
        path = ROOT / ".tools" / name
        if path.exists():
            return str(path)
        if shutil.which("go") is None and "CI" not in os.environ:
            pytest.skip(f"{name} is built with Go, which is not installed")
        pytest.fail(f"{name} is missing: run `make tools`")

    return find


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What the test has opened; closed in the end."""
    async with AsyncExitStack() as opened:
        yield opened
