"""Exchange over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from cacheservice.config import Settings
from cacheservice.errors import AnswerTooLarge, EntryTooLarge, InvalidArgument, NotReady, Overloaded
from cacheservice.limits import MAX_BATCH
from cacheservice.node.columns import Reads
from cacheservice.node.later import Later, Soon
from cacheservice.node.operations import GetOutcome
from cacheservice.server.admission import Admission
from cacheservice.server.app import NodeServer
from cacheservice.server.direct_stream import MAX_AT_WORK
from cacheservice.server.exchange import Exchange, requests
from cacheservice.server.methods import Methods
from cacheservice.server.streams import Streams
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.wire import EXCHANGE, from_rpc_error, from_status
from tests.server.conftest import StartNode
from tests.server.serving import serving as serving_methods

MiB = 1024 * 1024
HIT, MISS, STALE = pb.GET_OUTCOME_HIT, pb.GET_OUTCOME_MISS, pb.GET_OUTCOME_STALE


def reads(number: int, *keys: str, **options: Any) -> pb.ExchangeRequest:
    return pb.ExchangeRequest(batch_id=number, get=pb.GetColumns(keys=keys, **options))


def writes(number: int, entries: dict[str, bytes], **columns: list[int]) -> pb.ExchangeRequest:
    set_ = pb.SetColumns(keys=list(entries), values=list(entries.values()), **columns)
    return pb.ExchangeRequest(batch_id=number, set=set_)


def removals(number: int, *keys: str) -> pb.ExchangeRequest:
    return pb.ExchangeRequest(batch_id=number, delete=pb.DeleteColumns(keys=keys))


async def exchange(channel: grpc.aio.Channel, *requests: pb.ExchangeRequest) -> list[pb.ExchangeResponse]:
    """Sends everything at once; the answers in the order of their batches."""
    call: Any = CacheServiceStub(channel).Exchange()
    for request in requests:
        await call.write(request)
    await call.done_writing()
    answers = [answer async for answer in call]
    assert await call.code() is grpc.StatusCode.OK
    return sorted(answers, key=lambda answer: int(answer.batch_id))


async def test_batches_are_done_in_the_order_in_which_they_were_sent(start_node: StartNode) -> None:
    channel = await start_node()
    first, stored, found, removed, gone = await exchange(
        channel,
        reads(1, "a", "b"),
        writes(2, {"a": b"1", "b": b""}),
        reads(3, "a", "b", "c"),
        removals(4, "a", "c"),
        reads(5, "a"),
    )
    assert (first.batch_id, list(first.get.outcomes), list(first.get.values)) == (1, [MISS, MISS], [b"", b""])
    assert list(stored.set.replicas) == [1, 1]
    assert list(found.get.outcomes) == [HIT, HIT, MISS]
    assert list(found.get.values) == [b"1", b"", b""]
    assert list(found.get.versions) == [*stored.set.versions, 0]
    assert list(removed.delete.outcomes) == [pb.DELETE_OUTCOME_DELETED, pb.DELETE_OUTCOME_NOT_FOUND]
    assert removed.delete.versions[0] > stored.set.versions[0]
    assert list(gone.get.outcomes) == [MISS]
    assert len({answer.ring_epoch for answer in (first, stored, found, removed, gone)}) == 1
    assert first.ring_epoch > 0


def carrying(first: pb.ExchangeRequest, *more: pb.ExchangeRequest, **options: Any) -> pb.ExchangeRequest:
    message = pb.ExchangeRequest(more=more, **options)
    message.MergeFrom(first)
    return message


async def test_one_message_may_carry_several_batches(start_node: StartNode) -> None:
    answers = await exchange(
        await start_node(),
        carrying(
            writes(1, {"a": b"1", "b": b"2"}),
            reads(2, "a", "b"),
            carrying(removals(3, "a"), reads(4, "a", "b")),
        ),
    )
    assert [answer.batch_id for answer in answers] == [1, 2, 3, 4]
    assert list(answers[1].get.values) == [b"1", b"2"]
    assert list(answers[3].get.values) == [b"", b"2"]


async def test_a_message_may_carry_more_slow_batches_than_the_node_begins_at_once() -> None:
    slow = SlowBatches()
    async with serving(slow) as cache:
        call = cache.Exchange()
        await call.write(carrying(*(reads(number, "slow") for number in range(MAX_AT_WORK + 5))))
        await slow.waiting(MAX_AT_WORK)
        slow.let_go.set()
        answered = [(await call.read()).batch_id for _ in range(MAX_AT_WORK + 5)]
        assert sorted(answered) == list(range(MAX_AT_WORK + 5))


async def test_only_the_values_when_no_more_is_asked_for(start_node: StartNode) -> None:
    _, found = await exchange(
        await start_node(), writes(1, {"a": b"1"}, ttl_ms=[60_000]), reads(2, "a", "b", values_only=True)
    )
    assert found.get == pb.GetResultColumns(outcomes=[HIT, MISS], values=[b"1", b""])


@pytest.mark.parametrize("ttl_ms", [[1, 60_000], [60_000], []])
async def test_a_column_has_one_element_for_each_key_or_for_all_or_none(
    start_node: StartNode, ttl_ms: list[int]
) -> None:
    channel = await start_node()
    await exchange(channel, writes(1, {"a": b"1", "b": b"2"}, ttl_ms=ttl_ms, stale_ms=[60_000]))
    [found] = await exchange(channel, reads(2, "a", "b"))
    while len(ttl_ms) == 2 and found.get.outcomes[0] != STALE:
        [found] = await exchange(channel, reads(2, "a", "b"))
    left = [0, 60_000] if len(ttl_ms) == 2 else ttl_ms * 2 or [0, 0]
    assert all(0 <= asked - got < 30_000 for asked, got in zip(left, found.get.ttl_ms, strict=True))
    assert list(found.get.values) == [b"1", b"2"]


async def test_keys_out_of_bounds_have_their_error_and_the_others_go_on(start_node: StartNode) -> None:
    channel = await start_node(max_value_bytes=100, max_memory=4 * MiB)
    entries = {"a": b"1", "": b"2", "large": bytes(101), "late": b"3", "b": b"4"}
    stored, found, removed = await exchange(
        channel,
        writes(1, entries, ttl_ms=[0, 0, 0, 10**15, 60_000]),
        reads(2, "", "a", "k" * 1_025, "b"),
        removals(3, "a", ""),
    )
    errors = {error.index: from_status(error.status) for error in stored.errors}
    assert {row: (type(error), error.metadata["field"]) for row, error in errors.items()} == {
        1: (InvalidArgument, "key"),
        2: (InvalidArgument, "value"),
        3: (InvalidArgument, "ttl_ms"),
    }
    assert [version > 0 for version in stored.set.versions] == [True, False, False, False, True]
    assert list(stored.set.replicas) == [1, 0, 0, 0, 1]
    assert [error.index for error in found.errors] == [0, 2]
    assert list(found.get.outcomes) == [0, HIT, 0, HIT]
    assert list(found.get.values) == [b"", b"1", b"", b"4"]
    assert [error.index for error in removed.errors] == [1]
    assert list(removed.delete.outcomes) == [pb.DELETE_OUTCOME_DELETED, 0]


async def test_an_entry_that_the_store_could_never_hold(start_node: StartNode) -> None:
    channel = await start_node(max_memory=1 * MiB)
    [stored] = await exchange(channel, writes(1, {"a": b"1", "b": bytes(2 * MiB), "c": b"3"}))
    assert isinstance(from_status(stored.errors[0].status), EntryTooLarge)
    assert [error.index for error in stored.errors] == [1]
    assert list(stored.set.replicas) == [1, 0, 1]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ExchangeRequest(batch_id=7), "batch"),
        (reads(7), "keys"),
        (reads(7, *(["k"] * (MAX_BATCH + 1))), "keys"),
        (removals(7), "keys"),
        (writes(7, {}), "keys"),
        (pb.ExchangeRequest(batch_id=7, set=pb.SetColumns(keys=["a", "b"], values=[b"1"])), "values"),
        (writes(7, {"a": b"1", "b": b"2", "c": b"3"}, ttl_ms=[1, 2]), "ttl_ms"),
        (writes(7, {"a": b"1"}, stale_ms=[1, 2]), "stale_ms"),
    ],
)
async def test_a_batch_that_makes_no_sense_is_refused_and_the_stream_goes_on(
    start_node: StartNode, request_: pb.ExchangeRequest, field: str
) -> None:
    refused, found = await exchange(await start_node(), request_, reads(8, "a"))
    error = from_status(refused.refused)
    assert (refused.batch_id, refused.WhichOneof("batch")) == (7, None)
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field
    assert (found.batch_id, list(found.get.outcomes)) == (8, [MISS])


async def test_values_beyond_one_message_are_left_for_another_batch(start_node: StartNode) -> None:
    channel = await start_node(max_message_bytes=1 * MiB, max_value_bytes=MiB - 64 * 1024)
    large = bytes(900_000)
    await exchange(channel, writes(1, {"a": large}), writes(2, {"b": large}))
    [found] = await exchange(channel, reads(3, "missing", "a", "b"))
    assert list(found.get.values) == [b"", large, b""]
    assert list(found.get.outcomes) == [MISS, HIT, 0]
    [error] = found.errors
    assert (error.index, type(from_status(error.status))) == (2, AnswerTooLarge)


async def test_a_malformed_message_ends_the_stream_with_a_status(start_node: StartNode) -> None:
    channel = await start_node()
    method: Any = channel.stream_stream("/cacheservice.v1.CacheService/Exchange")
    call: Any = method()
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert isinstance(from_rpc_error(caught.value), InvalidArgument)
    assert len(await exchange(channel, reads(1, "a"))) == 1


async def test_a_node_that_has_not_joined_or_is_full_refuses_the_batch() -> None:
    admission = Admission(1)
    async with serving(SlowBatches(), admission) as cache:
        call = cache.Exchange()
        await call.write(reads(1, "a"))
        assert isinstance(from_status((await call.read()).refused), NotReady)
        admission.is_open = True
        with admission:
            await call.write(reads(2, "a"))
            assert isinstance(from_status((await call.read()).refused), Overloaded)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_slow_batch_holds_up_no_other() -> None:
    slow = SlowBatches()
    async with serving(slow) as cache:
        call = cache.Exchange()
        await call.write(reads(1, "slow"))
        await call.write(reads(2, "fast"))
        assert (await call.read()).batch_id == 2
        slow.let_go.set()
        assert (await call.read()).batch_id == 1


async def test_the_node_reads_no_further_than_its_bound() -> None:
    slow = SlowBatches()
    async with serving(slow) as cache:
        call = cache.Exchange()
        for number in range(MAX_AT_WORK + 5):
            await call.write(reads(number, "slow"))
        await slow.waiting(MAX_AT_WORK)
        # Whatever else is going on in the process gets its turn; no further batch is begun.
        for _ in range(100):
            await asyncio.sleep(0)
        assert slow.begun == MAX_AT_WORK
        slow.let_go.set()
        answered = [(await call.read()).batch_id for _ in range(MAX_AT_WORK + 5)]
        assert sorted(answered) == list(range(MAX_AT_WORK + 5))


async def test_a_caller_that_takes_no_answers_stops_its_own_stream_alone(start_node: StartNode) -> None:
    channel = await start_node(max_memory=64 * MiB)
    cache = CacheServiceStub(channel)
    value = bytes(MiB)
    await exchange(channel, writes(1, {"a": value}))
    lazy: Any = cache.Exchange()
    sending = asyncio.create_task(_send_many(lazy, 200))
    for _ in range(20):
        [found] = await exchange(channel, reads(2, "a"))
        assert found.get.values[0] == value
    assert [(await lazy.read()).batch_id for _ in range(200)] == list(range(200))
    await sending


async def _send_many(call: Any, count: int) -> None:
    for number in range(count):
        await call.write(reads(number, "a"))


async def test_callers_that_go_away_leave_nothing_behind() -> None:
    slow, admission = SlowBatches(), Admission(100)
    admission.is_open = True
    async with serving(slow, admission) as cache:
        for _ in range(5):
            call = cache.Exchange()
            await call.write(reads(1, "slow"))
            await slow.waiting(1)
            call.cancel()
            slow.let_go.set()
            await slow.waiting(0)
            slow.let_go.clear()
        call = cache.Exchange()
        await call.write(reads(2, "fast"))
        assert (await call.read()).batch_id == 2
    async with asyncio.timeout(10):
        while admission.count or len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)


async def test_a_node_that_stops_answers_what_it_has_read_and_ends_the_stream() -> None:
    server = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=30))
    address = await server.start()
    await server.join()
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = CacheServiceStub(channel).Exchange()
        await call.write(writes(1, {"a": b"1"}))
        assert (await call.read()).batch_id == 1
        async with asyncio.timeout(10):
            await server.stop()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


class SlowBatches:
    """Answers reads: of the key "slow" only when let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.let_go = asyncio.Event()
        self._waiting = 0

    def get(
        self,
        keys: list[str],
        timeout_ms: int,
        *,
        values_only: bool,
        nearest: bool,
        lease: bool,
        wait_ms: int,
    ) -> Soon[Reads]:
        answer = Reads([int(GetOutcome.MISS)] * len(keys), [b""] * len(keys))
        return Later(asyncio.create_task(self._later(answer))) if keys == ["slow"] else answer

    async def waiting(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self._waiting != count:
                await asyncio.sleep(0)

    async def _later(self, answer: Reads) -> Reads:
        self.begun += 1
        self._waiting += 1
        await self.let_go.wait()
        self._waiting -= 1
        return answer


@asynccontextmanager
async def serving(batches: SlowBatches, admission: Admission | None = None) -> AsyncIterator[Any]:
    if admission is None:
        admission = Admission(1_000)
        admission.is_open = True
    settings = Settings()
    exchange = Exchange(batches, admission, settings, lambda: 1)  # type: ignore[arg-type]
    methods = Methods()
    methods.handlers[EXCHANGE] = Streams().handler(pb.ExchangeRequest.FromString, exchange.begin, requests)
    async with serving_methods(methods) as channel:
        yield CacheServiceStub(channel)
