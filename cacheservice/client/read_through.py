"""Reading and writing through the cache: what is missing is loaded, by one caller, and cached for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cacheservice.client.arguments import checked_milliseconds, checked_text
from cacheservice.client.leased import Found
from cacheservice.client.loads import Acquired, Load, Loads, Terms
from cacheservice.client.values import Values
from cacheservice.errors import Unavailable, shown
from cacheservice.wire import was_cancelled_here

_log = logging.getLogger(__name__)

MAX_REFRESHES = 1_000
"""Loads under way while their callers go on with what there is; of more, the callers wait."""

TERMS_REMEMBERED = 1_000
"""Most callers use the same ones again and again."""

ManyLoader = Callable[[list[str]], Awaitable[Mapping[str, Any]]]


@lru_cache(TERMS_REMEMBERED)
def loaded_on(
    ttl: float, stale: float, stale_if_error: float, absent_ttl: float, tags: tuple[str, ...]
) -> Terms:
    """The terms of these durations in seconds, checked."""
    return Terms(
        checked_milliseconds("ttl", ttl),
        checked_milliseconds("stale", stale),
        checked_milliseconds("stale_if_error", stale_if_error),
        checked_milliseconds("absent_ttl", absent_ttl),
        tuple(checked_text("tag", tag) for tag in tags),
    )


@dataclass(slots=True)
class Begun:
    """What is known of some keys, and what is to be done for the others."""

    found: dict[str, Any]
    """The values, None where there is none; those included that are good enough until they are loaded
    anew."""
    due: list[Load]
    refreshes: list[Load]
    """Those to load anew, which need not be waited for."""
    awaited: list[str]
    """Others are loading these."""
    errors: list[BaseException]

    def result(self) -> dict[str, Any]:
        """The values. Raises the first error."""
        if self.errors:
            raise self.errors[0]
        return self.found


class ReadThrough:
    """The steps of reading through; `get` takes them all, with an async loader.

    Loads go on when their callers no longer wait.
    """

    def __init__(self, loads: Loads, values: Values[Any]) -> None:
        self._loads = loads
        self._values = values
        self._refreshing: set[asyncio.Task[Any]] = set()
        self._loading: set[asyncio.Task[Any]] = set()

    async def get(self, keys: list[str], loader: ManyLoader, terms: Terms, wait: float) -> dict[str, Any]:
        """The values of the distinct keys; None where there is none. Raises the first error.

        `loader` is called at most once with all that are due, and again only for keys that others, for whom
        this waited up to `wait` seconds, did not load.
        """
        return await self._get(await self.begin(keys), loader, terms, wait)

    async def get_one(self, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms, wait: float) -> Any:
        """As `get`, of one key."""
        acquired = await self._loads.acquire_one(key)
        if isinstance(acquired, Found):
            return None if acquired.value is None else self._values.decode(key, acquired.value)

        async def load(_: list[str]) -> dict[str, Any]:
            return {key: await loader()}

        return (await self._get(self._begun(acquired), load, terms, wait))[key]

    async def _get(self, begun: Begun, loader: ManyLoader, terms: Terms, wait: float) -> dict[str, Any]:
        if begun.refreshes and len(self._refreshing) < MAX_REFRESHES:
            self._keep(self._refreshing, self._refresh(begun.refreshes, loader, terms))
        else:
            begun.due += begun.refreshes
        loading = self._start(begun.due, loader, terms)
        if loading is not None and begun.awaited:
            _, again = await asyncio.gather(self._add(begun, loading), self.wait(begun, wait))
        else:
            await self._add(begun, loading)
            again = await self.wait(begun, wait) if begun.awaited else []
        await self._add(begun, self._start(again, loader, terms))
        return begun.result()

    async def write(
        self,
        key: str,
        value: Any,
        writer: Callable[[str, Any], Awaitable[object]],
        terms: Terms,
        remove: Callable[[str], Awaitable[object]],
    ) -> None:
        """Has the value written and then cached, under a lease that is taken before: who writes or
        invalidates at the same time makes it void."""
        load = await self.begin_write(key, remove)
        try:
            await writer(key, value)
        except BaseException:
            if load is not None:
                await self.give_up([load], None)
            raise
        await self.end_write(load, key, value, terms, remove)

    async def begin(self, keys: list[str]) -> Begun:
        return self._begun(await self._loads.acquire(keys))

    def _begun(self, acquired: Acquired) -> Begun:
        begun = Begun({}, [], [], acquired.awaited, [*acquired.failed])
        for key, value in acquired.found.items():
            self._put(begun, key, value)
        for load in acquired.loads:
            if load.current is None:
                begun.due.append(load)
            else:
                begun.refreshes.append(load)
                self._put(begun, load.key, load.current.value)
        return begun

    async def wait(self, begun: Begun, seconds: float) -> list[Load]:
        """Waits for what others load; what is left to load, because they did not."""
        keys = begun.awaited
        waits = (self._loads.wait(key, seconds) for key in keys)
        again: list[Load] = []
        for key, result in zip(keys, await asyncio.gather(*waits, return_exceptions=True), strict=True):
            if isinstance(result, BaseException):
                begun.errors.append(result)
            elif isinstance(result, Load):
                again.append(result)
            else:
                self._put(begun, key, result)
        return again

    async def settle(self, loads: Sequence[Load], values: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
        """Fills in what a loader gave for these; the values, None where it gave none.

        Raises what the values' codec raises, and then has failed the loads.
        """
        found = {load.key: values.get(load.key) for load in loads}
        try:
            encoded = [
                None if value is None else self._values.encode(key, value) for key, value in found.items()
            ]
        except Exception as error:
            await self.give_up(loads, error)
            raise
        await self._loads.finish(loads, encoded, terms)
        return found

    async def give_up(self, loads: Sequence[Load], error: BaseException | None) -> dict[str, Any] | None:
        """Has the loads failed, or nobody wants them any longer (None); the values to go on with, if there is
        one for each."""
        fallbacks = await asyncio.gather(*(self._loads.fail(load, error) for load in loads))
        kept = [fallback for fallback in fallbacks if fallback is not None]
        if error is None or len(kept) < len(loads):
            return None
        _log.warning("serving stale values, for %s could not be loaded: %r", _named(loads), error)
        return {
            load.key: None if fallback.value is None else self._values.decode(load.key, fallback.value)
            for load, fallback in zip(loads, kept, strict=True)
        }

    async def begin_write(self, key: str, remove: Callable[[str], Awaitable[object]]) -> Load | None:
        """Removes the key and takes its lease, unless somebody else has it."""
        await remove(key)
        return next(iter((await self._loads.acquire([key])).loads), None)

    async def end_write(
        self,
        load: Load | None,
        key: str,
        value: Any,
        terms: Terms,
        remove: Callable[[str], Awaitable[object]],
    ) -> None:
        """Fills the value in; removes what is cached when others wrote or invalidated the key meanwhile."""
        if load is not None:
            await self.settle([load], {key: value}, terms)
        if load is None or not load.token or load.done.result().is_outdated:
            await remove(key)

    async def close(self) -> None:
        """Gives up the loads under way."""
        tasks = [*self._refreshing, *self._loading]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._loads.close()

    def _put(self, begun: Begun, key: str, value: bytes | None) -> None:
        try:
            begun.found[key] = None if value is None else self._values.decode(key, value)
        except Exception as error:
            begun.errors.append(error)

    def _start(
        self, loads: list[Load], loader: ManyLoader, terms: Terms
    ) -> asyncio.Task[dict[str, Any]] | None:
        return self._keep(self._loading, self._loaded(loads, loader, terms)) if loads else None

    async def _add(self, begun: Begun, loading: asyncio.Task[dict[str, Any]] | None) -> None:
        if loading is None:
            return
        try:
            # Others may wait for what the caller no longer waits for.
            begun.found |= await asyncio.shield(loading)
        except asyncio.CancelledError:
            if was_cancelled_here():
                raise
            begun.errors.append(Unavailable("the client was closed"))
        except Exception as error:
            begun.errors.append(error)

    async def _loaded(self, loads: Sequence[Load], loader: ManyLoader, terms: Terms) -> dict[str, Any]:
        try:
            values = await loader([load.key for load in loads])
        except asyncio.CancelledError:
            await self.give_up(loads, None)
            raise
        except Exception as error:
            fallback = await self.give_up(loads, error)
            if fallback is None:
                raise
            return fallback
        return await self.settle(loads, values, terms)

    async def _refresh(self, loads: Sequence[Load], loader: ManyLoader, terms: Terms) -> None:
        try:
            await self._loaded(loads, loader, terms)
        except Exception as error:
            _log.warning("%s could not be loaded anew: %r", _named(loads), error)

    @staticmethod
    def _keep(tasks: set[asyncio.Task[Any]], work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task


def _named(loads: Sequence[Load]) -> str:
    others = f" and {len(loads) - 1} other keys" if len(loads) > 1 else ""
    return f"{shown(loads[0].key)}{others}"
