"""Hedged reads: when a second node is asked, and whose answer counts."""

from __future__ import annotations

import asyncio

import pytest

from cacheservice.client import hedging as hedging_module
from cacheservice.client.batch import HotReads, Reads
from cacheservice.client.hedging import (
    EVERY,
    FIRST_SECONDS,
    LEAST_SECONDS,
    MAX_SAVED,
    SHARE,
    WINDOW,
    Hedging,
)
from cacheservice.client.waiting import Caller, Callers, Race
from cacheservice.errors import Unavailable
from cacheservice.v1 import cache_pb2 as pb
from tests.client.leaving import TIMES
from tests.client.test_exchange import (
    Connect,
    Play,
    connect,  # noqa: F401
    hits,
    play,  # noqa: F401
    refusing,
)

WARM_UP = round(2 / SHARE)
"""Reads after which at least one may be hedged."""


def test_the_delay_is_what_most_answers_of_the_fastest_node_take() -> None:
    hedging = Hedging()
    assert hedging.delay() == FIRST_SECONDS
    for number in range(100):
        hedging.note("slow", 0.03 + number / 1e6)
    assert hedging.delay() == pytest.approx(0.03 + 91 / 1e6)
    for number in range(WINDOW):
        hedging.note("fast", 0.01 if number % 10 else 0.02)
    assert hedging.delay() == 0.02
    for _ in range(WINDOW):
        hedging.note("fast", 0.0001)
    assert hedging.delay() == LEAST_SECONDS
    hedging.retain(["slow"])
    assert hedging.delay() == pytest.approx(0.03 + 91 / 1e6)
    hedging.retain([])
    assert hedging.delay() == FIRST_SECONDS


def test_few_answers_are_not_enough() -> None:
    hedging = Hedging()
    for _ in range(EVERY - 1):
        hedging.note("a", 0.01)
    assert hedging.delay() == FIRST_SECONDS


def test_few_of_all_batches_are_hedged() -> None:
    hedging = Hedging()
    assert not hedging.may_hedge
    taken = 0
    for _ in range(1_000):
        hedging.delay()
        if hedging.may_hedge:
            hedging.take()
            taken += 1
    assert 1_000 * SHARE - 1 <= taken <= 1_000 * SHARE
    for _ in range(1_000):
        hedging.delay()
    for _ in range(int(MAX_SAVED)):
        assert hedging.may_hedge
        hedging.take()
    assert not hedging.may_hedge


def answer(*values: bytes) -> pb.ExchangeResponse:
    columns = pb.GetResultColumns(outcomes=[pb.GET_OUTCOME_HIT] * len(values), values=values)
    return pb.ExchangeResponse(get=columns)


async def test_the_first_answer_counts_and_an_error_only_when_both_have_one() -> None:
    futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
    first = Reads(["a", "b", "c"], Callers(futures), TIMES)
    first.waiting = race = Race.of(first.waiting, 3, [0, 1])
    second = HotReads(["a", "b"], race.select([0, 1]), TIMES)
    second.select([0]).fail(Unavailable("no"))
    second.select([1]).settle(answer(b"2"))
    assert [future.done() for future in futures] == [False, True, False]
    first.select([0, 1]).settle(answer(b"1", b"old"))
    assert not first.waiting.is_over
    assert second.waiting.is_over
    first.select([2]).fail(Unavailable("no"))
    assert [future.result() for future in futures[:2]] == [b"1", b"2"]
    assert isinstance(futures[2].exception(), Unavailable)
    assert first.waiting.is_over


async def test_a_caller_of_many_keys_gets_each_once() -> None:
    future = asyncio.get_running_loop().create_future()
    first = Reads(["a", "b"], Caller(future, 2), TIMES)
    assert first.is_large
    first.waiting = race = Race.of(first.waiting, 2, [0, 1])
    second = HotReads(["b", "a"], race.select([1, 0]), TIMES)
    assert second.is_large
    second.select([0]).settle(answer(b"2"))
    assert not future.done()
    first.settle(answer(b"1", b"late"))
    assert future.result() == {"a": b"1", "b": b"2"}
    second.fail(Unavailable("no"))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is late because this machine is busy for a moment."""
    monkeypatch.setattr(hedging_module, "LEAST_SECONDS", 0.5)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("many", [False, True], ids=["get", "get_many"])
async def test_another_node_answers_what_the_first_one_is_slow_to(
    play: Play,  # noqa: F811
    connect: Connect,  # noqa: F811
    many: bool,
) -> None:
    slow, slow_address = await play(hits)
    good, good_address = await play(hits)
    cache = await connect([slow_address, good_address], timeout=600, hedged_reads=True)

    async def read(key: str) -> None:
        if many:
            assert await cache.get_many([key, "other"]) == {key: key.encode(), "other": b"other"}
        else:
            assert await cache.get(key) == key.encode()

    for number in range(WARM_UP):
        await read(str(number))
    assert not good.requests
    slow.script = lambda _: None
    await read("a")
    [request] = good.requests
    assert request.get.read_preference == pb.READ_PREFERENCE_NEAREST


@pytest.mark.usefixtures("patient")
async def test_the_slow_answer_counts_when_the_other_node_has_none(
    play: Play,  # noqa: F811
    connect: Connect,  # noqa: F811
) -> None:
    slow, slow_address = await play(hits)
    other, other_address = await play(refusing(Unavailable("no")))
    cache = await connect([slow_address, other_address], timeout=600, hedged_reads=True)
    for number in range(WARM_UP):
        await cache.get(str(number))
    slow.script = lambda _: None
    reading = asyncio.ensure_future(cache.get("a"))
    async with asyncio.timeout(20):
        while not other.requests:
            await asyncio.sleep(0.01)
    slow.script = lambda request: [_answer_to(each) for each in (request, slow.requests[-2])]
    other.script = lambda _: None
    await asyncio.wait_for(cache.get("b"), 20)
    assert await asyncio.wait_for(reading, 20) == b"a"


def _answer_to(request: pb.ExchangeRequest) -> pb.ExchangeResponse:
    response = hits(request)
    response.batch_id = request.batch_id
    return response


async def test_without_a_choice_nothing_is_hedged(play: Play, connect: Connect) -> None:  # noqa: F811
    slow, slow_address = await play(hits)
    other, other_address = await play(hits)
    cache = await connect([slow_address, other_address], timeout=1)
    for number in range(WARM_UP):
        await cache.get(str(number))
    slow.script = lambda _: None
    assert await cache.get("a") == b"a"
    [request] = other.requests
    assert request.get.read_preference == pb.READ_PREFERENCE_UNSPECIFIED
