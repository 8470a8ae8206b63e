from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cacheservice.remote_clock import MOST_DRIFT, RemoteClock


@given(
    st.floats(-1e9, 1e9),
    st.floats(0, 5_000),
    st.lists(st.tuples(st.floats(1, 5_000), st.floats(0, 5_000)), min_size=1, max_size=30),
    st.floats(-MOST_DRIFT / 2, MOST_DRIFT / 2),
)
def test_a_moment_is_never_taken_for_a_later_one(
    offset: float, connecting: float, messages: list[tuple[float, float]], drift: float
) -> None:
    """But by what the clock may have been followed without need: MOST_DRIFT of the time."""
    remote = RemoteClock(0.0)
    sent = connecting
    received = 0.0
    for pause, delay in messages:
        sent += pause
        received = max(received, sent + delay)
        moment = sent * (1 + drift) + offset
        here = remote.here(moment, received)
        assert here <= sent + received * 2 * MOST_DRIFT + 0.001
        assert here <= received + 0.001


def test_late_messages_show() -> None:
    remote = RemoteClock(100.0)
    assert remote.here(5_000.0, 110.0) == 100.0
    assert remote.here(6_000.0, 1_110.0) < 1_101.0
    assert remote.here(6_500.0, 4_000.0) < 1_602.0
    assert remote.here(9_000.0, 4_105.0) > 4_100.0
