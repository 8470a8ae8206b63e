"""One call of a client, as spans and metrics show it."""

from __future__ import annotations

from asyncio import CancelledError
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from opentelemetry import context
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from cacheservice.client.leased import Found
from cacheservice.client.loads import Acquired
from cacheservice.client.results import Outcome
from cacheservice.client.telemetry import SCOPE, Attributes, Telemetry, error_type, server

_LOADING = context.create_key("cacheservice.loading")


class ClientTelemetry:
    """What the calls of one client have in common."""

    def __init__(self, telemetry: Telemetry, target: str) -> None:
        self.telemetry = telemetry
        self.server = server(target)
        self._attributes: dict[str, Attributes] = {}
        self.active = telemetry.active.of(self.server)
        self.near_hits = telemetry.near_hits.of(self.server)
        self._reads = {
            outcome: telemetry.reads.of((*self.server, ("cacheservice.outcome", outcome.value)))
            for outcome in Outcome
        }

    def attributes(self, name: str) -> Attributes:
        """Of the calls of that name."""
        if name not in self._attributes:
            named = {"db.system.name": SCOPE, "db.operation.name": name}
            self._attributes[name] = {**named, **dict(self.server)}
        return self._attributes[name]

    def operation(self, name: str, keys: int | None = None) -> Operation:
        return Operation(self, name, keys)

    def loading(self, name: str, keys: int | None = None) -> Loading:
        return Loading(self, name, keys)

    def loader_call(self) -> LoaderCall:
        return LoaderCall(self)

    def calling_out(self, name: str) -> CallingOut:
        return CallingOut(self, name, None)

    def count(self, outcome: Outcome, keys: int = 1) -> None:
        self._reads[outcome].add(keys)


class Operation:
    """A call with its span; of `keys` keys, or of one or none (None).

    Neither keys nor the messages of errors, which may contain them, become part of the span.
    """

    __slots__ = ("_attributes", "_began", "_client", "_keys", "_name", "span")

    def __init__(self, client: ClientTelemetry, name: str, keys: int | None) -> None:
        self._client = client
        self._name = name
        self._keys = keys
        self._attributes = client.attributes(name)

    def __enter__(self) -> Self:
        self._client.active.add(1)
        self._began = perf_counter()
        attributes = self._attributes
        if self._keys is not None:
            attributes = {**attributes, "cacheservice.keys": self._keys}
        tracer = self._client.telemetry.tracer
        self.span = tracer.start_span(self._name, kind=SpanKind.CLIENT, attributes=attributes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = perf_counter() - self._began
        if error is not None:
            self._attributes = {**self._attributes, "error.type": error_type(error)}
            self.span.set_attribute("error.type", error_type(error))
            self.span.set_status(StatusCode.ERROR)
        self.span.end()
        self._client.active.add(-1)
        self._client.telemetry.duration.record(seconds, self._attributes)

    def found(self, outcome: Outcome) -> None:
        """What was found of its one key."""
        self._client.count(outcome)
        self.span.set_attribute("cacheservice.outcome", outcome.value)

    def found_many(self, hits: int) -> None:
        """How many of its keys have a value."""
        self._client.count(Outcome.HIT, hits)
        self._client.count(Outcome.MISS, (self._keys or 0) - hits)
        self.span.set_attribute("cacheservice.hits", hits)


class CallingOut(Operation):
    """A call within which code of the application runs: the spans of that are children of its own."""

    __slots__ = ("_outer",)

    def __enter__(self) -> Self:
        super().__enter__()
        inner = set_span_in_context(self.span)
        self._outer = context.attach(context.set_value(_LOADING, self, inner))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        context.detach(self._outer)
        super().__exit__(kind, error, trace)


class Loading(CallingOut):
    """A call that loads what is missing."""

    __slots__ = ("_absent", "_hits", "_loads", "_refreshes", "_waits")

    def __init__(self, client: ClientTelemetry, name: str, keys: int | None) -> None:
        super().__init__(client, name, keys)
        self._hits = self._absent = self._refreshes = self._loads = self._waits = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._describe()
        super().__exit__(kind, error, trace)

    @staticmethod
    def current() -> Loading | None:
        """That which this code runs within."""
        innermost = context.get_value(_LOADING)
        return innermost if isinstance(innermost, Loading) else None

    def acquired(self, acquired: Acquired) -> None:
        """To be told what was found of some of its keys, and what is to be loaded or waited for."""
        absent = sum(value is None for value in acquired.found.values())
        refreshes = sum(load.current is not None for load in acquired.loads)
        self._absent += absent
        self._hits += len(acquired.found) - absent
        self._refreshes += refreshes
        self._loads += len(acquired.loads) - refreshes
        self._waits += len(acquired.awaited)
        self._client.count(Outcome.ABSENT, absent)
        self._client.count(Outcome.HIT, len(acquired.found) - absent + refreshes)
        missing = len(acquired.loads) - refreshes + len(acquired.awaited) + len(acquired.failed)
        self._client.count(Outcome.MISS, missing)

    def acquired_one(self, found: Found) -> None:
        """As `acquired`, of one key of which there is an answer."""
        if found.value is None:
            self._absent += 1
            self._client.count(Outcome.ABSENT)
        else:
            self._hits += 1
            self._client.count(Outcome.HIT)

    def _describe(self) -> None:
        counts = {
            "hit": self._hits,
            "absent": self._absent,
            "refresh": self._refreshes,
            "load": self._loads,
            "wait": self._waits,
        }
        if self._keys is None:
            for outcome, count in counts.items():
                if count:
                    self.span.set_attribute("cacheservice.outcome", outcome)
        else:
            self.span.set_attribute("cacheservice.hits", self._hits + self._refreshes)
            self.span.set_attribute("cacheservice.loads", self._loads + self._refreshes)
            self.span.set_attribute("cacheservice.waits", self._waits)


class LoaderCall:
    """One call of a loader, which may outlive that of the client."""

    def __init__(self, client: ClientTelemetry) -> None:
        self._client = client
        self._result = "loaded"

    def __enter__(self) -> Self:
        self._began = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        attributes: Attributes = dict(self._client.server)
        if error is None:
            attributes["cacheservice.load.result"] = self._result
        else:
            attributes["error.type"] = error_type(error)
            is_failure = isinstance(error, Exception) and not isinstance(error, CancelledError)
            attributes["cacheservice.load.result"] = "failed" if is_failure else "cancelled"
        self._client.telemetry.loader_duration.record(perf_counter() - self._began, attributes)

    def gave(self, value: Any) -> None:
        self._result = "absent" if value is None else "loaded"
