"""What becomes of requests: messages parsed, results answered, errors told."""

from __future__ import annotations

import logging
from asyncio import Future
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from cacheservice.errors import CacheServiceError, InternalError, InvalidArgument
from cacheservice.http2.statuses import CallStatus
from cacheservice.node.later import Later
from cacheservice.wire import status_code, to_status

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Pending:
    """A request that waits for other nodes: `answer` makes its answer, once `future` is done."""

    def __init__(self, future: Future[Any], answer: Callable[[], bytes]) -> None:
        self.future = future
        self.answer = answer


def completed(
    later: Later[Result], answer: Callable[[Result], bytes], refused: Callable[[CacheServiceError], bytes]
) -> bytes:
    """The answer to a request, with its result or with what it was refused for."""
    try:
        return answer(later.result())
    except CacheServiceError as error:
        return refused(error)
    except Exception:
        return refused(defect())


def parsed(parse: Callable[[bytes], Any], message: bytes) -> Any:
    """What the message says; InvalidArgument when it is none of its type."""
    try:
        return parse(message)
    except DecodeError as error:
        raise InvalidArgument.of("request", "a message of its type", str(error)) from None


def call_status(error: CacheServiceError) -> CallStatus:
    """With which a call ends for that reason."""
    return CallStatus(status_code(error).value[0], error.message, to_status(error).SerializeToString())


def defect() -> InternalError:
    """What to answer in place of the exception that is being handled, which is logged."""
    _log.exception("defect in a stream")
    return InternalError("a defect in the node; its log has the details")
