from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cacheservice.store.tags import TagIndex

KEYS = st.sampled_from("abcdef")
TAGS = st.lists(st.sampled_from(["red", "green", "blue", "ä"]), max_size=4)


class TagsAgainstDict(RuleBasedStateMachine):
    """The index beside a dict of each key's tags, which may name one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.index = TagIndex()
        self.tags: dict[str, list[str]] = {}

    @rule(key=KEYS, tags=TAGS)
    def write(self, key: str, tags: list[str]) -> None:
        self.remove(key)
        self.index.add(key, tags)
        self.tags[key] = tags

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        self.index.remove(key, self.tags.pop(key, []))

    @rule(key=KEYS, tags=TAGS)
    def remove_what_is_not_there(self, key: str, tags: list[str]) -> None:
        if key not in self.tags:
            self.index.remove(key, tags)

    @invariant()
    def finds_exactly_the_keys_with_a_tag(self) -> None:
        for tag in ("red", "green", "blue", "ä", "unknown"):
            keys = self.index.keys(tag)
            assert sorted(keys) == sorted(key for key, tags in self.tags.items() if tag in tags)
        assert len(self.index) == len({tag for tags in self.tags.values() for tag in tags})


TagsAgainstDict.TestCase.settings = settings(max_examples=60)
TestTagsAgainstDict = TagsAgainstDict.TestCase


def test_what_is_found_may_be_removed_while_it_is_gone_through() -> None:
    index = TagIndex()
    for key in "abc":
        index.add(key, ["red"])
    for key in index.keys("red"):
        index.remove(key, ["red"])
    assert index.keys("red") == []
    assert len(index) == 0
