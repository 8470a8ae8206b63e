"""The client for threads: the same calls without await."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar, overload
from weakref import finalize

from cacheservice.certificates import Tls
from cacheservice.client import forking, sync_read_through
from cacheservice.client.background import Background, Call
from cacheservice.client.cached import Arguments, Cached, KeyTemplates
from cacheservice.client.client import Client, ReadPreference, Routing
from cacheservice.client.codecs import Codec, Value
from cacheservice.client.keys import checked_key, checked_keys
from cacheservice.client.loads import Terms
from cacheservice.client.near_cache import NearCache
from cacheservice.client.observed import observe_sync
from cacheservice.client.read_through import ReadThrough, loaded_on
from cacheservice.client.results import Invalidated, Lookup, SetResult
from cacheservice.client.scan import SyncScan
from cacheservice.client.sync_write_behind import SyncWriteBehind
from cacheservice.client.telemetry import sdk
from cacheservice.client.values import Values

Default = TypeVar("Default")
Result = TypeVar("Result")


class SyncClient(Generic[Value]):
    """A cache cluster for threads: Client without await.

        with SyncClient("localhost:7700") as cache:
            cache.set("user:1", b"Ada", ttl=60)

    One instance serves all threads of a process, and is meant to: their calls share batches. It connects at
    its first call, in a thread of its own. After os.fork both processes may go on using it; connections
    are closed before, which waits for calls under way, and each process opens its own again.
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
        self._new_client = partial(
            Client,
            targets,
            routing=routing,
            timeout=timeout,
            zone=zone,
            read_preference=read_preference,
            codec=codec,
            compress_above=compress_above,
            near_cache=near_cache,
            hedged_reads=hedged_reads,
            telemetry=telemetry,
            tls=tls,
        )
        self._values = Values(codec, compress_above)
        self.target = self._new_client().nodes.targets[0]
        self._background: Background | None = None
        if telemetry:
            sdk.observe(self, observe_sync)

    def __enter__(self) -> SyncClient[Value]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections, when the calls under way have ended. A later call opens them again."""
        with forking.gate:
            background, self._background = self._background, None
            if background is not None:
                forking.close(background)

    @overload
    def get(self, key: str, *, read_preference: ReadPreference | None = None) -> Value | None: ...
    @overload
    def get(
        self, key: str, default: Default, *, read_preference: ReadPreference | None = None
    ) -> Value | Default: ...
    def get(
        self, key: str, default: Default | None = None, *, read_preference: ReadPreference | None = None
    ) -> Value | Default | None:
        return self._run(lambda cache: cache.get(key, default, read_preference=read_preference))

    def lookup(self, key: str, *, read_preference: ReadPreference | None = None) -> Lookup[Value]:
        return self._run(lambda cache: cache.lookup(key, read_preference=read_preference))

    def get_many(
        self, keys: Iterable[str], *, read_preference: ReadPreference | None = None
    ) -> dict[str, Value]:
        wanted = list(keys)
        return self._run(lambda cache: cache.get_many(wanted, read_preference=read_preference))

    def set(
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
        return self._run(
            lambda cache: cache.set(
                key,
                value,
                ttl,
                stale=stale,
                if_absent=if_absent,
                if_present=if_present,
                if_version=if_version,
                tags=tags,
                min_replicas=min_replicas,
            )
        )

    def set_many(self, values: Mapping[str, Value], ttl: float = 0) -> None:
        contents = dict(values)
        return self._run(lambda cache: cache.set_many(contents, ttl))

    def delete(self, key: str) -> bool:
        return self._run(lambda cache: cache.delete(key))

    def delete_many(self, keys: Iterable[str]) -> int:
        doomed = list(keys)
        return self._run(lambda cache: cache.delete_many(doomed))

    def get_or_load(
        self,
        key: str,
        loader: Callable[[str], Value | None],
        *,
        ttl: float = 0,
        stale: float = 0,
        stale_if_error: float = 0,
        absent_ttl: float = 0,
        tags: Sequence[str] = (),
        wait: float = 10.0,
    ) -> Value | None:
        """The loader runs in the calling thread, also to load anew what is still good enough for others."""
        terms = loaded_on(ttl, stale, stale_if_error, absent_ttl, tuple(tags))
        found: Value | None = self._loaded(checked_key(key), lambda: loader(key), terms, wait)
        return found

    def get_or_load_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Mapping[str, Value]],
        *,
        ttl: float = 0,
        stale: float = 0,
        stale_if_error: float = 0,
        absent_ttl: float = 0,
        tags: Sequence[str] = (),
        wait: float = 10.0,
    ) -> dict[str, Value]:
        """The loader runs in the calling thread, also to load anew what is still good enough for others."""
        terms = loaded_on(ttl, stale, stale_if_error, absent_ttl, tuple(tags))
        found = sync_read_through.get(self._step, checked_keys(keys), loader, terms, wait)
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
    ) -> Callable[[Callable[Arguments, Any]], Cached[Arguments, Any, bool]]:
        terms = loaded_on(ttl, stale, stale_if_error, absent_ttl, ())

        def read(key: str, tags: tuple[str, ...], call: Callable[[], Any]) -> Any:
            return self._loaded(checked_key(key), call, replace(terms, tags=tags), wait)

        def decorate(function: Callable[Arguments, Any]) -> Cached[Arguments, Any, bool]:
            return Cached(function, KeyTemplates.of(function, key, tags), read, self.delete)

        return decorate

    def write_through(
        self,
        key: str,
        value: Value,
        writer: Callable[[str, Value], object],
        *,
        ttl: float = 0,
        stale: float = 0,
        stale_if_error: float = 0,
        tags: Sequence[str] = (),
    ) -> None:
        """The writer runs in the calling thread."""
        terms = loaded_on(ttl, stale, stale_if_error, 0, tuple(tags))
        key = checked_key(key)
        load = self._run(lambda cache: cache.read_through.begin_write(key, cache.delete))
        try:
            writer(key, value)
        except BaseException:
            if load is not None:
                self._step(lambda steps: steps.give_up([load], None))
            raise
        self._run(lambda cache: cache.read_through.end_write(load, key, value, terms, cache.delete))

    def write_behind(
        self,
        writer: Callable[[Mapping[str, Value]], object],
        *,
        ttl: float = 0,
        max_pending: int = 10_000,
        max_batch: int = 100,
    ) -> SyncWriteBehind:
        return SyncWriteBehind(lambda key, value: self.set(key, value, ttl), writer, max_pending, max_batch)

    def touch(self, key: str, ttl: float) -> bool:
        return self._run(lambda cache: cache.touch(key, ttl))

    def incr(self, key: str, delta: int = 1, *, initial: int = 0, ttl: float = 0) -> int:
        return self._run(lambda cache: cache.incr(key, delta, initial=initial, ttl=ttl))

    def invalidate_tag(self, tag: str) -> Invalidated:
        return self._run(lambda cache: cache.invalidate_tag(tag))

    def invalidate_prefix(self, prefix: str) -> Invalidated:
        return self._run(lambda cache: cache.invalidate_prefix(prefix))

    def scan(self, prefix: str = "", *, values: bool = False) -> SyncScan[Value]:
        return SyncScan(
            lambda request: self._run(lambda cache: cache.scan_page(request)), prefix, values, self._values
        )

    def _loaded(self, key: str, call: Callable[[], Any], terms: Terms, wait: float) -> Any:
        return sync_read_through.get(self._step, [key], lambda _: {key: call()}, terms, wait)[key]

    def _step(self, step: Callable[[ReadThrough], Coroutine[Any, Any, Result]]) -> Result:
        return self._run(lambda cache: step(cache.read_through))

    def _run(self, start: Callable[[Client[Value]], Coroutine[Any, Any, Result]]) -> Result:
        call = Call(start)
        while True:
            background = self._background
            if background is None or background.is_stopped:
                background = self._connect()
            if background.begin(call):
                return call.result()

    def _connect(self) -> Background:
        with forking.gate:
            background = self._background
            if background is None or background.is_stopped:
                background = self._background = Background(self._new_client())
                forking.opened(background)
                finalize(self, background.stop_soon).atexit = False
            return background
