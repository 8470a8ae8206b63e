from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from cacheservice import errors
from cacheservice.errors import CacheServiceError
from cacheservice.wire import from_rpc_error, from_status, status_code, to_status


def every_error() -> list[type[CacheServiceError]]:
    found: list[type[CacheServiceError]] = []
    unseen = [CacheServiceError]
    while unseen:
        children = unseen.pop().__subclasses__()
        found += children
        unseen += children
    return found


@pytest.mark.parametrize("kind", every_error())
def test_every_error_keeps_its_class_and_metadata_over_the_wire(kind: type[CacheServiceError]) -> None:
    status = to_status(kind("what happened", field="key"))
    back = from_status(Status.FromString(status.SerializeToString()))
    assert type(back) is kind
    assert back.message == "what happened"
    assert back.metadata == {"field": "key"}
    assert status.code == status_code(back).value[0]
    assert status_code(back) is not grpc.StatusCode.UNKNOWN


def test_reasons_are_distinct_and_drawn_in_the_docstring() -> None:
    kinds = every_error()
    assert len({kind.reason for kind in kinds}) == len(kinds)
    assert errors.__doc__ is not None
    for kind in kinds:
        assert f"── {kind.__name__}" in errors.__doc__


def test_error_info() -> None:
    [detail] = to_status(errors.InvalidArgument.of("key", "1 to 3 bytes", "9")).details
    info = ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "cacheservice")
    assert dict(info.metadata) == {"field": "key", "bound": "1 to 3 bytes"}


def test_an_overload_says_when_to_come_back() -> None:
    details = to_status(errors.Overloaded("too much", retry_after_ms="1500")).details
    retry = RetryInfo()
    assert details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1_500


def rpc_error(code: grpc.StatusCode, details: str, *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted),
        (grpc.StatusCode.UNKNOWN, CacheServiceError),
    ],
)
def test_statuses_that_grpc_makes(code: grpc.StatusCode, kind: type[CacheServiceError]) -> None:
    error = from_rpc_error(rpc_error(code, "words"))
    assert type(error) is kind
    assert error.message == "words"


def test_an_rpc_error_with_details() -> None:
    packed = to_status(errors.NotACounter("no counter")).SerializeToString()
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.FAILED_PRECONDITION, "", ("grpc-status-details-bin", packed))
    )
    assert type(error) is errors.NotACounter
