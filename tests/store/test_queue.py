from __future__ import annotations

from itertools import islice

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cacheservice.store.queue import EntryQueue

KEYS = st.integers(0, 199).map(str)
PACKED = st.binary(min_size=1, max_size=2)


class QueueAgainstList(RuleBasedStateMachine):
    """The queue beside a list of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = EntryQueue()
        self.model: list[tuple[str, bytes]] = []
        self.appended = 200

    @rule(key=KEYS, packed=PACKED)
    def append(self, key: str, packed: bytes) -> None:
        if key not in dict(self.model):
            self.queue.add(key, packed)
            self.model.append((key, packed))

    @rule(count=st.integers(1, 100))
    def append_many(self, count: int) -> None:
        for number in range(self.appended, self.appended + count):
            self.queue.add(str(number), b"-")
            self.model.append((str(number), b"-"))
        self.appended += count

    @rule(count=st.integers(1, 100))
    def give_up(self, count: int) -> None:
        for victim in islice(self.queue.victims(), count):
            assert victim == self.model.pop(0)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), packed=PACKED)
    def replace(self, data: st.DataObject, packed: bytes) -> None:
        key = self._some_key(data)
        self.queue.replace(key, packed)
        self.model = [(each, packed if each == key else old) for each, old in self.model]

    @rule(key=KEYS)
    def pop(self, key: str) -> None:
        self._pop(key)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pop_one_that_is_there(self, data: st.DataObject) -> None:
        self._pop(self._some_key(data))

    @rule(modulus=st.integers(1, 4), keep_other=st.booleans())
    def split(self, modulus: int, keep_other: bool) -> None:
        def goes(key: str) -> bool:
            return int(key) % modulus == 0

        parts = (self.queue, self.queue.split(goes))
        models = ([item for item in self.model if not goes(item[0])], [i for i in self.model if goes(i[0])])
        assert tuple(list(part.items()) for part in parts) == models
        self.queue, self.model = parts[keep_other], models[keep_other]

    @rule()
    def compact(self) -> None:
        self.queue.compact()

    @invariant()
    def is_the_same_from_first_to_last(self) -> None:
        assert list(self.queue.items()) == self.model
        assert len(self.queue) == len(self.model)

    @invariant()
    def finds_what_it_holds_and_nothing_else(self) -> None:
        held = dict(self.model)
        for key in (*map(str, range(0, 200, 7)), *list(held)[:2], *list(held)[-2:]):
            assert self.queue.peek(key) == held.get(key)

    def _some_key(self, data: st.DataObject) -> str:
        return self.model[data.draw(st.integers(0, len(self.model) - 1))][0]

    def _pop(self, key: str) -> None:
        held = dict(self.model)
        assert self.queue.pop(key) == held.get(key)
        self.model = [item for item in self.model if item[0] != key]


QueueAgainstList.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestQueueAgainstList = QueueAgainstList.TestCase
