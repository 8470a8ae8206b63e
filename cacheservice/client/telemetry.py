"""Spans and metrics of the clients of this process, for whatever OpenTelemetry SDK the application sets up.

Only the API is used here. Without an SDK nothing is recorded, and the clients' methods stay as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from cacheservice.address import split_address
from cacheservice.errors import CacheServiceError

SCOPE = "cacheservice"
"""Of the tracer and the meter; also the `db.system.name`."""
DURATION_BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""Seconds; as the semantic conventions for databases have them."""
_SERVERS_REMEMBERED = 1_000

Attributes = dict[str, str | int]
Labels = tuple[tuple[str, str | int], ...]
"""Attributes that can be counted by."""


@lru_cache(_SERVERS_REMEMBERED)
def server(target: str) -> Labels:
    """The attributes for HOST:PORT, or for a gRPC target with a scheme."""
    try:
        host, port = split_address(target)
    except ValueError:
        return (("server.address", target),)
    return (("server.address", host), ("server.port", port))


def error_type(error: BaseException) -> str:
    """The reason of the cache's errors, of others the class."""
    if isinstance(error, CacheServiceError) and error.reason:
        return error.reason
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Count:
    """A number that several threads add to."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, number: int) -> None:
        with self._lock:
            self.value += number


class Tally:
    """Counts that the SDK asks for when it collects: an instrument's own `add` takes 8 us each time."""

    def __init__(self) -> None:
        self._counts: dict[Labels, Count] = {}

    def of(self, labels: Labels) -> Count:
        """Those with these attributes; to be kept, so that there is nothing to look up each time."""
        return self._counts.setdefault(labels, Count())

    def observe(self, options: CallbackOptions) -> Iterable[Observation]:
        del options
        return [Observation(count.value, dict(labels)) for labels, count in list(self._counts.items())]


class Telemetry:
    """The tracer and the instruments, made once for all clients of the process."""

    def __init__(self) -> None:
        self.tracer = trace.get_tracer(SCOPE)
        meter = metrics.get_meter(SCOPE)
        self.duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of the client's calls.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDARIES,
        )
        self.loader_duration = meter.create_histogram(
            "cacheservice.client.loader.duration",
            unit="s",
            description="Duration of the loaders' calls.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDARIES,
        )
        self.unanswered = meter.create_counter(
            "cacheservice.client.unanswered",
            unit="{operation}",
            description="Operations that a node did not answer; another one is asked while there is time.",
        )
        self.reads = Tally()
        meter.create_observable_counter(
            "cacheservice.client.reads",
            [self.reads.observe],
            unit="{key}",
            description="Keys read, by what was found.",
        )
        self.near_hits = Tally()
        meter.create_observable_counter(
            "cacheservice.client.near_cache.hits",
            [self.near_hits.observe],
            unit="{key}",
            description="Keys answered from near caches.",
        )
        self.active = Tally()
        meter.create_observable_up_down_counter(
            "cacheservice.client.operations.active",
            [self.active.observe],
            unit="{operation}",
            description="Calls under way.",
        )


class Sdk:
    """Finds out when the application has set up an SDK, for traces or metrics; that may be late.

    To ask takes about a microsecond, so this is done now and then and not for each call.
    """

    def __init__(self) -> None:
        self.telemetry: Telemetry | None = None
        self._lock = threading.Lock()
        self._waiting: WeakKeyDictionary[Any, Callable[[Any, Telemetry], None]] = WeakKeyDictionary()

    def observe(self, client: object, begin: Callable[[Any, Telemetry], None]) -> None:
        """Calls `begin` with the client as soon as there is an SDK. It must not refer to the client."""
        with self._lock:
            self._waiting[client] = begin
        self.look()

    def look(self) -> None:
        """To be called now and then, by whatever client."""
        if not self._waiting or not (self.telemetry or _is_set_up()):
            return
        with self._lock:
            telemetry = self.telemetry = self.telemetry or Telemetry()
            waiting = list(self._waiting.items())
            self._waiting.clear()
        for client, begin in waiting:
            begin(client, telemetry)

    def unanswered(self, address: str, operations: int, error: CacheServiceError) -> None:
        """To be told that the node at `address` gave no answer."""
        if self.telemetry is not None:
            labels = {**dict(server(address)), "error.type": error_type(error)}
            self.telemetry.unanswered.add(operations, labels)


def _is_set_up() -> bool:
    """Whether there is a provider that is none of the API's own, which record nothing."""
    providers = (trace.get_tracer_provider(), metrics.get_meter_provider())
    modules = (type(provider).__module__ for provider in providers)
    return not all(module.startswith((trace.__name__, metrics.__name__)) for module in modules)


sdk = Sdk()
