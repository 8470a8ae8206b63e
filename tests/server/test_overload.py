"""What happens beyond the limit of requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from cacheservice.config import Settings
from cacheservice.errors import NotReady, Overloaded
from cacheservice.node.operations import Answer, Get, GetOutcome, GetResult, Operation
from cacheservice.server.admission import OVERLOAD_RETRY_MS, Admission
from cacheservice.server.cache_service import CacheServicer
from cacheservice.server.methods import Methods
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub, add_CacheServiceServicer_to_server
from cacheservice.wire import from_rpc_error
from tests.server.serving import serving as serving_methods


class SlowNode:
    """Answers once it is let go."""

    ring_epoch = 1

    def __init__(self) -> None:
        self.started = asyncio.Semaphore(0)
        self.let_go = asyncio.Event()

    def read_own(self, _: Get) -> None:
        """Nothing is its own, and so at once to be had."""

    async def execute(self, operations: Sequence[Operation], *, timeout_ms: int) -> list[Answer]:
        self.started.release()
        await self.let_go.wait()
        return [GetResult(GetOutcome.MISS)] * len(operations)


def admission(limit: int) -> Admission:
    opened = Admission(limit)
    opened.is_open = True
    return opened


@asynccontextmanager
async def serving(node: SlowNode, in_flight: Admission) -> AsyncIterator[Any]:
    methods: Any = Methods()
    parts: Any = node, Settings(), in_flight, None, None
    add_CacheServiceServicer_to_server(CacheServicer(*parts), methods)
    async with serving_methods(methods) as channel:
        yield CacheServiceStub(channel)


async def test_requests_beyond_the_limit_are_refused_at_once_and_told_when_to_return() -> None:
    node, in_flight = SlowNode(), admission(2)
    async with serving(node, in_flight) as cache:
        taken = [asyncio.ensure_future(cache.Get(pb.GetRequest(key="k"))) for _ in range(2)]
        for _ in taken:
            await node.started.acquire()
        for refused in (cache.Get(pb.GetRequest(key="k")), cache.BatchGet(pb.BatchGetRequest(keys=["k"]))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await refused
            error = from_rpc_error(caught.value)
            assert isinstance(error, Overloaded)
            assert error.metadata == {"retry_after_ms": str(OVERLOAD_RETRY_MS)}
        node.let_go.set()
        assert [answer.outcome for answer in await asyncio.gather(*taken)] == [pb.GET_OUTCOME_MISS] * 2
        assert (await cache.Get(pb.GetRequest(key="k"))).outcome == pb.GET_OUTCOME_MISS
    assert (in_flight.refused, in_flight.count) == (2, 0)


async def test_before_the_node_has_joined_it_answers_nobody() -> None:
    node, in_flight = SlowNode(), Admission(1)
    node.let_go.set()
    async with serving(node, in_flight) as cache:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cache.Get(pb.GetRequest(key="k"))
        assert isinstance(from_rpc_error(caught.value), NotReady)
        in_flight.is_open = True
        assert (await cache.Get(pb.GetRequest(key="k"))).outcome == pb.GET_OUTCOME_MISS


async def test_a_client_that_hangs_up_frees_its_place() -> None:
    node, in_flight = SlowNode(), admission(1)
    async with serving(node, in_flight) as cache:
        call = cache.Get(pb.GetRequest(key="k"))
        await node.started.acquire()
        call.cancel()
        async with asyncio.timeout(10):
            while in_flight.count:
                await asyncio.sleep(0.01)
        node.let_go.set()
        assert (await cache.Get(pb.GetRequest(key="k"))).outcome == pb.GET_OUTCOME_MISS


async def test_a_defect_is_told_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenNode(SlowNode):
        async def execute(self, operations: Sequence[Operation], *, timeout_ms: int) -> list[Answer]:
            raise ZeroDivisionError("secret")

    async with serving(BrokenNode(), admission(1)) as cache:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cache.Get(pb.GetRequest(key="k"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    assert "ZeroDivisionError: secret" in caplog.text
