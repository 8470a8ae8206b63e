"""The asynchronous client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar, overload

from cacheservice.client.nodes import Nodes
from cacheservice.client.results import Lookup, Outcome, SetResult
from cacheservice.errors import AnswerTooLarge, CacheServiceError, InvalidArgument
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import from_status

Default = TypeVar("Default")

_OUTCOMES = {
    pb.GET_OUTCOME_HIT: Outcome.HIT,
    pb.GET_OUTCOME_MISS: Outcome.MISS,
    pb.GET_OUTCOME_STALE: Outcome.STALE,
}
_MAX_BATCH = 10_000
_MAX_BATCH_BYTES = 4 * 1024 * 1024


class Client:
    """A cache cluster, reached through any of its nodes.

        async with Client("localhost:7700") as cache:
            await cache.set("user:1", b"Ada", ttl=60)

    `targets` is the HOST:PORT of one node or of several; the others are learnt from them. `timeout` is
    in seconds, for each call with all its repetitions. Keys are str of 1 to 1,024 bytes in UTF-8, values
    bytes. Every method raises the errors of cacheservice.errors, TypeError for arguments of another type,
    and nothing else; reads, and writes without a condition, are tried on other nodes when one gives no
    answer.
    """

    def __init__(self, targets: str | Sequence[str], *, timeout: float = 1.0) -> None:
        self.nodes = Nodes([targets] if isinstance(targets, str) else targets, timeout)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. Calls under way end with an error."""
        await self.nodes.close()

    @overload
    async def get(self, key: str) -> bytes | None: ...
    @overload
    async def get(self, key: str, default: Default) -> bytes | Default: ...
    async def get(self, key: str, default: Default | None = None) -> bytes | Default | None:
        """The value, fresh or stale, or `default` when there is none."""
        found = await self.lookup(key)
        return default if found.value is None else found.value

    async def lookup(self, key: str) -> Lookup:
        """The value with everything that is known of it."""
        request = pb.GetRequest(key=_key(key))
        return _lookup(
            await self.nodes.call(
                lambda node, timeout: node.cache.Get(request, timeout=timeout), repeatable=True
            )
        )

    async def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The values of those keys that have one. Raises the first key's error, if any has one."""
        found: dict[str, bytes] = {}
        parts = _parts(list(dict.fromkeys(map(_key, keys))))
        while parts:
            part = parts.pop(0)
            request = pb.BatchGetRequest(keys=part)
            response = await self.nodes.call(
                lambda node, timeout, request=request: node.cache.BatchGet(request, timeout=timeout),  # type: ignore[misc]
                repeatable=True,
            )
            left_out: list[str] = []
            for key, result in zip(part, response.results, strict=True):
                if result.HasField("error"):
                    error = from_status(result.error)
                    if not isinstance(error, AnswerTooLarge) or key == part[0]:
                        raise error
                    left_out.append(key)
                elif result.response.outcome != pb.GET_OUTCOME_MISS:
                    found[key] = result.response.value
            parts += _parts(left_out)
        return found

    async def set(
        self,
        key: str,
        value: bytes,
        ttl: float = 0,
        *,
        stale: float = 0,
        if_absent: bool = False,
        if_present: bool = False,
        if_version: int | None = None,
        tags: Sequence[str] = (),
        min_replicas: int = 0,
    ) -> SetResult:
        """Writes the value, to live `ttl` seconds (0: as its namespace says, or for ever).

        For `stale` seconds more it is still served, as stale. Of the conditions at most one may be given.
        """
        request = _set_request(key, value, ttl)
        request.stale_seconds = stale
        request.tags.extend(tags)
        request.min_replicas = _uint32("min_replicas", min_replicas)
        if [if_absent, if_present, if_version is not None].count(True) > 1:
            raise ValueError("of if_absent, if_present and if_version only one may be given")
        if if_absent:
            request.if_absent = True
        if if_present:
            request.if_present = True
        if if_version is not None:
            request.if_version = _uint64("if_version", if_version)
        response = await self.nodes.call(
            lambda node, timeout: node.cache.Set(request, timeout=timeout),
            repeatable=request.WhichOneof("condition") is None,
        )
        return SetResult(response.outcome == pb.SET_OUTCOME_STORED, response.version, response.replicas)

    async def set_many(self, values: Mapping[str, bytes], ttl: float = 0) -> None:
        """Writes all the values. Raises the first failed key's error; the others are written all the same."""
        errors: list[CacheServiceError] = []
        requests = [_set_request(key, value, ttl) for key, value in values.items()]
        for part in _parts(requests, lambda request: len(request.value)):
            request = pb.BatchSetRequest(requests=part)
            response = await self.nodes.call(
                lambda node, timeout, request=request: node.cache.BatchSet(request, timeout=timeout),  # type: ignore[misc]
                repeatable=True,
            )
            errors += [from_status(result.error) for result in response.results if result.HasField("error")]
        if errors:
            raise errors[0]

    async def delete(self, key: str) -> bool:
        """Removes the entry; whether there was one."""
        request = pb.DeleteRequest(key=_key(key))
        response = await self.nodes.call(
            lambda node, timeout: node.cache.Delete(request, timeout=timeout), repeatable=True
        )
        return response.outcome == pb.DELETE_OUTCOME_DELETED

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Removes the entries; how many there were. Raises the first failed key's error, after all."""
        removed = 0
        errors: list[CacheServiceError] = []
        for part in _parts(list(map(_key, keys))):
            request = pb.BatchDeleteRequest(keys=part)
            response = await self.nodes.call(
                lambda node, timeout, request=request: node.cache.BatchDelete(request, timeout=timeout),  # type: ignore[misc]
                repeatable=True,
            )
            for result in response.results:
                if result.HasField("error"):
                    errors.append(from_status(result.error))
                else:
                    removed += result.response.outcome == pb.DELETE_OUTCOME_DELETED
        if errors:
            raise errors[0]
        return removed

    async def touch(self, key: str, ttl: float) -> bool:
        """Gives the entry `ttl` more seconds from now; whether there was one."""
        request = pb.TouchRequest(key=_key(key), ttl_seconds=ttl)
        response = await self.nodes.call(
            lambda node, timeout: node.cache.Touch(request, timeout=timeout), repeatable=True
        )
        return response.outcome == pb.TOUCH_OUTCOME_TOUCHED

    async def incr(self, key: str, delta: int = 1, *, initial: int = 0, ttl: float = 0) -> int:
        """Adds `delta` to the counter and returns it. An absent one is made from `initial`, with `ttl`."""
        request = pb.IncrementRequest(
            key=_key(key), delta=_int64("delta", delta), initial=_int64("initial", initial), ttl_seconds=ttl
        )
        response = await self.nodes.call(
            lambda node, timeout: node.cache.Increment(request, timeout=timeout), repeatable=False
        )
        return response.value


def _lookup(response: pb.GetResponse) -> Lookup:
    outcome = _OUTCOMES[response.outcome]
    return Lookup(
        outcome,
        None if outcome is Outcome.MISS else response.value,
        response.version,
        response.ttl_seconds,
        response.age_seconds,
        response.served_by,
        response.hops,
    )


def _key(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key must be str, not {type(key).__name__}")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidArgument.of("key", "text that UTF-8 can express", repr(key)[:64]) from None
    return key


def _integer(bits: int, lowest: int) -> Callable[[str, int], int]:
    highest = lowest + 2**bits - 1

    def checked(field: str, value: int) -> int:
        if not isinstance(value, int):
            raise TypeError(f"{field} must be int, not {type(value).__name__}")
        if not lowest <= value <= highest:
            raise InvalidArgument.of(field, f"{lowest} to {highest}", str(value))
        return value

    return checked


_int64 = _integer(64, -(2**63))
_uint64 = _integer(64, 0)
_uint32 = _integer(32, 0)


def _set_request(key: str, value: bytes, ttl: float) -> pb.SetRequest:
    if not isinstance(value, bytes):
        raise TypeError(f"a value must be bytes, not {type(value).__name__}")
    return pb.SetRequest(key=_key(key), value=value, ttl_seconds=ttl)


Item = TypeVar("Item")


def _parts(items: Sequence[Item], size: Callable[[Item], int] = lambda _: 0) -> list[list[Item]]:
    """The items in batches, each within the bounds of what is sent at a time."""
    parts: list[list[Item]] = []
    room = 0
    for item in items:
        room -= size(item)
        if not parts or len(parts[-1]) == _MAX_BATCH or room < 0:
            parts.append([])
            room = _MAX_BATCH_BYTES - size(item)
        parts[-1].append(item)
    return parts
