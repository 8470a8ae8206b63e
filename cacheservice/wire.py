"""Errors on the wire: each error class is one gRPC status code and one ErrorInfo reason, both ways.

Also what both sides need to know of a connection before a call: whether there is one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from cacheservice import errors
from cacheservice.errors import CacheServiceError
from cacheservice.handshake import explained

_log = logging.getLogger(__name__)

DOMAIN: Final = "cacheservice"
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
EXCHANGE: Final = "/cacheservice.v1.CacheService/Exchange"
PEER_EXCHANGE: Final = "/cacheservice.v1.PeerService/Exchange"
"""The methods that are streams of batches, as a call names them."""
RETRY_AFTER_KEY: Final = "retry_after_ms"

_FAMILIES: Final[dict[type[CacheServiceError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.LoadFailed: grpc.StatusCode.ABORTED,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


def _with_subclasses(family: type[CacheServiceError]) -> list[type[CacheServiceError]]:
    return [family, *(leaf for child in family.__subclasses__() for leaf in _with_subclasses(child))]


_CODES: Final = {kind: code for family, code in _FAMILIES.items() for kind in _with_subclasses(family)}
_KINDS: Final = {kind.reason: kind for kind in _CODES}
_FAMILY_OF_CODE: Final = {code.value[0]: family for family, code in _FAMILIES.items()}


def status_code(error: CacheServiceError) -> grpc.StatusCode:
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)


def to_status(error: CacheServiceError) -> Status:
    """The status that tells the error, with ErrorInfo, and with RetryInfo where it says when."""
    details = [_packed(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))]
    if RETRY_AFTER_KEY in error.metadata:
        delay = Duration()
        delay.FromMilliseconds(int(error.metadata[RETRY_AFTER_KEY]))
        details.append(_packed(RetryInfo(retry_delay=delay)))
    return Status(code=status_code(error).value[0], message=error.message, details=details)


def from_status(status: Status) -> CacheServiceError:
    """The error that the status tells: of its reason's class, else of its code's family."""
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            info = ErrorInfo()
            detail.Unpack(info)
            if info.domain == DOMAIN and info.reason in _KINDS:
                return _KINDS[info.reason](status.message, **dict(info.metadata))
    family = _FAMILY_OF_CODE.get(status.code, CacheServiceError)
    return family(status.message)


def from_rpc_error(error: grpc.aio.AioRpcError) -> CacheServiceError:
    """The error with which a call ended; also for statuses that gRPC itself makes."""
    trailers = error.trailing_metadata() or ()
    details = [value for key, value in trailers if key == STATUS_DETAILS_KEY and isinstance(value, bytes)]
    return from_call(error.code().value[0], error.details() or "", details[0] if details else b"")


def from_call(code: int, message: str, details: bytes) -> CacheServiceError:
    """The same of what a call's last headers tell: `details` is a serialised google.rpc.Status, or empty."""
    if details:
        try:
            return from_status(Status.FromString(details))
        except DecodeError:
            _log.debug("a status whose details cannot be read: %r", details)
    if code == grpc.StatusCode.CANCELLED.value[0]:
        # Not by this side, which knows that it did so: the server stopped before it took the call.
        return errors.Unavailable(message or "the server cancelled the call")
    return from_status(Status(code=code, message=explained(message or f"gRPC status {code}")))


async def connects(channel: grpc.aio.Channel, seconds: float) -> bool:
    """Whether the channel is connected, or becomes so in time. If not, nothing was sent over it.

    What a call that fails has done by then cannot be told from its status alone.
    """
    state = channel.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        return True
    try:
        async with asyncio.timeout(seconds):
            while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        return False
    return state is grpc.ChannelConnectivity.READY


def was_cancelled_here() -> bool:
    """Whether the CancelledError being handled was meant for the current task.

    If not, somebody closed the channel of the call that the task waited for.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _packed(detail: ErrorInfo | RetryInfo) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed
