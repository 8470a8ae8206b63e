from __future__ import annotations

from collections.abc import Sequence

import pytest

from cacheservice.node import settling as settling_module
from cacheservice.node.settling import Settling
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember

KEYS = list(map(str, range(100)))


def view(*names: str, leaving: Sequence[str] = (), stay: int = 1, absences: int = 0) -> View:
    """With that stay, and so many absences, of n1."""
    ring = Ring([RingMember(name) for name in names], 16)
    stays = dict.fromkeys((*names, *leaving), 1)
    return View(ring, stays={**stays, "n1": stay}, absences={**dict.fromkeys(stays, 0), "n1": absences})


def owned(*names: str) -> set[str]:
    ring = view(*names).ring
    return {key for key in KEYS if "n1" in ring.owners(key, 1)}


def sure_of(settling: Settling) -> set[str]:
    return set(filter(settling.was_owner, KEYS))


def settle(settling: Settling, seen: View) -> None:
    for other in seen.others("n1"):
        settling.handed_over(other, seen.ring.epoch, seen.absences["n1"])
    assert settling.is_settled


def test_a_node_alone_has_everything() -> None:
    settling = Settling("n1", 1, view("n1"))
    assert settling.is_settled
    assert sure_of(settling) == set(KEYS)


def test_a_node_is_settled_once_all_others_have_given_their_word() -> None:
    seen = view("n1", "n2", leaving=["n3"])
    settling = Settling("n1", 1, seen)
    assert not settling.is_settled
    settling.handed_over("n2", seen.ring.epoch, 0)
    assert not settling.is_settled
    settling.handed_over("n3", seen.ring.epoch, 0)
    assert settling.is_settled


def test_whoever_goes_is_waited_for_no_longer() -> None:
    seen = view("n1", "n2", leaving=["n3"])
    settling = Settling("n1", 1, seen)
    settling.handed_over("n2", seen.ring.epoch, 0)
    settling.view_changed(view("n1", "n2"))
    assert settling.is_settled


def test_the_word_for_another_ring_does_not_count() -> None:
    settling = Settling("n1", 1, view("n1", "n2"))
    settling.handed_over("n2", view("n1", "n2", "n3").ring.epoch, 0)
    assert not settling.is_settled


def test_a_word_may_come_before_its_ring() -> None:
    settling = Settling("n1", 1, view("n1"))
    seen = view("n1", "n2")
    settling.handed_over("n2", seen.ring.epoch, 0)
    settling.view_changed(seen)
    assert settling.is_settled


def test_another_ring_needs_another_word() -> None:
    settling = Settling("n1", 1, view("n1", "n2"))
    settle(settling, view("n1", "n2"))
    settling.view_changed(view("n1", "n2", "n3"))
    assert not settling.is_settled


def test_a_word_from_before_an_absence_does_not_count() -> None:
    seen = view("n1", "n2")
    settling = Settling("n1", 1, seen)
    settle(settling, seen)
    back = view("n1", "n2", stay=2, absences=1)
    settling.view_changed(back)
    assert not settling.is_settled
    settling.handed_over("n2", back.ring.epoch, 0)
    assert not settling.is_settled
    settling.handed_over("n2", back.ring.epoch, 1)
    assert settling.is_settled


def test_what_a_new_node_knows_it_knows_of_today() -> None:
    settling = Settling("n1", 1, view("n1", "n2"))
    assert sure_of(settling) == owned("n1", "n2")


def test_until_it_has_settled_a_node_is_sure_of_what_it_owned_all_the_time() -> None:
    settling = Settling("n1", 1, view("n1", "n2"))
    settle(settling, view("n1", "n2"))
    fewer = view("n1", "n2", "n3")
    settling.view_changed(fewer)
    assert sure_of(settling) & owned("n1", "n2", "n3") == owned("n1", "n2", "n3")
    settle(settling, fewer)
    assert sure_of(settling) == owned("n1", "n2", "n3")
    settling.view_changed(view("n1", "n2"))
    assert sure_of(settling) & owned("n1", "n2") == owned("n1", "n2", "n3")


def test_a_node_is_not_sure_of_what_it_did_not_own_in_between() -> None:
    """Somebody else wrote those keys then, and may have died with that."""
    settling = Settling("n1", 1, view("n1", "n2"))
    settle(settling, view("n1", "n2"))
    settling.view_changed(view("n1", "n2", "n3"))
    settling.view_changed(view("n1", "n4"))
    assert sure_of(settling) & owned("n1", "n4") == owned("n1", "n2", "n3") & owned("n1", "n4")
    settle(settling, view("n1", "n4"))
    assert sure_of(settling) == owned("n1", "n4")


def test_after_too_many_rings_a_node_is_sure_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling_module, "MAX_RINGS", 2)
    settling = Settling("n1", 1, view("n1", "n2"))
    settling.view_changed(view("n1", "n2", "n3"))
    assert sure_of(settling)
    for names in (["n1", "n2"], ["n1", "n2", "n3"]):
        settling.view_changed(view(*names))
        assert not sure_of(settling)
    settle(settling, view("n1", "n2", "n3"))
    assert sure_of(settling) == owned("n1", "n2", "n3")


def test_after_an_absence_a_node_is_sure_of_nothing_until_it_has_settled() -> None:
    settling = Settling("n1", 1, view("n1", "n2"))
    settle(settling, view("n1", "n2"))
    back = view("n1", "n2", stay=2, absences=1)
    settling.view_changed(back)
    assert sure_of(settling) == set()
    settle(settling, back)
    assert sure_of(settling) == owned("n1", "n2")


def test_of_too_many_who_gave_their_word_the_first_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling_module, "MAX_TELLERS", 2)
    seen = view("n1", "n2", "n3")
    settling = Settling("n1", 1, view("n1"))
    for name in ("n2", "n3", "n2", "unknown"):
        settling.handed_over(name, seen.ring.epoch, 0)
    settling.view_changed(seen)
    assert not settling.is_settled
    settling.handed_over("n3", seen.ring.epoch, 0)
    assert not settling.is_settled
    settling.handed_over("n2", seen.ring.epoch, 0)
    assert settling.is_settled
