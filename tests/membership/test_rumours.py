from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cacheservice.membership import Member
from cacheservice.membership.messages import Rumour
from cacheservice.membership.rumours import RumourQueue


def rumour(name: str, incarnation: int = 0) -> Rumour:
    return Rumour(Member(name, f"{name}:1", incarnation=incarnation))


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=20),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_each_is_told_as_often_as_it_shall_be(added: list[tuple[str, bool]], count: int, times: int) -> None:
    queue = RumourQueue()
    for name, urgent in added:
        queue.add(rumour(name), urgent=urgent)
    told: Counter[str] = Counter()
    while len(queue):
        taken = queue.take(count, times)
        names = [each.member.node_id for each in taken]
        assert 0 < len(names) == len(set(names)) <= count
        told.update(names)
    assert told == dict.fromkeys({name for name, _ in added}, times)


def test_the_urgent_goes_first_then_the_least_told() -> None:
    queue = RumourQueue()
    queue.add(rumour("a"))
    queue.add(rumour("b"))
    assert [each.member.node_id for each in queue.take(1, 3)] == ["a"]
    queue.add(rumour("c"), urgent=True)
    assert [each.member.node_id for each in queue.take(3, 3)] == ["c", "b", "a"]


def test_later_news_of_a_member_takes_the_place_of_what_was_told() -> None:
    queue = RumourQueue()
    queue.add(rumour("a"))
    queue.take(1, 5)
    queue.add(rumour("a", 1))
    assert len(queue) == 1
    assert [queue.take(1, 2)[0].member.incarnation for _ in range(2)] == [1, 1]
    assert not len(queue)
