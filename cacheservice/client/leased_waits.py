"""Waiting for reads that may come with a lease: who stops waiting gives it back."""

from __future__ import annotations

import asyncio
from typing import Any

from cacheservice.client.leased import Found, GiveBack, OneForAll


async def one_found(future: asyncio.Future[Found], key: str, give_back: GiveBack) -> Found:
    try:
        return await future
    except asyncio.CancelledError:
        if _has_result(future) and (token := future.result().token):
            give_back(key, token)
        raise


async def all_found(caller: OneForAll) -> dict[str, Found]:
    try:
        return await caller.future
    except asyncio.CancelledError:
        caller.leave()
        raise


def _has_result(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
