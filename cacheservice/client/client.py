"""The asynchronous client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from cacheservice.certificates import Certificates, Tls
from cacheservice.client.arguments import (
    checked_int64,
    checked_milliseconds,
    checked_text,
    checked_uint32,
    checked_uint64,
    is_nearest,
)
from cacheservice.client.batch import Times
from cacheservice.client.cached import Arguments, Cached, KeyTemplates
from cacheservice.client.channel import NodeStubs
from cacheservice.client.codecs import Codec, Value
from cacheservice.client.exchange import Exchange
from cacheservice.client.hedging import Hedging
from cacheservice.client.hot_keys import HotKeys
from cacheservice.client.keys import checked_key, checked_keys
from cacheservice.client.leased import Found, LeasedCopies, LeasedReads
from cacheservice.client.loads import Loads
from cacheservice.client.near_cache import NearCache
from cacheservice.client.near_reads import NearReads
from cacheservice.client.nodes import Nodes
from cacheservice.client.observed import observe
from cacheservice.client.placement import Placement
from cacheservice.client.read_through import ReadThrough, loaded_on
from cacheservice.client.results import Invalidated, Lookup, Outcome, SetResult
from cacheservice.client.scan import Scan
from cacheservice.client.telemetry import sdk
from cacheservice.client.topology import TopologyWatch
from cacheservice.client.values import Values
from cacheservice.client.write_behind import WriteBehind
from cacheservice.errors import CacheServiceError
from cacheservice.v1 import cache_pb2 as pb

Default = TypeVar("Default")
Response = TypeVar("Response")
Item = TypeVar("Item")
Part = TypeVar("Part")
Routing = Literal["direct", "proxy"]
ReadPreference = Literal["owner", "nearest"]

_OUTCOMES = {
    pb.GET_OUTCOME_HIT: Outcome.HIT,
    pb.GET_OUTCOME_MISS: Outcome.MISS,
    pb.GET_OUTCOME_STALE: Outcome.STALE,
    pb.GET_OUTCOME_ABSENT: Outcome.ABSENT,
}
_AT_A_TIME = 20_000
"""Keys of one call that are under way at a time."""
_MAX_ON_STREAM = 1024 * 1024
"""Bytes of a value that shares a stream; a message that is too large for the node ends it for all."""
MAX_TIMEOUT_SECONDS = 3_600.0


class Client(Generic[Value]):
    """A cache cluster, reached through any of its nodes.

        async with Client("localhost:7700") as cache:
            await cache.set("user:1", b"Ada", ttl=60)

    `targets` is the HOST:PORT of one node or of several; the others are learnt from them. `timeout` is
    in seconds, for each call with all its repetitions. Keys are str of 1 to 1,024 bytes in UTF-8, values
    bytes, or whatever `codec` takes. Every method raises the errors of cacheservice.errors, TypeError for
    arguments of another type, and nothing else; reads, and writes without a condition, are tried on other
    nodes when one gives no answer. One instance serves all tasks of an event loop: what they ask for at about
    the same time travels together. With `routing` "direct" the owners of the keys are asked, which must be
    reachable from here; with "proxy" the targets alone.

    With `read_preference` "nearest" reads are answered by an owner in `zone`, the zone of this client, in
    place of the key's first owner: what was written in the last moments may be missing. Where no owner is in
    that zone, or the one that is does not have the entry, the first owner is asked.

    With `compress_above`, values of more bytes than that, once encoded, are compressed where that makes them
    shorter. Who reads them needs the option too, with whatever number.

    With `hedged_reads` another owner is asked too when a read takes longer than 95 % of the fastest node's
    answers, and the first answer counts. It may be older than the last write, where that is replicated
    asynchronously or the other owner could not be reached at the time.

    With `near_cache` this process keeps what `get` and `get_many` have read; `lookup` always asks a node.

    Where the application sets up an OpenTelemetry SDK, calls are seen in its spans and metrics, unless
    `telemetry` is False; docs/client.md says what of them.

    With `tls` all connections are encrypted, and nodes must have a certificate that its CA has signed.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        routing: Routing = "direct",
        timeout: float = 1.0,
        zone: str = "",
        read_preference: ReadPreference = "owner",
        codec: Codec[Value] | None = None,
        compress_above: int | None = None,
        near_cache: NearCache | None = None,
        hedged_reads: bool = False,
        telemetry: bool = True,
        tls: Tls | None = None,
    ) -> None:
        if routing not in ("direct", "proxy"):
            raise ValueError(f"routing must be 'direct' or 'proxy', not {routing!r}")
        if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
            raise ValueError(
                f"timeout must be above 0 and at most {MAX_TIMEOUT_SECONDS:.0f} s, not {timeout}"
            )
        targets = [targets] if isinstance(targets, str) else targets
        self.nodes = Nodes(targets, timeout, None if tls is None else Certificates(tls))
        self.hot = HotKeys()
        """The keys that nodes have lately told to be hot; docs/hot-keys.md says how they are read."""
        self._is_direct = routing == "direct"
        self._timeout = timeout
        self._nearest = is_nearest(read_preference)
        self._hedges = hedged_reads
        self._values = Values(codec, compress_above)
        self._watch = TopologyWatch(lambda: self.nodes.addresses, self.nodes.at, self._place, zone)
        self._near = NearReads(near_cache, self.nodes, self._watch.differs) if near_cache else None
        self._opened: Exchange | None = None
        self.loads = Loads(self._read_leased, self._read_many_leased, self._call_owner)
        self.read_through = ReadThrough(self.loads, self._values)
        if telemetry:
            sdk.observe(self, observe)

    async def __aenter__(self) -> Client[Value]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. Calls under way end with an error."""
        await self.read_through.close()
        if self._near is not None:
            await self._near.watch.close()
        if self._opened is not None:
            await self._opened.close()
        await self._watch.close()
        await self.nodes.close()

    @property
    def _exchange(self) -> Exchange:
        """Opened at the first use, which is within the event loop."""
        if self._opened is None:
            self._opened = Exchange(
                self.nodes,
                self._watch,
                self._timeout,
                self.hot,
                LeasedReads if self._near is None else LeasedCopies,
                self.loads.give_back,
                nearest=self._nearest,
                hedging={False: Hedging(), True: Hedging()} if self._hedges else {},
            )
            if self._watch.placement is not None:
                self._opened.place(self._watch.placement)
            self._learn()
        return self._opened

    async def _call(
        self,
        rpc: Callable[[NodeStubs, float], Awaitable[Response]],
        *,
        repeatable: bool,
        first: str | None = None,
        longer: float = 0,
    ) -> Response:
        """The response of a call of its own, from any node; best the one at the address `first`.

        It may take so many seconds `longer` than others.
        """
        self._learn()
        return await self.nodes.call(rpc, repeatable=repeatable, timeout=self._timeout + longer, first=first)

    def _read_leased(self, key: str) -> Awaitable[Found]:
        if self._near is not None:
            return self._near.read_leased(self._exchange, key)
        return self._exchange.read_leased(key)

    def _read_many_leased(self, keys: list[str]) -> Awaitable[dict[str, Found]]:
        if self._near is not None:
            return self._near.read_many_leased(self._exchange, keys)
        return self._exchange.read_many_leased(keys)

    async def _call_owner(
        self,
        rpc: Callable[[NodeStubs, float], Awaitable[Any]],
        key: str,
        repeatable: bool,
        longer: float,
    ) -> Any:
        return await self._call(rpc, repeatable=repeatable, first=self._owner(key), longer=longer)

    def _owner(self, key: str) -> str | None:
        """The address of the key's first owner, as far as it is known."""
        placement = self._watch.placement
        return None if placement is None else placement.owners(key)[0]

    async def _by_parts(
        self, parts: Iterable[Part], work: Callable[[Part], Awaitable[None]], times: Times
    ) -> None:
        """Does the work part by part, while there is time; raises the first error in the end."""
        errors: list[CacheServiceError] = []
        for part in parts:
            try:
                await work(part)
            except CacheServiceError as error:
                errors.append(error)
                if self._exchange.is_past(times):
                    break
        if errors:
            raise errors[0]

    def _writing(self, keys: Collection[str]) -> AbstractContextManager[None]:
        return nullcontext() if self._near is None else self._near.copies.writing(keys)

    def _sweeping(self) -> AbstractContextManager[None]:
        return nullcontext() if self._near is None else self._near.copies.sweeping()

    def _learn(self) -> None:
        sdk.look()
        if self._is_direct:
            self._watch.start()
        elif self._near is not None:
            self._near.watch.start_relayed()

    def _place(self, placement: Placement) -> None:
        self.nodes.learn(placement.addresses)
        if self._near is not None:
            self._near.watch.place(placement)
        if self._opened is not None:
            self._opened.place(placement)

    @overload
    async def get(self, key: str, *, read_preference: ReadPreference | None = None) -> Value | None: ...
    @overload
    async def get(
        self, key: str, default: Default, *, read_preference: ReadPreference | None = None
    ) -> Value | Default: ...
    async def get(
        self, key: str, default: Default | None = None, *, read_preference: ReadPreference | None = None
    ) -> Value | Default | None:
        """The value, fresh or stale, or `default` when there is none."""
        near = self._near
        if near is not None:
            kept: Any = near.get(key)
            if kept is not None:
                return kept if self._values.is_plain else self._values.decode(key, kept)
        key = checked_key(key)
        nearest = self._nearest if read_preference is None else is_nearest(read_preference)
        exchange = self._opened or self._exchange
        value: Any  # As bytes, which are the value itself if values are plain.
        if near is not None and near.keeps(key):
            value = await near.read(exchange, key)
        elif nearest is not self._nearest:
            value = (await exchange.read_many([key], exchange.times(), nearest=nearest)).get(key)
        elif nearest:
            value = await exchange.near_lane(key).read(key)
        else:
            value = await exchange.read(key)
        if value is None:
            return default
        return value if self._values.is_plain else self._values.decode(key, value)

    async def lookup(self, key: str, *, read_preference: ReadPreference | None = None) -> Lookup[Value]:
        """The value with everything that is known of it."""
        request = pb.GetRequest(key=checked_key(key))
        nearest = self._nearest if read_preference is None else is_nearest(read_preference)
        first = self._owner(key)
        if nearest:
            request.read_preference = pb.READ_PREFERENCE_NEAREST
            placement = self._watch.placement
            first = None if placement is None else placement.nearest(key)
        response = await self._call(
            lambda node, timeout: node.cache.Get(request, timeout=timeout), repeatable=True, first=first
        )
        return _lookup(key, response, self._values)

    async def get_many(
        self, keys: Iterable[str], *, read_preference: ReadPreference | None = None
    ) -> dict[str, Value]:
        """The values of those keys that have one. Raises the first error, if any key has one."""
        wanted = checked_keys(keys)
        nearest = self._nearest if read_preference is None else is_nearest(read_preference)
        found: dict[str, Value] = {}
        times = self._exchange.times()
        for start in range(0, len(wanted), _AT_A_TIME):
            part = wanted[start : start + _AT_A_TIME]
            if self._near is None:
                read = self._exchange.read_many(part, times, nearest=nearest)
                found |= self._values.decode_many(await read)
            else:
                kept = await self._near.read_many(self._exchange, part, times, nearest=nearest)
                found |= self._values.decode_many(kept)
        return found

    async def set(
        self,
        key: str,
        value: Value,
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
        key = checked_key(key)
        data = self._values.encode(key, value)
        ttl_ms = checked_milliseconds("ttl", ttl)
        stale_ms = checked_milliseconds("stale", stale)
        is_plain = not (if_absent or if_present or if_version is not None or tags or min_replicas)
        if is_plain and len(data) <= _MAX_ON_STREAM:
            written: SetResult
            if self._near is None:
                written = await self._exchange.lane(key).write(key, data, ttl_ms, stale_ms)
            else:
                with self._near.copies.writing((key,)):
                    written = await self._exchange.lane(key).write(key, data, ttl_ms, stale_ms)
            return written
        if [if_absent, if_present, if_version is not None].count(True) > 1:
            raise ValueError("of if_absent, if_present and if_version only one may be given")
        request = pb.SetRequest(
            key=key,
            value=data,
            ttl_seconds=ttl_ms / 1_000,
            stale_seconds=stale_ms / 1_000,
            tags=tags,
            min_replicas=checked_uint32("min_replicas", min_replicas),
        )
        if if_absent:
            request.if_absent = True
        if if_present:
            request.if_present = True
        if if_version is not None:
            request.if_version = checked_uint64("if_version", if_version)
        return await self._set(request)

    async def _set(self, request: pb.SetRequest) -> SetResult:
        with self._writing((request.key,)):
            response = await self._call(
                lambda node, timeout: node.cache.Set(request, timeout=timeout),
                repeatable=request.WhichOneof("condition") is None,
                first=self._owner(request.key),
            )
        return SetResult(response.outcome == pb.SET_OUTCOME_STORED, response.version, response.replicas)

    async def set_many(self, values: Mapping[str, Value], ttl: float = 0) -> None:
        """Writes all the values. Raises the first failed key's error; the others are written all the same."""
        keys = checked_keys(values)
        entries = list(zip(keys, map(self._values.encode, keys, values.values()), strict=True))
        ttl_ms = checked_milliseconds("ttl", ttl)
        exchange = self._exchange
        times = exchange.times()

        async def write(part: list[tuple[str, bytes]]) -> None:
            if len(part[0][1]) > _MAX_ON_STREAM:
                key, data = part[0]
                await self._set(pb.SetRequest(key=key, value=data, ttl_seconds=ttl_ms / 1_000))
            else:
                await exchange.write_many(
                    [key for key, _ in part], [value for _, value in part], ttl_ms, times
                )

        alone = [entry for entry in entries if len(entry[1]) > _MAX_ON_STREAM]
        together = [entry for entry in entries if len(entry[1]) <= _MAX_ON_STREAM] if alone else entries
        with self._writing(values):
            await self._by_parts([*_parts(together, _AT_A_TIME), *_parts(alone, 1)], write, times)

    async def delete(self, key: str) -> bool:
        """Removes the entry; whether there was one."""
        key = checked_key(key)
        with self._writing((key,)):
            return await self._exchange.lane(key).remove(key)

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Removes the entries; how many there were. Raises the first failed key's error, after all."""
        removed = 0
        exchange = self._exchange
        times = exchange.times()

        async def remove(part: list[str]) -> None:
            nonlocal removed
            removed += sum((await exchange.remove_many(part, times)).values())

        doomed = checked_keys(keys)
        with self._writing(doomed):
            await self._by_parts(_parts(doomed, _AT_A_TIME), remove, times)
        return removed

    async def get_or_load(
        self,
        key: str,
        loader: Callable[[str], Awaitable[Value | None]],
        *,
        ttl: float = 0,
        stale: float = 0,
        stale_if_error: float = 0,
        absent_ttl: float = 0,
        tags: Sequence[str] = (),
        wait: float = 10.0,
    ) -> Value | None:
        """The value, which `loader` gives, and which is cached then, when there is none.

            user = await cache.get_or_load("user:1", load_user, ttl=60, stale=30)

        Of all callers in all processes one loads a key at a time; the others wait up to `wait` seconds, and
        then raise DeadlineExceeded. For `stale` seconds past its `ttl` the old value is given while one
        caller loads the new one, and for `stale_if_error` seconds when that fails. A value that takes long to
        load is loaded anew a little before it expires. None from the loader means that there is no such
        value, and is cached for `absent_ttl` seconds. 0 stands for what the key's namespace says.

        What is invalidated during the load is not cached. Raises what the loader raises, in this process; in
        others LoadFailed. While no node can be reached, the loader is called once a time in each process.
        """
        terms = loaded_on(ttl, stale, stale_if_error, absent_ttl, tuple(tags))
        found: Value | None
        found = await self.read_through.get_one(checked_key(key), lambda: loader(key), terms, wait)
        return found

    async def get_or_load_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, Value]]],
        *,
        ttl: float = 0,
        stale: float = 0,
        stale_if_error: float = 0,
        absent_ttl: float = 0,
        tags: Sequence[str] = (),
        wait: float = 10.0,
    ) -> dict[str, Value]:
        """As `get_or_load`, with one call of the loader for all the keys that are this caller's to load.

        Keys that the loader gives no value for have none; they are not in the result.
        """
        terms = loaded_on(ttl, stale, stale_if_error, absent_ttl, tuple(tags))
        found: dict[str, Any] = {}
        for part in _parts(checked_keys(keys), _AT_A_TIME):
            found |= await self.read_through.get(part, loader, terms, wait)
        return {key: value for key, value in found.items() if value is not None}

    def cached(
        self,
        key: str,
        *,
        ttl: float = 0,
        stale: float = 0,
        stale_if_error: float = 0,
        absent_ttl: float = 0,
        tags: Sequence[str] = (),
        wait: float = 10.0,
    ) -> Callable[[Callable[Arguments, Awaitable[Any]]], Cached[Arguments, Awaitable[Any], Awaitable[bool]]]:
        """Caches what an async function gives, under a key that is made from its arguments.

            @cache.cached("user:{user_id}", ttl=60, tags=("org:{org_id}",))
            async def user(org_id: int, user_id: int) -> bytes: ...

        The rest is as of `get_or_load`; `await user.invalidate(1, 2)` removes what is cached for those
        arguments. Names in braces are the function's parameters, put in as str() shows them.
        """

        terms = loaded_on(ttl, stale, stale_if_error, absent_ttl, ())

        async def read(key: str, tags: tuple[str, ...], call: Callable[[], Awaitable[Any]]) -> Any:
            tagged = replace(terms, tags=tags) if tags else terms
            return await self.read_through.get_one(checked_key(key), call, tagged, wait)

        def decorate(
            function: Callable[Arguments, Awaitable[Any]],
        ) -> Cached[Arguments, Awaitable[Any], Awaitable[bool]]:
            templates = KeyTemplates.of(function, key, tags)
            return Cached(function, templates, read, lambda key: self.delete(key))

        return decorate

    async def write_through(
        self,
        key: str,
        value: Value,
        writer: Callable[[str, Value], Awaitable[object]],
        *,
        ttl: float = 0,
        stale: float = 0,
        stale_if_error: float = 0,
        tags: Sequence[str] = (),
    ) -> None:
        """Has `writer` write the value to its origin, and caches it then.

        Whoever reads meanwhile by `get_or_load` waits for it. When another caller writes or invalidates the
        key at the same time, the key is removed instead, since nobody here knows who came last. Raises what
        the writer raises, and the cache's errors when the old value could not be removed; nothing is written
        then.
        """
        terms = loaded_on(ttl, stale, stale_if_error, 0, tuple(tags))
        await self.read_through.write(checked_key(key), value, writer, terms, self.delete)

    def write_behind(
        self,
        writer: Callable[[Mapping[str, Value]], Awaitable[object]],
        *,
        ttl: float = 0,
        max_pending: int = 10_000,
        max_batch: int = 100,
    ) -> WriteBehind:
        """Caches values at once and has `writer` write them to their origin a little later, many at a time.

        async with cache.write_behind(save_all) as behind:
            await behind.set("counter:1", b"17")
        """
        return WriteBehind(lambda key, value: self.set(key, value, ttl), writer, max_pending, max_batch)

    async def touch(self, key: str, ttl: float) -> bool:
        """Gives the entry `ttl` more seconds from now; whether there was one."""
        request = pb.TouchRequest(key=checked_key(key), ttl_seconds=checked_milliseconds("ttl", ttl) / 1_000)
        with self._writing((key,)):
            response = await self._call(
                lambda node, timeout: node.cache.Touch(request, timeout=timeout),
                repeatable=True,
                first=self._owner(key),
            )
        return response.outcome == pb.TOUCH_OUTCOME_TOUCHED

    async def incr(self, key: str, delta: int = 1, *, initial: int = 0, ttl: float = 0) -> int:
        """Adds `delta` to the counter and returns it. An absent one is made from `initial`, with `ttl`."""
        request = pb.IncrementRequest(
            key=checked_key(key),
            delta=checked_int64("delta", delta),
            initial=checked_int64("initial", initial),
            ttl_seconds=checked_milliseconds("ttl", ttl) / 1_000,
        )
        with self._writing((key,)):
            response = await self._call(
                lambda node, timeout: node.cache.Increment(request, timeout=timeout),
                repeatable=False,
                first=self._owner(key),
            )
        return response.value

    async def invalidate_tag(self, tag: str) -> Invalidated:
        """Removes all entries with the tag that were written before, on all nodes."""
        request = pb.InvalidateTagRequest(tag=checked_text("tag", tag))
        with self._sweeping():
            response = await self._call(
                lambda node, timeout: node.cache.InvalidateTag(request, timeout=timeout), repeatable=True
            )
        return Invalidated(response.removed, tuple(response.unreachable))

    async def invalidate_prefix(self, prefix: str) -> Invalidated:
        """Removes all entries whose key begins with the prefix that were written before, on all nodes."""
        request = pb.InvalidatePrefixRequest(prefix=checked_text("prefix", prefix))
        with self._sweeping():
            response = await self._call(
                lambda node, timeout: node.cache.InvalidatePrefix(request, timeout=timeout), repeatable=True
            )
        return Invalidated(response.removed, tuple(response.unreachable))

    def scan(self, prefix: str = "", *, values: bool = False) -> Scan[Value]:
        """The entries whose key begins with the prefix, in no particular order, with their values if wanted.

            async for entry in cache.scan("user:"):
                print(entry.key, entry.size)

        They come page by page, each within `timeout`. What is there all the time is listed once; of what
        nodes hold that give no answer some may be missing, and the scan's `unreachable` then names them.
        """
        return Scan(self.scan_page, prefix, values, self._values)

    async def scan_page(self, request: pb.ScanRequest) -> pb.ScanResponse:
        """A page as a node sends it; `scan` asks for one after the other."""
        return await self._call(
            lambda node, timeout: node.cache.Scan(request, timeout=timeout), repeatable=True
        )


def _parts(items: list[Item], size: int) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _lookup(key: str, response: pb.GetResponse, values: Values[Value]) -> Lookup[Value]:
    outcome = _OUTCOMES[response.outcome]
    return Lookup(
        outcome,
        values.decode(key, response.value) if outcome.has_value else None,
        response.version,
        response.ttl_seconds,
        response.age_seconds,
        response.served_by,
        response.hops,
        response.from_replica,
    )
