"""Reads under leases: who shares a row, and where a lease goes that nobody wants any longer."""

from __future__ import annotations

import asyncio
from typing import Any

from cacheservice.client.leased import Found, LeasedReads, OneForAll
from cacheservice.client.pending import MAX_KEYS
from cacheservice.errors import CacheServiceError, Unavailable
from cacheservice.v1 import cache_pb2 as pb
from tests.client.leaving import TIMES, pending, taken


class Returns:
    """The leases that were given back."""

    def __init__(self) -> None:
        self.leases: list[tuple[str, bytes]] = []

    def __call__(self, key: str, token: bytes) -> None:
        self.leases.append((key, token))


def answer(*tokens: bytes, outcome: pb.GetOutcome.ValueType = pb.GET_OUTCOME_MISS) -> pb.ExchangeResponse:
    """Of a row for each token, which is empty where somebody else has the lease."""
    columns = pb.GetResultColumns(outcomes=[outcome] * len(tokens), values=[b"old"] * len(tokens))
    for index, token in enumerate(tokens):
        if token:
            columns.leases.add(index=index, token=token)
    return pb.ExchangeResponse(get=columns)


async def test_one_of_those_who_share_a_row_gets_the_lease() -> None:
    returns = Returns()
    waiting = pending(returns)
    gone, *others = [waiting.read_leased("a") for _ in range(3)]
    other = waiting.read_leased("b")
    gone.cancel()
    [batch] = taken(waiting)
    assert batch.keys == ["a", "b"]
    assert not batch.waiting.is_over
    assert batch.settle(answer(b"token", b"")) == ([], [])
    assert [future.result().token for future in others] == [b"token", b""]
    assert [future.result().is_awaited for future in (*others, other)] == [False, True, True]
    assert returns.leases == []


async def test_all_but_the_one_with_the_lease_read_what_is_there() -> None:
    waiting = pending()
    futures = [waiting.read_leased("a") for _ in range(3)]
    [batch] = taken(waiting)
    batch.settle(answer(b"token", outcome=pb.GET_OUTCOME_STALE))
    assert [future.result() for future in futures] == [
        Found(b"old", is_answer=True, token=token) for token in (b"token", b"", b"")
    ]


async def test_a_lease_goes_back_when_all_have_gone() -> None:
    returns = Returns()
    waiting = pending(returns)
    futures = [waiting.read_leased(key) for key in "aab"]
    [batch] = taken(waiting)
    for future in futures[:2]:
        future.cancel()
    part = batch.select([0])
    assert part.waiting.is_over
    part.settle(answer(b"token"))
    assert returns.leases == [("a", b"token")]
    assert not futures[2].done()


async def test_so_many_share_a_row_and_no_more() -> None:
    waiting = pending()
    for _ in range(MAX_KEYS + 1):
        waiting.read_leased("a")
    assert [batch.keys for batch in taken(waiting)] == [["a"], ["a"]]


def many(returns: Returns, *keys: str) -> tuple[asyncio.Future[dict[str, Any]], list[LeasedReads]]:
    """One caller's reads of the keys, a batch for each."""
    future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    caller = OneForAll(future, len(keys), returns)
    return future, [LeasedReads([key], caller, TIMES) for key in keys]


async def test_leases_of_many_keys_go_back_when_the_caller_has_gone() -> None:
    returns = Returns()
    future, batches = many(returns, "a", "b", "c")
    batches[0].settle(answer(b"1"))
    future.cancel()
    batches[1].settle(answer(b""))
    assert returns.leases == [("a", b"1")]
    # What has not left by now never does.
    assert batches[2].waiting.is_over
    batches[2].settle(answer(b"3"))
    assert returns.leases == [("a", b"1"), ("c", b"3")]


async def test_leases_of_many_keys_go_back_when_the_caller_gets_an_error() -> None:
    returns = Returns()
    future, batches = many(returns, "a", "b")
    batches[0].fail(Unavailable("no"))
    batches[1].settle(answer(b"2"))
    assert isinstance(future.exception(), CacheServiceError)
    assert returns.leases == [("b", b"2")]
    future, batches = many(returns, "a", "b")
    for batch, token in zip(batches, (b"1", b""), strict=True):
        batch.settle(answer(token))
    assert [found.token for found in future.result().values()] == [b"1", b""]
    assert len(returns.leases) == 1
