"""What waits for one node: what leaves together, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.client.batch import Batch, HotReads, Reads, Removals, Writes
from cacheservice.client.leased import Found, LeasedCopies, LeasedReads
from cacheservice.client.pending import LEAST_KEYS, MAX_KEYS, MAX_VALUE_BYTES, Pending
from cacheservice.client.versioned import VersionedReads
from cacheservice.client.waiting import Caller, Callers
from cacheservice.errors import InvalidArgument, NoOwnerReachable
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import to_status
from tests.client.leaving import TIMES, pending, request_of, taken


class NaiveNode:
    """Does batches as a node does, one key after the other."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def do(self, batch: Batch) -> None:
        request = request_of(batch)
        response = pb.ExchangeResponse(batch_id=1)
        match batch:
            case Reads():
                found = [self.values.get(key) for key in request.get.keys]
                response.get.outcomes.extend(
                    pb.GET_OUTCOME_MISS if value is None else pb.GET_OUTCOME_HIT for value in found
                )
                response.get.values.extend(value or b"" for value in found)
            case Writes():
                self.values.update(zip(request.set.keys, request.set.values, strict=True))
                response.set.versions.extend([1] * len(batch.keys))
                response.set.replicas.extend([1] * len(batch.keys))
            case Removals():
                for key in request.delete.keys:
                    gone = self.values.pop(key, None) is not None
                    response.delete.outcomes.append(
                        pb.DELETE_OUTCOME_DELETED if gone else pb.DELETE_OUTCOME_NOT_FOUND
                    )
        assert batch.settle(response) == ([], [])


steps = st.lists(
    st.tuples(
        st.sampled_from(["read", "read hot", "read leased", "write", "remove", "take", "seal"]),
        st.sampled_from("abcd"),
    ),
    max_size=60,
)


@given(steps=steps, under_way=st.integers(0, 40))
async def test_operations_on_one_key_are_done_in_their_order(
    steps: list[tuple[str, str]], under_way: int
) -> None:
    waiting, node, model = pending(), NaiveNode(), NaiveNode()
    expected: list[tuple[asyncio.Future[Any], Any]] = []
    for number, (step, key) in enumerate(steps):
        match step:
            case "read":
                expected.append((waiting.read(key), model.values.get(key)))
            case "read hot":
                expected.append((waiting.read_hot(key), model.values.get(key)))
            case "read leased":
                found = Found(model.values.get(key), key in model.values)
                expected.append((waiting.read_leased(key), found))
            case "write":
                value = str(number).encode()
                expected.append((waiting.write(key, value, 0, 0), True))
                model.values[key] = value
            case "remove":
                expected.append((waiting.remove(key), model.values.pop(key, None) is not None))
            case "take":
                for batch in waiting.take(small=True, large=False, under_way=under_way):
                    node.do(batch)
            case "seal":
                waiting.seal()
    for batch in taken(waiting, under_way=under_way):
        node.do(batch)
    assert node.values == model.values
    assert waiting.is_empty
    for future, result in expected:
        got = future.result()
        assert (bool(got) if result is True else got) == result


@pytest.mark.parametrize("read", [Pending.read, Pending.read_leased])
async def test_what_waits_leaves_together_in_two_halves(read: Callable[[Pending, str], object]) -> None:
    waiting = pending()
    for number in range(100):
        read(waiting, str(number))
    assert [len(batch.keys) for batch in taken(waiting)] == [50, 25, LEAST_KEYS, 9]
    for number in range(50):
        read(waiting, str(number))
    assert [len(batch.keys) for batch in taken(waiting, under_way=50)] == [50]
    for number in range(LEAST_KEYS):
        read(waiting, str(number))
    assert [len(batch.keys) for batch in taken(waiting)] == [LEAST_KEYS]


@pytest.mark.parametrize("kind", [Reads, HotReads, LeasedReads, LeasedCopies, VersionedReads])
async def test_a_part_of_reads_asks_for_the_same(kind: type[Reads]) -> None:
    futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
    part = kind(["a", "b", "c"], Callers(futures), TIMES, nearest=True).select([0, 2])
    assert isinstance(part, kind)
    assert (part.keys, part.nearest, part.times) == (["a", "c"], True, TIMES)
    part.fail(InvalidArgument("no"))
    assert [future.done() for future in futures] == [True, False, True]
    assert [type(futures[row].exception()) for row in (0, 2)] == [InvalidArgument] * 2


async def test_kinds_are_batches_of_their_own_and_leave_together() -> None:
    waiting = pending()
    waiting.remove("a")
    waiting.write("b", b"", 0, 0)
    waiting.read_leased("d")
    waiting.read("c")
    together = waiting.take(small=True, large=True, under_way=0)
    assert [(type(batch), batch.keys) for batch in together] == [
        (Reads, ["c"]),
        (LeasedReads, ["d"]),
        (Writes, ["b"]),
        (Removals, ["a"]),
    ]
    waiting.read("a")
    waiting.seal()
    waiting.read("b")
    waiting.write("b", b"", 0, 0)
    sizes = [len(waiting.take(small=True, large=True, under_way=0)) for _ in range(3)]
    assert sizes == [1, 2, 0]


async def test_with_several_nodes_all_leaves_together_but_changes_gather_while_some_are_under_way() -> None:
    waiting = pending()
    waiting.is_alone = False
    for number in range(100):
        waiting.read(str(number))
    waiting.write("w", b"", 0, 0)
    waiting.remove("r")
    assert [len(batch.keys) for batch in taken(waiting, is_changing=True)] == [100]
    waiting.write("x", b"", 0, 0)
    waiting.read("a")
    assert [batch.keys for batch in taken(waiting)] == [["a"], ["w", "x"], ["r"]]
    waiting.write("y", b"", 0, 0)
    waiting.read("y")
    assert [type(batch) for batch in taken(waiting, is_changing=True)] == [Writes, Reads]


async def test_bounds_of_one_batch() -> None:
    waiting = pending()
    for number in range(MAX_KEYS + 1):
        waiting.read(str(number))
    for _ in range(3):
        waiting.write("k", bytes(MAX_VALUE_BYTES), 0, 0)
    sizes = [len(batch.keys) for batch in taken(waiting, under_way=10 * MAX_KEYS)]
    assert sizes == [MAX_KEYS, 1, 1, 1, 1]


async def test_large_batches_and_small_ones_take_turns() -> None:
    waiting = pending()
    caller = Caller(asyncio.get_running_loop().create_future(), 4)
    large = [Reads([str(number)], caller, TIMES) for number in range(4)]
    for batch in large:
        waiting.add(batch)
    waiting.read("a")
    waiting.seal()
    waiting.read("b")
    assert [batch.keys for batch in taken(waiting)] == [["a"], ["0", "1"], ["b"], ["2"], ["3"]]
    waiting.add(large[0])
    assert waiting.take(small=True, large=False, under_way=0) == []
    waiting.read("c")
    assert waiting.take(small=False, large=True, under_way=0) == [large[0]]
    assert waiting.take(small=False, large=True, under_way=0) == []


async def test_large_reads_gather_as_long_as_the_node_has_enough_to_do() -> None:
    waiting = pending()
    caller = Caller(asyncio.get_running_loop().create_future(), 1_000)

    def add(count: int) -> None:
        for _ in range(count):
            waiting.add(Reads([str(number) for number in range(100)], caller, TIMES))

    def leaving(under_way_large: int, *, is_fed: bool = True) -> list[int]:
        batches = waiting.take(
            small=True, large=True, under_way=0, under_way_large=under_way_large, is_fed=is_fed
        )
        return [len(batch.keys) for batch in batches]

    add(3)
    assert leaving(500) == []
    waiting.read("a")
    assert leaving(500) == [1]
    assert leaving(500, is_fed=False) == [300]
    add(4)
    assert leaving(400) == [400]
    add(1)
    assert leaving(500) == []
    waiting.add(Removals(["a"], caller, TIMES))
    # Which are not to wait.
    assert leaving(500) == [100]
    assert leaving(500) == [1]
    add(1)
    for _ in range(100):
        waiting.value_read(2_048)
    # More than these would not fit into one answer.
    assert leaving(500) == [100]


async def test_what_waited_too_long_is_given_back() -> None:
    waiting = pending()
    waiting.read("a")
    assert waiting.take_late(now=0.4) == []
    waiting.read("b")
    late = waiting.take_late(now=0.5)
    assert [batch.keys for batch in late] == [["a"], ["b"]]
    assert waiting.is_empty
    waiting.read("c")
    assert [batch.keys for batch in waiting.take_all()] == [["c"]]


async def test_one_element_of_a_column_stands_for_all() -> None:
    waiting = pending()
    for number in range(3):
        waiting.write(str(number), b"", 5_000, 0)
    [batch] = taken(waiting)
    request = request_of(batch)
    assert (list(request.set.ttl_ms), list(request.set.stale_ms)) == ([5_000], [])
    assert (request.batch_id, request.timeout_ms) == (9, 100)
    waiting.write("a", b"", 5_000, 1)
    waiting.write("b", b"", 0, 2)
    [batch] = taken(waiting)
    request = request_of(batch)
    assert (list(request.set.ttl_ms), list(request.set.stale_ms)) == ([5_000, 0], [1, 2])


async def test_several_callers_keys_leave_together_and_come_back_apart() -> None:
    waiting, loop = pending(), asyncio.get_running_loop()
    callers = [Caller(loop.create_future(), 2) for _ in range(3)]
    for number, caller in enumerate(callers):
        waiting.add(Reads([f"{number}a", f"{number}b"], caller, TIMES))
    waiting.add(Writes(["w"], [b""], [0], [0], Caller(loop.create_future(), 1), TIMES))
    [joined] = waiting.take(small=True, large=True, under_way=0, under_way_large=100)
    assert joined.keys == ["0a", "0b", "1a", "1b", "2a", "2b"]
    values = [key.encode() for key in joined.keys]
    response = pb.ExchangeResponse(get=pb.GetResultColumns(outcomes=[pb.GET_OUTCOME_HIT] * 6, values=values))
    response.errors.add(index=2, status=to_status(NoOwnerReachable("lost")))
    response.errors.add(index=5, status=to_status(InvalidArgument("wrong")))
    elsewhere, again = joined.settle(response)
    assert (elsewhere, again) == ([2], [])
    assert callers[0].future.result() == {"0a": b"0a", "0b": b"0b"}
    assert isinstance(callers[2].future.exception(), InvalidArgument)
    rest = joined.select(elsewhere)
    assert not rest.waiting.is_over
    columns = pb.GetResultColumns(outcomes=[pb.GET_OUTCOME_MISS], values=[b""])
    assert rest.settle(pb.ExchangeResponse(get=columns)) == ([], [])
    assert callers[1].future.result() == {"1b": b"1b"}
    assert rest.waiting.is_over
    [last] = waiting.take(small=True, large=True, under_way=0, under_way_large=100)
    assert isinstance(last, Writes)
