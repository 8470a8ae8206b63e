"""Bytes appended to serialised messages, held against what protobuf makes of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cacheservice.server.appended import with_reads
from cacheservice.v1 import cache_pb2 as pb

VALUES = st.one_of(
    st.lists(st.binary(max_size=300)),
    st.builds(lambda size, count: [bytes(size)] * count, st.integers(0, 20_000), st.integers(0, 5)),
)


def response(batch_id: int, values: list[bytes]) -> pb.ExchangeResponse:
    answer = pb.ExchangeResponse(batch_id=batch_id, ring_epoch=7)
    answer.get.versions.extend(range(len(values)))
    return answer


@given(VALUES)
def test_values_are_those_of_the_response(values: list[bytes]) -> None:
    expected = response(1, values)
    outcomes = [number % 5 for number in range(len(values))]
    whole = with_reads(expected.SerializeToString(), outcomes, values)
    expected.get.outcomes.extend(outcomes)  # type: ignore[arg-type]
    expected.get.values.extend(values)
    assert pb.ExchangeResponse.FromString(whole) == expected
