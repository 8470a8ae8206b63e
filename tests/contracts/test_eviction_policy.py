"""What every eviction policy must do, beside choosing well."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.store import POLICIES

KEYS = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["get", "peek", "pop"]), KEYS, st.just(b"")),
        st.tuples(st.just("evict"), st.just(""), st.just(b"")),
    ),
    max_size=80,
)

pytestmark = pytest.mark.parametrize("name", sorted(POLICIES))


@given(STEPS)
def test_holds_what_was_put_until_it_is_removed(name: str, steps: list[tuple[str, str, bytes]]) -> None:
    policy = POLICIES[name]()
    model: dict[str, bytes] = {}
    for step, key, packed in steps:
        match step:
            case "put":
                policy.put(key, packed)
                model[key] = packed
            case "get":
                assert policy.get(key) == model.get(key)
            case "peek":
                assert policy.peek(key) == model.get(key)
            case "pop":
                assert policy.pop(key) == model.pop(key, None)
            case _:
                if model:
                    victim, given_up = policy.evict()
                    assert model.pop(victim) == given_up
        assert len(policy) == len(model)
        assert sorted(policy) == sorted(model)


def test_evicting_from_nothing_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        POLICIES[name]().evict()


def test_gives_up_everything_in_the_end(name: str) -> None:
    policy = POLICIES[name]()
    for key in "abc":
        policy.put(key, key.encode())
    assert sorted(policy.evict()[0] for _ in "abc") == ["a", "b", "c"]
    assert len(policy) == 0
