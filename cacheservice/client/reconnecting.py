"""Keeps a stream to one node open: opens it again whenever it ends, after pauses that grow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cacheservice.client.channel import Backoff, NodeStubs
from cacheservice.errors import CacheServiceError, NotReady, Unavailable
from cacheservice.http2.client_stream import ClientStream, StreamFailed
from cacheservice.wire import from_call

if TYPE_CHECKING:
    from cacheservice.client.lane import Lane

_CONNECT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


async def keep_open(lane: Lane, stubs: NodeStubs) -> None:
    """Has the lane use one stream after the other, until it is cancelled."""
    backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
    while True:
        try:
            stream = await stubs.exchange(lane.receive, lane.wake, _CONNECT_SECONDS)
        except Unavailable as error:
            failure: CacheServiceError = error
        else:
            failure = await _use(lane, stream, backoff)
        lane.failed(failure)
        await _pause(lane, backoff.next())


async def _use(lane: Lane, stream: ClientStream, backoff: Backoff) -> CacheServiceError:
    """Has the lane use the stream until it ends; why it did."""
    lane.opened(stream)
    try:
        await stream.finished()
    except StreamFailed as failure:
        return from_call(*failure.status)
    else:
        return NotReady(f"{lane.address} is about to stop")
    finally:
        had_answers = lane.ended()
        await stream.close()
        if had_answers:
            backoff.reset()


async def _pause(lane: Lane, seconds: float) -> None:
    """Waits so long, or only the shortest pause when somebody asks for something."""
    await asyncio.sleep(_FIRST_PAUSE_SECONDS)
    asked = lane.rest()
    if asked is not None:
        await asyncio.wait((asked,), timeout=seconds)
        lane.rested()
