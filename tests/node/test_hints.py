from __future__ import annotations

from cacheservice.node.hints import Hints


def test_keys_by_node_the_oldest_first_each_once() -> None:
    hints = Hints()
    for key in "abca":
        hints.add("n1", key)
    hints.add("n2", "a")
    assert (len(hints), hints.nodes()) == (4, ["n1", "n2"])
    assert hints.take("n1", 2) == ["a", "b"]
    hints.add("n1", "a")
    assert hints.take("n1", 10) == ["c", "a"]
    assert hints.take("n1", 10) == []
    assert (len(hints), hints.nodes()) == (1, ["n2"])


def test_beyond_the_limit_the_node_with_the_most_loses_its_oldest() -> None:
    hints = Hints(limit=3)
    hints.add("n1", "x")
    for key in "abcd":
        hints.add("n2", key)
    assert (len(hints), hints.dropped) == (3, 2)
    assert (hints.take("n1", 9), hints.take("n2", 9)) == (["x"], ["c", "d"])
