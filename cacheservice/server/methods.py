"""What generated code registers its handlers with, so that they are served here; and the calls under way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from cacheservice.http2 import statuses
from cacheservice.http2.call import Call, Handler
from cacheservice.http2.statuses import CallStatus
from cacheservice.server.served_call import Method, ServedCall
from cacheservice.server.under_way import UnderWay

CANCEL_SECONDS = 1.0
"""For methods that are cancelled to come to their end."""
CHECK_SECONDS = 0.1
"""Between two looks at the deadlines of calls: callers give up by themselves, this is for the methods."""


class Methods:
    """Takes the place of grpcio's server in the functions that generated code has: `add_..._to_server`.

    Methods that are None are left to others.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        """By path."""
        self._open: UnderWay[ServedCall] = UnderWay()
        self._timer: asyncio.TimerHandle | None = None

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Handlers come a second time, by name, and are taken from there."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for name, handler in handlers.items():
            kinds = handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream
            parse, serialize = handler.request_deserializer, handler.response_serializer
            for work in filter(None, kinds):
                method = Method(work, parse, serialize, handler.request_streaming, handler.response_streaming)
                self.handlers[f"/{service}/{name}"] = partial(self._begun, method)

    async def finish(self, seconds: float) -> None:
        """Returns when no call is under way; after so long those that still are have been cancelled."""
        await self._open.ended(seconds)
        stopping = CallStatus(statuses.UNAVAILABLE, "the node is about to stop")
        tasks = [task for call in list(self._open) if (task := call.cancel(stopping)) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
        if self._timer is not None:
            self._timer.cancel()

    def _begun(self, method: Method, call: Call) -> ServedCall:
        served = ServedCall(method, call, self._open.discard)
        self._open.add(served)
        if served.deadline is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)
        return served

    def _check(self) -> None:
        """Ends what nobody waits for any longer."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        limited = [(call.deadline, call) for call in self._open if call.deadline is not None]
        for deadline, call in limited:
            if deadline <= now:
                call.cancel(CallStatus(statuses.DEADLINE_EXCEEDED, "its caller waits no longer"))
        self._timer = loop.call_later(CHECK_SECONDS, self._check) if limited else None
