"""What every rpc of a servicer has in common: errors become statuses, and load is bounded."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import grpc

from cacheservice.errors import CacheServiceError, InternalError, Overloaded, Unimplemented
from cacheservice.wire import STATUS_DETAILS_KEY, status_code, to_status

_log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Request, Context], Awaitable[Response]]

OVERLOAD_RETRY_MS = 100


class InFlight:
    """Counts the requests at work and refuses those beyond `limit`."""

    def __init__(self, limit: int) -> None:
        self.refused = 0
        self.count = 0
        self._limit = limit

    def __enter__(self) -> None:
        if self.count >= self._limit:
            self.refused += 1
            raise Overloaded(
                f"{self._limit} requests are in flight at this node already",
                retry_after_ms=str(OVERLOAD_RETRY_MS),
            )
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1


def unary(method: Unary[Request, Response]) -> Unary[Request, Response]:
    """Makes a method of a servicer answer errors as statuses with details."""

    @functools.wraps(method)
    async def guarded(self: Any, request: Request, context: Context) -> Response:
        try:
            return await method(self, request, context)
        except CacheServiceError as error:
            await _abort(context, error)
        except Exception:
            _log.exception("defect in %s", method.__qualname__)
            await _abort(context, InternalError("a defect in the node; its log has the details"))

    return guarded


def not_yet(rpc: str) -> Any:
    """A unary rpc of the contract that this version does not serve."""

    async def refuse(self: Any, request: Any, context: Context) -> NoReturn:
        await _abort(context, _not_yet(rpc))

    return refuse


def not_yet_streaming(rpc: str) -> Any:
    """A streaming rpc of the contract that this version does not serve."""

    async def refuse(self: Any, request: Any, context: Context) -> AsyncIterator[Any]:
        await _abort(context, _not_yet(rpc))
        yield

    return refuse


def _not_yet(rpc: str) -> Unimplemented:
    return Unimplemented(f"{rpc} is part of the contract, but this version does not serve it yet", rpc=rpc)


async def _abort(context: Context, error: CacheServiceError) -> NoReturn:
    details = ((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),)
    await context.abort(status_code(error), error.message, details)
