"""One stream to a peer, against a scripted call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cacheservice.errors import ClusterIdMismatch
from cacheservice.http2.client import ConnectFailed
from cacheservice.http2.client_stream import StreamFailed
from cacheservice.http2.statuses import UNAVAILABLE, CallStatus
from cacheservice.server import peer_stream, questions
from cacheservice.server.peer_stream import PeerStream
from cacheservice.server.questions import MAX_BYTES, MAX_ROWS, Question, StreamEnded
from cacheservice.v1 import peer_pb2
from cacheservice.wire import to_status


class Call:
    """A stream whose other end is the test."""

    is_blocked = False

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.sent: asyncio.Queue[peer_pb2.PeerServiceExchangeRequest] = asyncio.Queue()
        self.respond = on_message
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, message: bytes) -> None:
        self.sent.put_nowait(peer_pb2.PeerServiceExchangeRequest.FromString(message))

    async def finished(self) -> None:
        await asyncio.shield(self.end)

    def cancel(self) -> None:
        """Nothing holds on to it."""

    async def close(self) -> None:
        self.cancel()

    def answer(self, request: peer_pb2.PeerServiceExchangeRequest) -> None:
        """Answers each copy with its version."""
        response = peer_pb2.PeerServiceExchangeResponse(request_id=request.request_id)
        response.replicate.versions.extend(entry.version for entry in request.replicate.copies.others)
        self.respond(response.SerializeToString())


class Calls:
    """The calls that a stream has opened."""

    def __init__(self) -> None:
        self._opened: list[Call] = []

    async def __call__(self, on_message: Callable[[bytes], None], _: Callable[[], None]) -> Any:
        self._opened.append(Call(on_message))
        return self._opened[-1]

    async def last(self, count: int = 1) -> Call:
        """The last of so many calls, when it is opened."""
        async with asyncio.timeout(10):
            while len(self._opened) < count:
                await asyncio.sleep(0)
        return self._opened[-1]


def copies(*versions: int, kind: str = "replicate", size: int = 0, timeout_ms: int = 60_000) -> Question:
    def to_request(rows: list[Any]) -> peer_pb2.PeerServiceExchangeRequest:
        replicate = peer_pb2.ReplicateRequest(copies=peer_pb2.Copies(others=rows))
        return peer_pb2.PeerServiceExchangeRequest(replicate=replicate)

    def rows_of(answer: peer_pb2.PeerServiceExchangeResponse) -> list[int]:
        return list(answer.replicate.versions)

    rows = [peer_pb2.ReplicaEntry(key="k", version=version) for version in versions]
    return Question(kind, rows, size, timeout_ms, to_request, rows_of)


async def asking(stream: PeerStream, *questions: Question) -> list[asyncio.Future[list[Any]]]:
    tasks = [stream.ask(question) for question in questions]
    await asyncio.sleep(0)
    return tasks


async def test_what_waits_together_leaves_as_one_and_comes_back_apart() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    tasks = await asking(stream, copies(1, 2), copies(3), copies(4, kind="other"), copies(5))
    sent = [await (await calls.last()).sent.get() for _ in range(2)]
    assert [[entry.version for entry in request.replicate.copies.others] for request in sent] == [
        [1, 2, 3, 5],
        [4],
    ]
    for request in reversed(sent):
        (await calls.last()).answer(request)
    assert await asyncio.gather(*tasks) == [[1, 2], [3], [4], [5]]
    await stream.close()


async def test_bounds_of_what_leaves_together() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    many = [1] * (MAX_ROWS - 1)
    await asking(stream, copies(*many), copies(2), copies(3), copies(4, size=MAX_BYTES), copies(5))
    sizes = [len((await (await calls.last()).sent.get()).replicate.copies.others) for _ in range(3)]
    assert sizes == [MAX_ROWS, 2, 1]
    await stream.close()


async def test_questions_without_a_kind_leave_alone() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    tasks = await asking(stream, copies(1, 2, kind=""), copies(3, kind=""))
    for _ in tasks:
        (await calls.last()).answer(await (await calls.last()).sent.get())
    assert await asyncio.gather(*tasks) == [[1, 2], [3]]
    await stream.close()


async def test_others_wait_for_those_under_way_but_not_for_slow_ones() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    await asking(stream, copies(1))
    await (await calls.last()).sent.get()
    await asking(stream, copies(8), copies(9))
    assert (await calls.last()).sent.empty()
    async with asyncio.timeout(10):
        request = await (await calls.last()).sent.get()
    assert [entry.version for entry in request.replicate.copies.others] == [8, 9]
    await stream.close()


async def test_kinds_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "SLOW_SECONDS", 600)
    calls = Calls()
    stream = PeerStream(calls)
    await asking(stream, copies(1, kind="read"), copies(2, kind="write"))
    first, second = [await (await calls.last()).sent.get() for _ in range(2)]
    waiting = [copies(number, kind=("read", "write")[number % 2]) for number in range(3, 9)]
    await asking(stream, *waiting)
    (await calls.last()).answer(second)
    request = await (await calls.last()).sent.get()
    assert [entry.version for entry in request.replicate.copies.others] == [3, 5, 7]
    (await calls.last()).answer(first)
    request = await (await calls.last()).sent.get()
    assert [entry.version for entry in request.replicate.copies.others] == [4, 6, 8]
    await stream.close()


async def test_an_error_is_everybodys() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    tasks = await asking(stream, copies(1), copies(2))
    request = await (await calls.last()).sent.get()
    error = to_status(ClusterIdMismatch("another cluster"))
    response = peer_pb2.PeerServiceExchangeResponse(request_id=request.request_id, error=error)
    (await calls.last()).respond(response.SerializeToString())
    for task in tasks:
        with pytest.raises(ClusterIdMismatch):
            await task
    await stream.close()


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "drained"])
async def test_a_stream_that_ends_tells_what_may_have_been_done_and_is_opened_again(is_cut: bool) -> None:
    calls = Calls()
    stream = PeerStream(calls)
    tasks = []
    for number in range(2):
        tasks += await asking(stream, copies(number + 1))
        await asyncio.sleep(0)
    await (await calls.last()).sent.get()
    end = (await calls.last()).end
    if is_cut:
        end.set_exception(StreamFailed(CallStatus(UNAVAILABLE, "cut")))
    else:
        end.set_result(None)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(error, StreamEnded) and error.was_sent for error in ended] == [
        is_cut,
        False,
    ]
    [again] = await asking(stream, copies(9))
    (await calls.last(2)).answer(await (await calls.last(2)).sent.get())
    assert await again == [9]
    await stream.close()


async def test_a_peer_that_cannot_be_reached_is_not_tried_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_stream, "REFUSAL_SECONDS", 600)
    attempts = 0

    async def refuse(_: object, __: object) -> Any:
        nonlocal attempts
        attempts += 1
        raise ConnectFailed("nobody there")

    stream = PeerStream(refuse)
    for _ in range(3):
        with pytest.raises(StreamEnded, match="nobody there") as ended:
            await stream.ask(copies(1))
        assert not ended.value.was_sent
    assert attempts == 1
    await stream.close()


async def test_who_gives_up_is_not_sent_and_not_answered() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    with pytest.raises(TimeoutError):
        await stream.ask(copies(1, timeout_ms=1))
    first = await (await calls.last()).sent.get()
    cancelled, kept = await asking(stream, copies(2), copies(3))
    cancelled.cancel()
    request = await (await calls.last()).sent.get()
    (await calls.last()).answer(first)
    (await calls.last()).answer(request)
    assert await kept == [3]
    await stream.close()


async def test_a_stream_that_is_to_finish_waits_for_what_was_asked() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    first, second = await asking(stream, copies(1), copies(2, kind="other"))
    call = await calls.last()
    finishing = asyncio.create_task(stream.finish(60))
    for _ in range(2):
        assert not finishing.done()
        call.answer(await call.sent.get())
    assert [await first, await second] == [[1], [2]]
    await finishing


async def test_a_stream_that_is_to_finish_waits_only_so_long() -> None:
    calls = Calls()
    stream = PeerStream(calls)
    [task] = await asking(stream, copies(1))
    await (await calls.last()).sent.get()
    await stream.finish(0)
    with pytest.raises(StreamEnded) as ended:
        await task
    assert ended.value.was_sent
