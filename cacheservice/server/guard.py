"""What the methods of servicers see of a call."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from cacheservice.errors import Unimplemented

Context = grpc.aio.ServicerContext[Any, Any]
"""Of it there are `time_remaining`, `write` and `abort`: see ServedCall."""


def time_left_ms(context: Context, default_ms: int) -> int:
    """Until the caller's deadline; `default_ms` when it came without one."""
    remaining = context.time_remaining()
    return default_ms if remaining is None else round(remaining * 1_000)


def not_yet(rpc: str) -> Any:
    """A unary rpc of the contract that this version does not serve."""

    async def refuse(self: Any, request: Any, context: Context) -> NoReturn:
        raise Unimplemented.yet("rpc", rpc)

    return refuse
