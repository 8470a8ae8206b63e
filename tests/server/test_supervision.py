from __future__ import annotations

import asyncio

import pytest

from cacheservice.server.supervision import for_ever
from tests.simulation.virtual_time import run


def test_work_that_fails_is_logged_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    attempts = 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        raise ZeroDivisionError("a defect")

    async def for_a_while() -> None:
        task = asyncio.create_task(for_ever("something", work))
        await asyncio.sleep(5.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(for_a_while())
    assert attempts == 6
    assert caplog.text.count("defect in something") == 6
    assert "ZeroDivisionError: a defect" in caplog.text
