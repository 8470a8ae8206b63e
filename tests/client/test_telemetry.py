"""What an application's OpenTelemetry SDK gets to see of its clients, against real nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util._once import Once

from cacheservice.client import Client, JsonCodec, NearCache, SyncClient
from cacheservice.client.telemetry import DURATION_BOUNDARIES, Tally, error_type, sdk, server
from cacheservice.config import Settings
from cacheservice.errors import InvalidArgument, NotACounter, Unavailable
from cacheservice.server.app import NodeServer

DEADLINE_SECONDS = 20


class Application:
    """An application's SDK, and what it has recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()

    def set_up(self) -> None:
        self.set_up_traces()
        self.set_up_metrics()

    def set_up_traces(self) -> None:
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(tracers)

    def set_up_metrics(self) -> None:
        metrics.set_meter_provider(MeterProvider([self._reader], shutdown_on_exit=False))

    def spans(self) -> list[ReadableSpan]:
        """Those of the client that have ended, in that order."""
        return [span for span in self._exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]

    def all_spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]

    def points(self, name: str) -> list[Any]:
        """The metric's data points as they are now."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def counts(self, name: str, *attributes: str) -> dict[tuple[Any, ...], float]:
        """The metric's values, or how many were recorded, by these attributes."""
        counts: dict[tuple[Any, ...], float] = {}
        for point in self.points(name):
            key = tuple(point.attributes.get(attribute) for attribute in attributes)
            value = point.count if isinstance(point, HistogramDataPoint) else point.value
            counts[key] = counts.get(key, 0) + value
        return {key: count for key, count in counts.items() if count}

    def reads(self) -> dict[str, float]:
        counts = self.counts("cacheservice.client.reads", "cacheservice.outcome")
        return {outcome: count for (outcome,), count in counts.items()}

    def loads(self) -> dict[str, float]:
        counts = self.counts("cacheservice.client.loader.duration", "cacheservice.load.result")
        return {result: count for (result,), count in counts.items()}


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Application:
    """A process in which no SDK has been set up yet; an SDK is for good otherwise."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(metrics_internal, "_PROXY_METER_PROVIDER", metrics_internal._ProxyMeterProvider())
    monkeypatch.setattr(sdk, "telemetry", None)
    return Application()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def address(stack: AsyncExitStack) -> str:
    node = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=0))
    address = await node.start()
    await node.join()
    stack.push_async_callback(node.stop)
    return address


@pytest.fixture
async def cache(application: Application, address: str, stack: AsyncExitStack) -> Client:
    application.set_up()
    return await stack.enter_async_context(Client(address, timeout=5))


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


def parent(span: ReadableSpan) -> Any:
    return None if span.parent is None else span.parent.span_id


def identity(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context.span_id


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_call_is_a_span_with_the_attributes_of_database_clients(
    application: Application, cache: Client, address: str
) -> None:
    await cache.set("user:grace@example.org", b"v")
    assert await cache.get("user:grace@example.org") == b"v"
    write, read = application.spans()
    host, port = address.split(":")
    common = {"db.system.name": "cacheservice", "server.address": host, "server.port": int(port)}
    assert (write.name, write.kind, write.status.status_code) == ("set", SpanKind.CLIENT, StatusCode.UNSET)
    assert attributes(write) == {**common, "db.operation.name": "set"}
    assert attributes(read) == {**common, "db.operation.name": "get", "cacheservice.outcome": "hit"}
    assert "grace" not in write.to_json() + read.to_json()


async def test_every_call_is_a_span(application: Application, cache: Client) -> None:
    async def load(_: str) -> bytes:
        return b"v"

    async def load_many(keys: list[str]) -> dict[str, bytes]:
        return dict.fromkeys(keys, b"v")

    async def write(_key: str, _value: bytes) -> None: ...

    await cache.get("a")
    await cache.lookup("a")
    await cache.get_many(key for key in ("a", "b", "a"))
    await cache.set("a", b"1", ttl=60)
    await cache.set_many(values={"a": b"1"}, ttl=60)
    await cache.delete("a")
    await cache.delete_many(keys=iter(["a"]))
    await cache.get_or_load("a", loader=load, ttl=60)
    await cache.get_or_load_many(["a", "b"], loader=load_many)
    await cache.touch("a", ttl=60)
    await cache.incr("c", delta=2)
    await cache.invalidate_tag(tag="t")
    await cache.invalidate_prefix("b")
    assert {entry.key async for entry in cache.scan()} == {"a", "c"}
    assert application.names() == [
        *("get", "lookup", "get_many", "set", "set_many", "delete", "delete_many"),
        *("get_or_load", "get_or_load_many", "touch", "incr", "invalidate_tag", "invalidate_prefix", "scan"),
    ]
    await cache.write_through("a", b"1", write)
    assert application.names()[-2:] == ["delete", "write_through"]
    sizes = {span.name: attributes(span).get("cacheservice.keys") for span in application.spans()}
    assert {name: size for name, size in sizes.items() if size is not None} == {
        "get_many": 2,
        "set_many": 1,
        "delete_many": 1,
        "get_or_load_many": 2,
    }
    durations = application.points("db.client.operation.duration")
    assert {point.attributes["db.operation.name"] for point in durations} == {*application.names()}
    assert all(point.explicit_bounds == DURATION_BOUNDARIES for point in durations)


async def test_the_callers_span_is_the_parent(application: Application, cache: Client) -> None:
    with trace.get_tracer("application").start_as_current_span("request"):
        await asyncio.gather(cache.get("a"), cache.get_many(["b"]))
    await cache.get("c")
    request = application.all_spans()["request"]
    many, one, alone = sorted(application.spans(), key=lambda span: (span.parent is None, -len(span.name)))
    assert (many.name, parent(many)) == ("get_many", identity(request))
    assert (one.name, parent(one)) == ("get", identity(request))
    assert alone.parent is None


async def test_reads_are_counted_by_what_they_find(application: Application, cache: Client) -> None:
    await cache.set("a", b"")
    assert await cache.get("a", b"") == b""
    assert await cache.get("b", default=b"") == b""
    assert await cache.get_many(["a", "a", "b", "c"]) == {"a": b""}
    await cache.lookup("a")
    assert [attributes(span).get("cacheservice.outcome") for span in application.spans()] == [
        *(None, "hit", "miss", None, "hit")
    ]
    assert attributes(application.spans()[3])["cacheservice.hits"] == 1
    assert application.reads() == {"hit": 3, "miss": 3}
    await cache.set("a", b"old", ttl=0.001, stale=60)
    while not (await cache.lookup("a")).stale:
        """Not expired yet."""
    assert attributes(application.spans()[-1])["cacheservice.outcome"] == "stale"
    assert application.reads()["stale"] == 1


async def test_a_stored_none_is_a_hit(application: Application, address: str, stack: AsyncExitStack) -> None:
    application.set_up()
    cache = await stack.enter_async_context(Client(address, timeout=5, codec=JsonCodec()))
    await cache.set("a", None)
    assert await cache.get("a") is None
    assert application.reads() == {"hit": 1}


async def test_an_error_is_named_and_its_message_kept_out(application: Application, cache: Client) -> None:
    await cache.set("secret", b"no number")
    with pytest.raises(NotACounter):
        await cache.incr("secret")
    with pytest.raises(TypeError):
        await cache.set("secret", 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        await cache.get_many(["secret", ""])
    failed = application.spans()[1:]
    assert [attributes(span)["error.type"] for span in failed] == [
        *("NOT_A_COUNTER", "TypeError", "INVALID_ARGUMENT")
    ]
    for span in failed:
        assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
    durations = application.counts("db.client.operation.duration", "db.operation.name", "error.type")
    assert durations == {
        ("set", None): 1,
        ("incr", "NOT_A_COUNTER"): 1,
        ("set", "TypeError"): 1,
        ("get_many", "INVALID_ARGUMENT"): 1,
    }


async def test_a_call_that_is_cancelled_ends_its_span(application: Application, cache: Client) -> None:
    is_loading = asyncio.Event()
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def load(_: str) -> bytes:
        is_loading.set()
        return await never

    call = asyncio.create_task(cache.get_or_load("a", load))
    await is_loading.wait()
    assert application.counts("cacheservice.client.operations.active") == {(): 1}
    call.cancel()
    await asyncio.wait((call,))
    [span] = application.spans()
    assert attributes(span)["error.type"] == "asyncio.exceptions.CancelledError"
    assert application.counts("cacheservice.client.operations.active") == {}
    await cache.close()
    assert application.loads() == {"cancelled": 1}


async def test_what_a_loader_does_is_part_of_the_call(application: Application, cache: Client) -> None:
    async def load(key: str) -> bytes | None:
        with trace.get_tracer("application").start_as_current_span(f"load {key}"):
            return b"v" if key == "a" else None

    async def fail(_: str) -> bytes:
        raise ZeroDivisionError

    assert await cache.get_or_load("a", load) == b"v"
    assert await cache.get_or_load("a", load) == b"v"
    assert await cache.get_or_load("b", load, absent_ttl=60) is None
    assert await cache.get_or_load("b", load) is None
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_load("c", fail)
    spans = application.spans()
    outcomes = [attributes(span)["cacheservice.outcome"] for span in spans]
    assert outcomes == ["load", "hit", "load", "absent", "load"]
    assert parent(application.all_spans()["load a"]) == identity(spans[0])
    assert parent(application.all_spans()["load b"]) == identity(spans[2])
    assert attributes(spans[4])["error.type"] == "ZeroDivisionError"
    assert application.reads() == {"hit": 1, "miss": 3, "absent": 1}
    assert application.loads() == {"loaded": 1, "absent": 1, "failed": 1}


async def test_who_waits_for_others_and_who_loads_anew(application: Application, cache: Client) -> None:
    may_load = asyncio.Event()

    async def load(_: str) -> bytes:
        await may_load.wait()
        return b"v"

    first = asyncio.create_task(cache.get_or_load("a", load, ttl=0.001, stale=60))
    await until(lambda: application.reads().get("miss") == 1)
    second = asyncio.create_task(cache.get_or_load("a", load))
    await until(lambda: application.reads().get("miss") == 2)
    may_load.set()
    assert [await first, await second] == [b"v", b"v"]
    await until(lambda: len(application.spans()) == 2)
    assert {attributes(span)["cacheservice.outcome"] for span in application.spans()} == {"load", "wait"}
    while not (await cache.lookup("a")).stale:
        """Not expired yet."""
    assert await cache.get_or_load("a", load) == b"v"
    assert attributes(application.spans()[-1])["cacheservice.outcome"] == "refresh"
    await until(lambda: application.loads() == {"loaded": 2})


async def test_many_loads_are_counted(application: Application, cache: Client) -> None:
    async def load(keys: list[str]) -> dict[str, bytes]:
        return dict.fromkeys(keys, b"v")

    await cache.set("a", b"v")
    await cache.get_or_load_many(["a", "b", "c"], load)
    counts = attributes(application.spans()[-1])
    assert (counts["cacheservice.hits"], counts["cacheservice.loads"]) == (1, 2)
    assert (counts["cacheservice.keys"], counts["cacheservice.waits"]) == (3, 0)
    assert application.reads() == {"hit": 1, "miss": 2}
    assert application.loads() == {"loaded": 1}


async def test_what_is_cached_by_a_decorator_is_seen_too(application: Application, cache: Client) -> None:
    @cache.cached("user:{user_id}")
    async def user(user_id: int) -> bytes:
        return f"Ada {user_id}".encode()

    await user(1)
    await user(1)
    await user.invalidate(1)
    assert application.names() == ["get_or_load", "get_or_load", "delete"]
    assert application.reads() == {"hit": 1, "miss": 1}


async def test_a_write_through_is_no_read(application: Application, cache: Client) -> None:
    async def write(_key: str, _value: bytes) -> None:
        with trace.get_tracer("application").start_as_current_span("insert"):
            """The origin's own."""

    await cache.write_through("a", b"v", write)
    spans = application.all_spans()
    assert parent(spans["insert"]) == parent(spans["delete"]) == identity(spans["write_through"])
    assert (application.reads(), application.loads()) == ({}, {})


async def test_the_near_cache_is_counted_without_spans(
    application: Application, address: str, stack: AsyncExitStack
) -> None:
    application.set_up()
    cache = await stack.enter_async_context(Client(address, timeout=5, near_cache=NearCache()))
    await cache.set("a", b"v")
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not application.counts("cacheservice.client.near_cache.hits"):
            assert await cache.get("a") == b"v"
    before = application.names()
    hits = application.reads()["hit"]
    assert await cache.get("a") == b"v"
    assert application.names() == before
    assert application.reads()["hit"] == hits + 1
    assert application.counts("cacheservice.client.near_cache.hits") == {(): 2}
    assert await cache.get_many(["a"]) == {"a": b"v"}
    assert application.counts("cacheservice.client.near_cache.hits") == {(): 3}


async def test_nodes_that_give_no_answer_are_counted(
    application: Application, address: str, stack: AsyncExitStack
) -> None:
    application.set_up()
    cache = await stack.enter_async_context(Client(["127.0.0.1:1", address], timeout=5, routing="proxy"))
    for number in range(4):
        await cache.touch(f"k{number}", 60)
        await cache.set(f"k{number}", b"v")
    counts = application.counts("cacheservice.client.unanswered", "server.port", "error.type")
    assert {port for port, _ in counts} == {1}
    with pytest.raises(Unavailable):
        await Client("127.0.0.1:1", timeout=0.2).touch("a", 60)
    assert attributes(application.spans()[-1])["server.port"] == 1


@pytest.mark.parametrize("signal", ["traces", "metrics"])
async def test_an_sdk_that_is_set_up_late_is_noticed(
    signal: str, application: Application, address: str, stack: AsyncExitStack
) -> None:
    cache = await stack.enter_async_context(Client(address, timeout=5))
    plain = await stack.enter_async_context(Client(address, timeout=5, telemetry=False))
    unary = await stack.enter_async_context(Client(address, timeout=5))
    await cache.get("a")
    assert "get" not in vars(cache)
    if signal == "traces":
        application.set_up_traces()
    else:
        application.set_up_metrics()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while "get" not in vars(cache):
            await cache.get("a")
    await unary.touch("a", 60)
    await unary.touch("a", 60)
    await plain.get("a")
    await cache.get("a")
    application.set_up_metrics() if signal == "traces" else application.set_up_traces()
    await cache.get("a")
    assert application.names()[-1:] == ["get"]
    assert ("get",) in application.counts("db.client.operation.duration", "db.operation.name")
    assert "get" not in vars(plain)


@pytest.mark.usefixtures("application")
async def test_without_an_sdk_a_client_is_as_it_was(address: str, stack: AsyncExitStack) -> None:
    cache = await stack.enter_async_context(Client(address, timeout=5))
    await cache.set("a", b"v")
    assert await cache.get("a") == b"v"
    assert sdk.telemetry is None
    assert vars(cache).keys().isdisjoint(("get", "set", "get_many"))
    assert "acquire" not in vars(cache.loads)


async def test_one_can_do_without(application: Application, address: str, stack: AsyncExitStack) -> None:
    application.set_up()
    cache = await stack.enter_async_context(Client(address, timeout=5, telemetry=False))
    await cache.set("a", b"v")
    assert application.spans() == []
    assert application.points("db.client.operation.duration") == []


async def test_calls_of_threads_belong_to_the_threads_spans(application: Application, address: str) -> None:
    application.set_up()

    def load(key: str) -> bytes:
        with trace.get_tracer("application").start_as_current_span(f"load {key}"):
            return b"v"

    def load_many(keys: list[str]) -> dict[str, bytes]:
        with trace.get_tracer("application").start_as_current_span("load many"):
            return dict.fromkeys(keys, b"v")

    def write(_key: str, _value: bytes) -> None:
        with trace.get_tracer("application").start_as_current_span("insert"):
            """The origin's own."""

    def work() -> None:
        with (
            SyncClient(address, timeout=5) as cache,
            trace.get_tracer("application").start_as_current_span("request"),
        ):
            cache.set("a", b"v")
            cache.get("a")
            cache.get_or_load("b", load)
            cache.get_or_load("b", load)
            cache.get_or_load_many(["b", "c"], load_many)
            cache.cached("d")(lambda: b"v")()
            cache.write_through("e", b"v", write)
            list(cache.scan())

    await asyncio.to_thread(work)
    spans = application.all_spans()
    expected = ["set", "get", *["get_or_load"] * 2, "get_or_load_many", "get_or_load"]
    assert application.names() == [*expected, "delete", "write_through", "scan"]
    request = identity(spans["request"])
    assert {parent(span) for span in application.spans() if span.name != "delete"} == {request}
    assert parent(spans["delete"]) == parent(spans["insert"]) == identity(spans["write_through"])
    loads = [span for span in application.spans() if span.name == "get_or_load"]
    assert parent(spans["load b"]) == identity(loads[0])
    assert [attributes(span)["cacheservice.outcome"] for span in loads] == ["load", "hit", "load"]
    many = attributes(spans["get_or_load_many"])
    assert (many["cacheservice.hits"], many["cacheservice.loads"]) == (1, 1)
    assert parent(spans["load many"]) == identity(spans["get_or_load_many"])
    assert application.reads() == {"hit": 3, "miss": 3}
    assert application.loads() == {"loaded": 3}


async def test_an_sdk_that_is_set_up_late_is_noticed_by_threads_too(
    application: Application, address: str
) -> None:
    def load(_: str) -> bytes:
        with trace.get_tracer("application").start_as_current_span("load"):
            return b"v"

    def work() -> None:
        with SyncClient(address, timeout=5) as cache:
            cache.get("a")
            application.set_up()
            deadline = time.monotonic() + DEADLINE_SECONDS
            while "_loaded" not in vars(cache) and time.monotonic() < deadline:
                cache.get("a")
            cache.get_or_load("a", load)

    await asyncio.to_thread(work)
    assert application.names()[-1] == "get_or_load"
    assert parent(application.all_spans()["load"]) == identity(application.spans()[-1])


def test_the_names_of_servers_and_errors() -> None:
    assert dict(server("[::1]:7700")) == {"server.address": "::1", "server.port": 7700}
    assert dict(server("dns:///cache:7700")) == {"server.address": "dns:///cache:7700"}
    assert error_type(Unavailable("x")) == "UNAVAILABLE"
    assert error_type(KeyError()) == "KeyError"
    assert error_type(asyncio.CancelledError()) == "asyncio.exceptions.CancelledError"


def test_a_tally_counts_by_labels() -> None:
    tally = Tally()
    tally.of((("a", 1),)).add(1)
    tally.of((("a", 1),)).add(2)
    tally.of((("a", 2),)).add(1)
    observed = tally.observe(metrics.CallbackOptions())
    assert [(point.value, point.attributes) for point in observed] == [(3, {"a": 1}), (1, {"a": 2})]
