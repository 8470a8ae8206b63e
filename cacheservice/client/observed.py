"""Puts the telemetry around the methods of a client, of that one object: others stay as they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from cacheservice.client.leased import Found
from cacheservice.client.loads import Acquired, Loads, Terms
from cacheservice.client.near_reads import NearReads
from cacheservice.client.operation import ClientTelemetry, Loading
from cacheservice.client.results import Lookup, Outcome
from cacheservice.client.telemetry import Telemetry

if TYPE_CHECKING:
    from cacheservice.client.client import Client
    from cacheservice.client.sync_client import SyncClient

Method = Callable[..., Awaitable[Any]]

_NOTHING = object()


def observe(client: Client[Any], telemetry: Telemetry) -> None:
    """Has the client's calls observed from now on."""
    ours = ClientTelemetry(telemetry, client.nodes.targets[0])
    vars(client).update(
        get=_get(ours, client.get, client._near),
        lookup=_lookup(ours, client.lookup),
        get_many=_get_many(ours, client.get_many),
        set=_call(ours, "set", client.set),
        set_many=_set_many(ours, client.set_many),
        delete=_call(ours, "delete", client.delete),
        delete_many=_delete_many(ours, client.delete_many),
        touch=_call(ours, "touch", client.touch),
        incr=_call(ours, "incr", client.incr),
        get_or_load_many=_get_or_load_many(ours, client.get_or_load_many),
        write_through=_write_through(ours, client.write_through),
        invalidate_tag=_call(ours, "invalidate_tag", client.invalidate_tag),
        invalidate_prefix=_call(ours, "invalidate_prefix", client.invalidate_prefix),
        scan_page=_call(ours, "scan", client.scan_page),
    )
    vars(client.read_through).update(get_one=_get_or_load(ours, client.read_through.get_one))
    _observe_loads(client.loads)
    if client._near is not None:
        _observe_near(client._near, ours)


def observe_sync(client: SyncClient[Any], telemetry: Telemetry) -> None:
    """The same for the calls that run code of the application in the calling thread; the others are those of
    the Client within."""
    ours = ClientTelemetry(telemetry, client.target)
    vars(client).update(
        _loaded=_sync_get_or_load(ours, client._loaded),
        get_or_load_many=_sync_get_or_load_many(ours, client.get_or_load_many),
        write_through=_sync_write_through(ours, client.write_through),
    )


def _call(ours: ClientTelemetry, name: str, method: Method) -> Method:
    @wraps(method)
    async def call(*arguments: Any, **options: Any) -> Any:
        with ours.operation(name):
            return await method(*arguments, **options)

    return call


def _set_many(ours: ClientTelemetry, method: Method) -> Method:
    @wraps(method)
    async def set_many(values: Mapping[str, Any], ttl: float = 0) -> None:
        with ours.operation("set_many", len(values)):
            await method(values, ttl)

    return set_many


def _delete_many(ours: ClientTelemetry, method: Method) -> Method:
    @wraps(method)
    async def delete_many(keys: Iterable[str]) -> Any:
        doomed = list(dict.fromkeys(keys))
        with ours.operation("delete_many", len(doomed)):
            return await method(doomed)

    return delete_many


def _get(ours: ClientTelemetry, method: Method, near: NearReads | None) -> Method:
    """What is in the near cache is counted only: a span takes longer than such a read."""

    @wraps(method)
    async def get(key: str, default: Any = None, **options: Any) -> Any:
        if near is not None and near.copies.get(key) is not None:
            ours.count(Outcome.HIT)
            return await method(key, default, **options)
        with ours.operation("get") as operation:
            value = await method(key, _NOTHING, **options)
            operation.found(Outcome.MISS if value is _NOTHING else Outcome.HIT)
        return default if value is _NOTHING else value

    return get


def _lookup(ours: ClientTelemetry, method: Method) -> Method:
    @wraps(method)
    async def lookup(*arguments: Any, **options: Any) -> Any:
        with ours.operation("lookup") as operation:
            found: Lookup[Any] = await method(*arguments, **options)
            operation.found(found.outcome)
        return found

    return lookup


def _get_many(ours: ClientTelemetry, method: Method) -> Method:
    @wraps(method)
    async def get_many(keys: Iterable[str], **options: Any) -> Any:
        wanted = list(dict.fromkeys(keys))
        with ours.operation("get_many", len(wanted)) as operation:
            found = await method(wanted, **options)
            operation.found_many(len(found))
        return found

    return get_many


def _get_or_load(ours: ClientTelemetry, method: Method) -> Method:
    @wraps(method)
    async def get_one(key: str, loader: Method, terms: Terms, wait: float) -> Any:
        with ours.loading("get_or_load"):
            return await method(key, _loader(ours, loader), terms, wait)

    return get_one


def _get_or_load_many(ours: ClientTelemetry, method: Method) -> Method:
    @wraps(method)
    async def get_or_load_many(keys: Iterable[str], loader: Method, **terms: Any) -> Any:
        wanted = list(dict.fromkeys(keys))
        with ours.loading("get_or_load_many", len(wanted)):
            return await method(wanted, _loader(ours, loader), **terms)

    return get_or_load_many


def _write_through(ours: ClientTelemetry, method: Method) -> Method:
    @wraps(method)
    async def write_through(*arguments: Any, **options: Any) -> None:
        with ours.calling_out("write_through"):
            await method(*arguments, **options)

    return write_through


def _loader(ours: ClientTelemetry, loader: Method) -> Method:
    async def load(*keys: list[str]) -> Any:
        with ours.loader_call() as call:
            value = await loader(*keys)
            call.gave(value)
        return value

    return load


def _observe_loads(loads: Loads) -> None:
    """Tells the call that reads what came of it."""
    acquire, acquire_one = loads.acquire, loads.acquire_one

    async def observed_acquire(keys: list[str]) -> Acquired:
        acquired = await acquire(keys)
        loading = Loading.current()
        if loading is not None:
            loading.acquired(acquired)
        return acquired

    async def observed_acquire_one(key: str) -> Found | Acquired:
        acquired = await acquire_one(key)
        loading = Loading.current()
        if loading is not None and isinstance(acquired, Found):
            loading.acquired_one(acquired)
        elif loading is not None and isinstance(acquired, Acquired):
            loading.acquired(acquired)
        return acquired

    vars(loads).update(acquire=observed_acquire, acquire_one=observed_acquire_one)


def _observe_near(near: NearReads, ours: ClientTelemetry) -> None:
    get = near.get

    def observed_get(key: str) -> bytes | None:
        value: bytes | None = get(key)
        if value is not None:
            ours.near_hits.add(1)
        return value

    near.get = observed_get


def _sync_get_or_load(ours: ClientTelemetry, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def loaded(key: str, loader: Callable[[], Any], terms: Terms, wait: float) -> Any:
        with ours.loading("get_or_load"):
            return method(key, _sync_loader(ours, loader), terms, wait)

    return loaded


def _sync_get_or_load_many(ours: ClientTelemetry, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def get_or_load_many(keys: Iterable[str], loader: Callable[..., Any], **terms: Any) -> Any:
        wanted = list(dict.fromkeys(keys))
        with ours.loading("get_or_load_many", len(wanted)):
            return method(wanted, _sync_loader(ours, loader), **terms)

    return get_or_load_many


def _sync_write_through(ours: ClientTelemetry, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def write_through(*arguments: Any, **options: Any) -> None:
        with ours.calling_out("write_through"):
            method(*arguments, **options)

    return write_through


def _sync_loader(ours: ClientTelemetry, loader: Callable[..., Any]) -> Callable[..., Any]:
    def load(*keys: list[str]) -> Any:
        with ours.loader_call() as call:
            value = loader(*keys)
            call.gave(value)
        return value

    return load
