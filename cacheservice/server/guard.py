"""What every rpc of a servicer has in common: errors become statuses, and load is bounded."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError

from cacheservice.errors import (
    CacheServiceError,
    InternalError,
    InvalidArgument,
    Unimplemented,
)
from cacheservice.wire import STATUS_DETAILS_KEY, status_code, to_status

_log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Request, Context], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a request whose bytes are no message of its type."""

    why: str


class TolerantServer:
    """What generated code registers its handlers with, so that malformed requests reach `guarded`.

    gRPC itself would answer them with UNKNOWN and the text of the exception.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Handlers come a second time, by name, and are taken from there."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        tolerant = {
            name: handler._replace(
                request_deserializer=_tolerant(handler.request_deserializer),
                response_serializer=_serialized_by(handler),
            )
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, tolerant),))
        self._server.add_registered_method_handlers(service, tolerant)


def _serialized_by(handler: Any) -> Callable[[Any], bytes] | None:
    """None for a stream of requests and responses: such a method writes bytes, whose size it then knows."""
    is_exchange = handler.request_streaming and handler.response_streaming
    return None if is_exchange else handler.response_serializer


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_tell(content: bytes) -> Any:
        try:
            return parse(content)
        except DecodeError as error:
            return Malformed(str(error))

    return parse_or_tell


def guarded(method: Method[Request, Response]) -> Method[Request, Response]:
    """Makes a method of a servicer answer errors as statuses with details."""

    @functools.wraps(method)
    async def answer(self: Any, request: Request, context: Context) -> Response:
        try:
            if isinstance(request, Malformed):
                raise InvalidArgument.of("request", "a message of its type", request.why)
            return await method(self, request, context)
        except CacheServiceError as error:
            await _abort(context, error)
        except Exception:
            _log.exception("defect in %s", method.__qualname__)
            await _abort(context, InternalError("a defect in the node; its log has the details"))

    return answer


def time_left_ms(context: Context, default_ms: int) -> int:
    """Until the caller's deadline; `default_ms` when it came without one."""
    remaining = context.time_remaining()
    return default_ms if remaining is None else round(remaining * 1_000)


def not_yet(rpc: str) -> Any:
    """A unary rpc of the contract that this version does not serve."""

    async def refuse(self: Any, request: Any, context: Context) -> NoReturn:
        await _abort(context, Unimplemented.yet("rpc", rpc))

    return refuse


async def _abort(context: Context, error: CacheServiceError) -> NoReturn:
    details = ((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),)
    await context.abort(status_code(error), error.message, details)
