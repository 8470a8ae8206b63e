from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from cacheservice.clock import ManualClock
from cacheservice.node import fences as fences_module
from cacheservice.node.fences import FENCE_MS, Fence, Fences, Kind

FEW = 4
PREFIXES = ["", "a", "b", "a:", "a:1", "ключ:"]
TAGS = ["a", "a:1", "red"]
KEYS = ["a:1", "a:12", "b", "ключ:1", ""]
FENCES = st.builds(Fence, st.just(Kind.PREFIX), st.sampled_from(PREFIXES), st.integers(1, 9)) | st.builds(
    Fence, st.just(Kind.TAG), st.sampled_from(TAGS), st.integers(1, 9)
)


def covers(fence: Fence, key: str, tags: list[str]) -> bool:
    return key.startswith(fence.pattern) if fence.kind is Kind.PREFIX else fence.pattern in tags


class FencesAgainstList(RuleBasedStateMachine):
    """Fences beside a list of them, the oldest first, each with the time when it was noted."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(fences_module, "MAX_FENCES", FEW)
        self.clock = ManualClock()
        self.fences = Fences(self.clock)
        self.model: list[tuple[Fence, int]] = []

    def teardown(self) -> None:
        self.patch.undo()

    @rule(fence=FENCES)
    def add(self, fence: Fence) -> None:
        same = [known for known in self.living() if known[:2] == fence[:2]]
        is_news = all(known.version < fence.version for known in same)
        assert self.fences.add(fence) is is_news
        if is_news:
            self.model = [each for each in self.model if each[0] not in same]
            self.model.append((fence, self.clock.now_ms()))
            self.model = self.model[-FEW:]

    @rule(key=st.sampled_from(KEYS), tags=st.lists(st.sampled_from(TAGS), unique=True))
    def above(self, key: str, tags: list[str]) -> None:
        covering = [fence.version for fence in self.living() if covers(fence, key, tags)]
        assert self.fences.above(key, tags) == max(covering, default=0)

    @rule(fence=FENCES)
    def holds(self, fence: Fence) -> None:
        assert self.fences.holds(fence) is (fence in self.living())

    @rule()
    def list_them(self) -> None:
        assert list(self.fences) == self.living()
        assert len(self.fences) == len(self.model)

    @rule(ms=st.sampled_from([1, FENCE_MS // 3, FENCE_MS - 1, FENCE_MS]))
    def wait(self, ms: int) -> None:
        self.clock.advance(ms)

    def living(self) -> list[Fence]:
        now = self.clock.now_ms()
        self.model = [(fence, noted) for fence, noted in self.model if now - noted < FENCE_MS]
        return [fence for fence, _ in self.model]


def test_fences_beside_a_list() -> None:
    run_state_machine_as_test(FencesAgainstList, settings=settings(max_examples=150, stateful_step_count=30))


def test_whoever_lists_them_may_add_some() -> None:
    fences = Fences(ManualClock())
    fences.add(Fence(Kind.TAG, "a", 1))
    for fence in fences:
        fences.add(Fence(Kind.TAG, "a", fence.version + 1))
    assert list(fences) == [Fence(Kind.TAG, "a", 2)]


def test_a_fence_is_forgotten_after_its_time_to_the_millisecond() -> None:
    clock = ManualClock()
    fences = Fences(clock)
    fences.add(Fence(Kind.PREFIX, "a", 5))
    clock.advance(FENCE_MS - 1)
    assert fences.above("ab") == 5
    clock.advance(1)
    assert fences.above("ab") == 0


def test_when_one_prefix_is_forgotten_others_of_its_length_are_not() -> None:
    clock = ManualClock()
    fences = Fences(clock)
    fences.add(Fence(Kind.PREFIX, "a", 5))
    clock.advance(1)
    fences.add(Fence(Kind.PREFIX, "b", 6))
    clock.advance(FENCE_MS - 1)
    assert (fences.above("a"), fences.above("b")) == (0, 6)
