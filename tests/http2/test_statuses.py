"""What the last headers of a call tell, also when they make little sense."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.errors import InvalidArgument, Unavailable
from cacheservice.http2.statuses import CallStatus, is_call, status_of, timeout_of, trailers
from cacheservice.http2.stream import End
from cacheservice.wire import from_call


@given(st.integers(0, 16), st.text(max_size=50), st.binary(max_size=50))
def test_what_is_told_is_what_was_said(code: int, message: str, details: bytes) -> None:
    status = CallStatus(code, message.encode("utf-8", "replace").decode(), details)
    headers = {str(name): str(value) for name, value in Decoder().decode(trailers(status))}
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert status_of(End(headers)) == status


@pytest.mark.parametrize("code", ["", "x", "-1", "1.5", "\u0663", "9" * 5_000])
def test_codes_that_are_none(code: str) -> None:
    assert status_of(End({"grpc-status": code})).code == 2


@pytest.mark.parametrize("details", ["%", "a", "\u00e9\u00e9", "====", "AAAA,BBBB"])
def test_details_that_are_none(details: str) -> None:
    status = status_of(End({"grpc-status": "3", "grpc-message": "%", "grpc-status-details-bin": details}))
    assert status[:2] == (3, "%")


BROKEN = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")


@pytest.mark.parametrize("details", [b"\xff\xff", b"\x0a", Status(details=[BROKEN]).SerializeToString()])
def test_details_that_are_no_status_leave_what_else_is_told(details: bytes) -> None:
    error = from_call(3, "a bound", details)
    assert (type(error), error.message) == (InvalidArgument, "a bound")


def test_calls_without_a_status() -> None:
    assert status_of(End({})) == (14, "the call ended without a status", b"")
    assert status_of(End({":status": "404"})) == (14, "HTTP status 404", b"")
    assert isinstance(from_call(*status_of(End({}, "cut"))), Unavailable)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3_600), ("2M", 120), ("3S", 3), ("40m", 0.04), ("50u", 0.00005), ("99999999n", 0.099999999)],
)
def test_timeouts(text: str, seconds: float) -> None:
    assert timeout_of({"grpc-timeout": text}) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "S", "1", "1s", "1.5S", "-1S", "123456789S", "\u0663S", " 1S"])
def test_timeouts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="grpc-timeout"):
        timeout_of({"grpc-timeout": text})


@pytest.mark.parametrize(
    ("method", "content_type", "expected"),
    [
        ("POST", "application/grpc", True),
        ("POST", "application/grpc+proto", True),
        ("POST", "application/grpc;charset=utf-8", True),
        ("POST", "application/grpc-web", False),
        ("POST", "text/application/grpc", False),
        ("POST", "", False),
        ("GET", "application/grpc", False),
    ],
)
def test_what_a_call_is(method: str, content_type: str, expected: bool) -> None:
    assert is_call({":method": method, "content-type": content_type}) is expected
