"""Who loads what is missing: the leases of this process, those who wait for others', and the fills."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cacheservice.client.channel import Backoff, NodeStubs
from cacheservice.client.leased import Found
from cacheservice.errors import (
    CacheServiceError,
    DeadlineExceeded,
    LoadFailed,
    ResourceExhausted,
    Unavailable,
    shown,
)
from cacheservice.limits import MAX_BATCH
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import from_status

_log = logging.getLogger(__name__)

MAX_ERROR_BYTES = 1_024
WAIT_AT_A_TIME_SECONDS = 5.0
"""A call that waits for another process is made anew after so long."""
MAX_RETURNS = 32
"""Leases given back at a time."""
MAX_UNWANTED = 100_000
"""Leases that wait for that; of more, those that came first are left to expire."""
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5

_NO_CACHE = (Unavailable, DeadlineExceeded, ResourceExhausted)


@dataclass(frozen=True, slots=True)
class Terms:
    """How loaded values are cached. Times in milliseconds; 0 is what the namespace says."""

    ttl_ms: int = 0
    stale_ms: int = 0
    stale_if_error_ms: int = 0
    absent_ttl_ms: int = 0
    tags: tuple[str, ...] = ()


class Ended(NamedTuple):
    """How a load of this process ended that did not fail."""

    value: bytes | None
    """None when there is no such value."""
    is_outdated: bool
    """Whether the key was written, removed or invalidated meanwhile: who reads from now on must not get
    it."""


@dataclass(slots=True, eq=False)
class Load:
    """The duty to load the value of a key, and then to `finish` it or to `fail`."""

    key: str
    token: bytes
    """Empty when the cache cannot be reached, and will not get the value either."""
    current: Found | None
    """An entry that is still good enough for those who read it now; None when there is none."""
    done: asyncio.Future[Ended]
    began: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Acquired:
    """What was found of some keys, and what is to be done about the others."""

    found: dict[str, bytes | None] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)
    """Others are loading these."""
    failed: list[LoadFailed] = field(default_factory=list)


@dataclass(slots=True)
class _Wait:
    task: asyncio.Task[Found]
    callers: int = 0
    """Those that wait for the task."""
    is_claimed: bool = False
    """Whether one of those who wait has taken the lease that came of it."""


ReadLeased = Callable[[str], Awaitable[Found]]
"""Reads a key, and takes its lease if it is to be loaded."""
ReadManyLeased = Callable[[list[str]], Awaitable[dict[str, Found]]]
"""As ReadLeased, of distinct keys."""

CallOwner = Callable[[Callable[[NodeStubs, float], Awaitable[Any]], str, bool, float], Awaitable[Any]]
"""Calls a node, best the owner of a key. Also given whether the call may be repeated, and how many seconds
longer than others it may take."""


class Loads:
    """The loads of one client; for one event loop. A key has one at a time in this process."""

    def __init__(
        self, read_leased: ReadLeased, read_many_leased: ReadManyLeased, call_owner: CallOwner
    ) -> None:
        self._read_leased = read_leased
        self._read_many_leased = read_many_leased
        self._call_owner = call_owner
        self._under_way: dict[str, Load] = {}
        self._waits: dict[str, _Wait] = {}
        self._unwanted: deque[tuple[str, bytes]] = deque(maxlen=MAX_UNWANTED)
        self._returns: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def acquire(self, keys: list[str]) -> Acquired:
        """Reads the distinct keys, and takes the leases of what is to be loaded.

        While no node answers, values are loaded without leases, once in this process.
        """
        try:
            return self._sorted(await self._read_many_leased(keys))
        except _NO_CACHE as error:
            return self._without_cache(keys, error)

    async def acquire_one(self, key: str) -> Found | Acquired:
        """As `acquire`; what was found itself, if that is all there is to it."""
        try:
            found = await self._read_leased(key)
        except _NO_CACHE as error:
            return self._without_cache([key], error)
        return found if found.is_answer and not found.token else self._sorted({key: found})

    def _without_cache(self, keys: Sequence[str], error: CacheServiceError) -> Acquired:
        _log.debug("loading without the cache: %s", error)
        acquired = Acquired()
        for key in keys:
            if key in self._under_way:
                acquired.awaited.append(key)
            else:
                acquired.loads.append(self._begin(key, b"", None))
        return acquired

    def _sorted(self, reads: Mapping[str, Found]) -> Acquired:
        acquired = Acquired()
        for key, found in reads.items():
            if found.token:
                acquired.loads.append(self._begin(key, found.token, found if found.is_answer else None))
            elif found.is_answer:
                acquired.found[key] = found.value
            elif found.failure is not None:
                acquired.failed.append(_failed(key, found.failure))
            else:
                acquired.awaited.append(key)
        return acquired

    async def wait(self, key: str, seconds: float) -> bytes | Load | None:
        """The value that others are loading, in this process or elsewhere; or the lease, if they did not.

        Raises what their loader raised: itself if it was in this process, else LoadFailed. DeadlineExceeded
        when they take longer than `seconds`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (left := deadline - loop.time()) > 0:
            load = self._under_way.get(key)
            if load is not None:
                await asyncio.wait((load.done,), timeout=left)
                is_done = load.done.done() and not load.done.cancelled()
                if is_done and not (ended := load.done.result()).is_outdated:
                    return ended.value
                continue
            wait = self._waits.get(key)
            if wait is None:
                wait = self._waits[key] = _Wait(asyncio.create_task(self._wait_elsewhere(key, left)))
            wait.callers += 1
            try:
                done, _ = await asyncio.wait((wait.task,), timeout=left)
            finally:
                wait.callers -= 1
            if not done:
                break
            try:
                found = wait.task.result()
            except _NO_CACHE as error:
                _log.debug("loading without the cache: %s", error)
                if key in self._under_way:
                    continue
                return self._begin(key, b"", None)
            if found.token and not wait.is_claimed:
                wait.is_claimed = True
                return self._begin(key, found.token, found if found.is_answer else None)
            if found.is_answer:
                return found.value
            if found.failure is not None:
                raise _failed(key, found.failure)
        raise DeadlineExceeded(f"others are loading {shown(key)} for longer than {seconds:g} s")

    async def finish(self, loads: Sequence[Load], values: Iterable[bytes | None], terms: Terms) -> None:
        """Fills in what was loaded, None where there is no such value; whoever waits for it has it then."""
        loaded = list(zip(loads, values, strict=True))
        outdated: set[str] = set()
        with_token = [(load, value) for load, value in loaded if load.token]
        for start in range(0, len(with_token), MAX_BATCH):
            outdated |= await self._fill(with_token[start : start + MAX_BATCH], terms)
        for load, value in loaded:
            self._end(load)
            if not load.done.done():
                load.done.set_result(Ended(value, load.key in outdated))

    async def fail(self, load: Load, error: BaseException | None) -> Found | None:
        """Gives the lease back because the load failed, or because nobody wants it any longer (None).

        The entry to go on with, if there is one; whoever waits in this process gets that too, or the error.
        """
        fallback = await self._release(
            load.key, load.token, "" if error is None else _cut(f"{type(error).__name__}: {error}")
        )
        self._end(load)
        if load.done.done():
            return fallback
        if fallback is not None:
            load.done.set_result(Ended(fallback.value, is_outdated=False))
        elif error is None:
            load.done.cancel()
        else:
            load.done.set_exception(error)
            load.done.exception()
        return fallback

    async def close(self) -> None:
        """Ends what waits."""
        self._is_closed = True
        tasks = [*self._returns, *(wait.task for wait in self._waits.values())]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def give_back(self, key: str, token: bytes) -> None:
        """Has the lease end, which nobody here wants any longer."""
        if self._is_closed:
            return
        self._unwanted.append((key, token))
        if len(self._returns) < MAX_RETURNS:
            returning = asyncio.create_task(self._return_all())
            self._returns.add(returning)
            returning.add_done_callback(self._returns.discard)

    async def _return_all(self) -> None:
        while self._unwanted:
            await self._release(*self._unwanted.popleft(), "")

    def _begin(self, key: str, token: bytes, current: Found | None) -> Load:
        load = Load(key, token, current, asyncio.get_running_loop().create_future())
        self._under_way[key] = load
        return load

    def _end(self, load: Load) -> None:
        if self._under_way.get(load.key) is load:
            del self._under_way[load.key]

    async def _wait_elsewhere(self, key: str, seconds: float) -> Found:
        """What there is once there is something, or when the time is up. A lease goes back that nobody in
        this process waits for any longer.

        A node at which too many wait answers at once; hence the pauses.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        pauses = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        found = Found(None, is_answer=False)
        try:
            while found.is_awaited and (left := deadline - loop.time()) > 0:
                found = await self._read_waiting(key, min(left, WAIT_AT_A_TIME_SECONDS))
                if found.is_awaited:
                    await asyncio.sleep(min(pauses.next(), deadline - loop.time()))
            wait = self._waits[key]
            if found.token and not wait.callers:
                wait.is_claimed = True
                await self._release(key, found.token, "")
            return found
        finally:
            del self._waits[key]

    async def _read_waiting(self, key: str, seconds: float) -> Found:
        request = pb.GetRequest(key=key, lease=pb.LeaseOptions(wait_ms=max(1, round(seconds * 1_000))))
        response = await self._call_owner(
            lambda node, timeout: node.cache.Get(request, timeout=timeout), key, True, seconds
        )
        return Found.of(response)

    async def _fill(self, loaded: Sequence[tuple[Load, bytes | None]], terms: Terms) -> set[str]:
        """The keys whose values are outdated already, and were refused.

        That others could not be filled in is not their callers' concern; the next ones may try.
        """
        now = time.perf_counter()
        requests = [_fill_request(load, value, now, terms) for load, value in loaded]
        first = loaded[0][0].key
        try:
            if len(requests) == 1:
                answer = await self._call_owner(
                    lambda node, timeout: node.cache.Set(requests[0], timeout=timeout), first, False, 0
                )
                answers = [answer]
            else:
                request = pb.BatchSetRequest(requests=requests)
                batch = await self._call_owner(
                    lambda node, timeout: node.cache.BatchSet(request, timeout=timeout), first, False, 0
                )
                answers = [result.response for result in batch.results]
                for (load, _), result in zip(loaded, batch.results, strict=True):
                    if result.HasField("error"):
                        await self._not_filled(load, from_status(result.error))
        except CacheServiceError as error:
            await asyncio.gather(*(self._not_filled(load, error) for load, _ in loaded))
            return set()
        return {
            request.key
            for request, answer in zip(requests, answers, strict=True)
            if answer.reason == pb.NOT_STORED_REASON_LEASE_VOID
        }

    async def _not_filled(self, load: Load, error: CacheServiceError) -> None:
        _log.warning("%s was loaded, but not cached: %s", shown(load.key), error)
        if not isinstance(error, Unavailable | DeadlineExceeded):
            await self._release(load.key, load.token, "")

    async def _release(self, key: str, token: bytes, error: str) -> Found | None:
        """The entry to go on with, if there is one."""
        if not token:
            return None
        request = pb.ReleaseLeaseRequest(key=key, lease_token=token, error=error)
        try:
            response = await self._call_owner(
                lambda node, timeout: node.cache.ReleaseLease(request, timeout=timeout), key, True, 0
            )
        except CacheServiceError as failure:
            _log.debug("the lease of %s was not given back: %s", shown(key), failure)
            return None
        return Found.of(response.fallback) if response.HasField("fallback") else None


def _fill_request(load: Load, value: bytes | None, now: float, terms: Terms) -> pb.SetRequest:
    if value is None:
        return pb.SetRequest(
            key=load.key, lease_token=load.token, absent=True, ttl_seconds=terms.absent_ttl_ms / 1_000
        )
    return pb.SetRequest(
        key=load.key,
        value=value,
        ttl_seconds=terms.ttl_ms / 1_000,
        stale_seconds=terms.stale_ms / 1_000,
        stale_if_error_seconds=terms.stale_if_error_ms / 1_000,
        load_seconds=now - load.began,
        tags=terms.tags,
        lease_token=load.token,
    )


def _failed(key: str, failure: pb.LoadFailure) -> LoadFailed:
    why = failure.error or "its loader was never heard of again"
    return LoadFailed(f"{shown(key)} could not be loaded: {why}", retry_after_ms=str(failure.retry_after_ms))


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore")
