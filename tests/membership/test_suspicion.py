from __future__ import annotations

from itertools import pairwise

from cacheservice.membership.suspicion import Suspicion


def suspicion(*accusers: str, needed: int = 3) -> Suspicion:
    return Suspicion(since=0, min_ms=4_000, max_ms=24_000, needed=needed, accusers=set(accusers))


def test_the_more_confirm_it_the_shorter_it_is() -> None:
    lengths = [suspicion(*"abcde"[:count]).timeout_ms() for count in range(1, 6)]
    assert lengths[0] == 24_000
    assert lengths[3] == lengths[4] == 4_000
    assert all(longer > shorter for longer, shorter in pairwise(lengths[:4]))
    assert 24_000 - lengths[1] > lengths[1] - lengths[2] > lengths[2] - lengths[3], "the first counts most"


def test_where_nobody_could_confirm_it_nobody_needs_to() -> None:
    assert suspicion("a", needed=0).timeout_ms() == 4_000


def test_somebody_who_has_waited_in_vain_is_enough() -> None:
    certain = suspicion("a")
    certain.is_certain = True
    assert certain.timeout_ms() == 4_000


def test_confirmations_are_news_until_there_are_enough() -> None:
    one = suspicion("a")
    assert not one.confirm(frozenset("a"))
    assert one.confirm(frozenset("ab"))
    assert one.confirm(frozenset("cd"))
    assert not one.confirm(frozenset("e"))
    assert one.accusers == set("abcd")
