"""What waits for a node that the tests play."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cacheservice.client.batch import Batch
from cacheservice.client.leased import LeasedReads
from cacheservice.client.pending import Pending
from cacheservice.v1 import cache_pb2 as pb

TIMES = (1.0, 0.5)


def nowhere(key: str, token: bytes) -> None:
    """Where a lease goes that no test looks for."""


def pending(give_back: Callable[[str, bytes], None] = nowhere, *, nearest: bool = False) -> Pending:
    loop = asyncio.get_running_loop()
    return Pending(loop.create_future, lambda: TIMES, LeasedReads, give_back, nearest=nearest)


def taken(
    waiting: Pending, under_way: int = 0, under_way_large: int = 0, *, is_changing: bool = False
) -> list[Any]:
    batches: list[Batch] = []
    while some := waiting.take(True, True, under_way, under_way_large, is_changing=is_changing):
        batches += some
    return batches


def request_of(batch: Batch) -> pb.ExchangeRequest:
    request = pb.ExchangeRequest()
    batch.fill(request, 9, 100)
    return request
